"""Where two networks disagree: numbers worked by hand, PyTorch's own cosines, and what a relation may not depend on."""
import pytest
import torch
import torch.nn.functional as F
from networks import images
from torch import Tensor

from zsq_lab.discrepancy import (
    MEMORY,
    FeatureDiscrepancy,
    activation_term,
    channel_relations,
    output_discrepancy,
    output_size,
    relation_discrepancy,
)


def turned(cosine: float) -> Tensor:
    """One image of two channels and two positions whose channels have this cosine: [1, 2, 2]."""
    return torch.tensor([[[1.0, 0.0], [cosine, (1 - cosine**2) ** 0.5]]])


def test_output_discrepancy_worked_by_hand():
    student, teacher = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0, 0.0], [0.0, 5.0]])
    assert output_discrepancy(student, teacher).item() == pytest.approx((0 + 2 + 3 + 1) / 4)
    assert output_size(teacher).item() == pytest.approx((1 + 0 + 0 + 5) / 4)
    assert output_discrepancy(teacher, teacher) == 0


def test_several_outputs_count_equally_and_integers_not_at_all():
    student = {"a": torch.ones(2, 2), "b": [torch.zeros(1, 8)], "classes": torch.tensor([3])}
    teacher = {"a": torch.zeros(2, 2), "b": [torch.full((1, 8), 4.0)], "classes": torch.tensor([900])}
    assert output_discrepancy(student, teacher).item() == pytest.approx((1 + 4) / 2)
    assert output_size(teacher).item() == pytest.approx((0 + 4) / 2)


def test_relations_worked_by_hand():
    features = torch.tensor([[[3.0, 4.0], [4.0, -3.0], [6.0, 8.0], [-3.0, -4.0]]])
    expected = [[1, 0, 1, -1], [0, 1, 0, 0], [1, 0, 1, -1], [-1, 0, -1, 1]]
    torch.testing.assert_close(channel_relations(features), torch.tensor([expected]).float())


@pytest.mark.parametrize("shape", [(5, 7), (5, 3, 3), (5, 2, 2, 2)])
def test_relations_are_the_cosines_of_pytorch(shape):
    features = images(4, shape)
    rows = features.flatten(2)
    expected = F.cosine_similarity(rows[:, :, None], rows[:, None], dim=3)
    torch.testing.assert_close(channel_relations(features), expected)


def test_channels_without_positions_are_compared_over_the_images():
    features = images(6, (4,))
    expected = F.cosine_similarity(features.t()[:, None], features.t()[None], dim=2)
    torch.testing.assert_close(channel_relations(features), expected[None])


@pytest.mark.parametrize("shape", [(5,), (5, 3, 3)])
def test_relations_survive_a_positive_scale_per_channel_and_no_other(shape):
    features = images(8, shape)
    scales = torch.tensor([0.1, 1.0, 3.0, 20.0, 100.0]).reshape(5, *[1] * (len(shape) - 1))
    torch.testing.assert_close(channel_relations(scales * features), channel_relations(features), rtol=1e-4, atol=1e-5)
    assert relation_discrepancy(scales * features, features) < 1e-5
    scales[2] = -1
    assert relation_discrepancy(scales * features, features) > 0.05


def test_identical_features_have_no_discrepancy():
    features = images(8, (5, 3, 3))
    assert relation_discrepancy(features.clone(), features) == 0
    assert FeatureDiscrepancy()({"a": features.clone()}, {"a": features}) == 0


def test_relation_discrepancy_worked_by_hand():
    """Two of the four entries of a 2x2 matrix differ, by |0.6 - 0|; a second image that agrees halves the mean."""
    assert relation_discrepancy(turned(0.6), turned(0.0)).item() == pytest.approx(2 * 0.6 / 4)
    student, teacher = torch.cat([turned(0.6), turned(0.3)]), torch.cat([turned(0.0), turned(0.3)])
    assert relation_discrepancy(student, teacher).item() == pytest.approx(2 * 0.6 / 4 / 2)


@pytest.mark.parametrize("shape", [(3,), (3, 4, 4)])
def test_a_channel_of_zeros_is_related_to_nothing_and_has_a_finite_gradient(shape):
    features = images(4, shape)
    features[:, 1] = 0
    features.requires_grad_(True)
    relations = channel_relations(features)
    assert (relations[:, 1] == 0).all() and (relations[:, :, 1] == 0).all()
    relation_discrepancy(features, images(4, shape, seed=2)).backward()
    assert torch.isfinite(features.grad).all() and features.grad.abs().sum() > 0


def test_a_stage_that_differs_ten_times_as_much_does_not_count_ten_times():
    """With weights 1/a and 1/b over their sum, each stage gives the same: 2 / (1/a + 1/b), not (a + b) / 2."""
    student = {"near": turned(0.05), "far": turned(0.5)}
    teacher = {"near": turned(0.0), "far": turned(0.0)}
    near, far = 2 * 0.05 / 4, 2 * 0.5 / 4
    assert FeatureDiscrepancy()(student, teacher).item() == pytest.approx(2 / (1 / near + 1 / far), rel=1e-3)
    for values in student.values():
        values.requires_grad_(True)
    FeatureDiscrepancy()(student, teacher).backward()
    sizes = {name: (values.grad.norm() * relation_discrepancy(values, teacher[name])).item()
             for name, values in student.items()}  # what a relative step of each stage would bring
    assert sizes["far"] == pytest.approx(sizes["near"], rel=0.2)


def test_the_weights_follow_a_running_size():
    measure, teacher = FeatureDiscrepancy(), {"a": turned(0.0), "b": turned(0.0)}
    measure({"a": turned(0.1), "b": turned(0.1)}, teacher)
    second = measure({"a": turned(0.1), "b": turned(0.6)}, teacher).item()
    a, b = 0.05, 0.3
    weight_a, weight_b = 1 / a, 1 / (MEMORY * a + (1 - MEMORY) * b)
    assert second == pytest.approx((weight_a * a + weight_b * b) / (weight_a + weight_b), rel=1e-3)


def test_activation_term_worked_by_hand():
    assert activation_term(torch.tensor([[1.0, -2.0], [0.0, 5.0]])).item() == pytest.approx(-8 / 4)

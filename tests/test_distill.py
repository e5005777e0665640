"""Fine-tuning: its losses against hand-worked numbers, what it moves, and above all what it must not move."""
import pytest
import torch
import torch.nn.functional as F
from networks import IMAGE, Asking, Mobile, Remembering, Residual, SharedConv, awaken, images, same_state, snapshot
from torch import nn

from zsq_lab.distill import (
    Features,
    FineTuning,
    dense_layers,
    feature_error,
    finetune,
    knowledge_loss,
    output_loss,
    relative_error,
    stage_layers,
    suited_loss,
    suited_rate,
    thorough_loss,
)
from zsq_lab.graph import trace
from zsq_lab.health import Stopped
from zsq_lab.layers import QuantConfig, convert, quant_layers
from zsq_lab.models import ResNet20
from zsq_lab.ranges import fit_input_ranges, fit_weight_ranges


def pair(network=Residual, config: QuantConfig | None = None):
    """(teacher, student with ranges, names of the compared layers)."""
    teacher, student = convert(awaken(network()), config or QuantConfig(3, 3), IMAGE)
    fit_weight_ranges(student, search=True)
    fit_input_ranges(student, [images(32)], search=True)
    return teacher, student, stage_layers(trace(teacher, IMAGE))


def draw(generator: torch.Generator) -> torch.Tensor:
    return torch.randn(16, *IMAGE, generator=generator)


def gap(student: nn.Module, teacher: nn.Module) -> float:
    x = images(64, seed=7)
    with torch.no_grad():
        return output_loss(student(x), teacher(x)).item()


def test_output_loss_is_the_kullback_leibler_divergence():
    teacher, student = torch.tensor([[0.0, 1.0], [2.0, 0.0]]), torch.tensor([[1.0, 0.0], [2.0, 0.0]])
    p, q = teacher.softmax(1), student.softmax(1)
    assert output_loss(student, teacher).item() == pytest.approx(((p * (p / q).log()).sum() / 2).item(), rel=1e-5)
    assert output_loss(teacher, teacher) == 0


def test_output_loss_of_anything_but_logits_is_the_relative_error():
    teacher, student = torch.tensor([[[3.0], [4.0]]]), torch.tensor([[[3.0], [2.0]]])
    assert output_loss(student, teacher).item() == pytest.approx(4 / 25)
    assert relative_error(100 * student, 100 * teacher).item() == pytest.approx(4 / 25)


def test_output_loss_of_several_outputs():
    teacher, student = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]])
    both = output_loss((student, {"same": teacher}), (teacher, {"same": teacher}))
    assert both.item() == pytest.approx(output_loss(student, teacher).item())


def test_knowledge_loss_worked_by_hand():
    """Output loss, plus the mean of the stages' relative errors: (4 / 25 + 1 / 4) / 2."""
    logits, wanted = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    own = {"a": torch.tensor([[3.0, 2.0]]), "b": torch.tensor([[1.0]])}
    features = {"a": torch.tensor([[3.0, 4.0]]), "b": torch.tensor([[2.0]])}
    expected = output_loss(logits, wanted).item() + (4 / 25 + 1 / 4) / 2
    assert knowledge_loss(logits, wanted, own, features).item() == pytest.approx(expected)


def test_stages_end_where_the_resolution_changes():
    assert stage_layers(trace(ResNet20(), (3, 32, 32))) == ["layer2.0.conv1", "layer3.0.conv1", "fc"]
    assert stage_layers(trace(nn.Conv2d(3, 4, 3), IMAGE)) == [""]


def test_dense_layers_are_all_but_those_that_read_the_image():
    """In the order of the data flow; a layer that is called twice is named once; a lone layer is compared itself."""
    assert dense_layers(trace(Residual(), IMAGE)) == ["conv_a", "conv_b", "fc"]
    assert dense_layers(trace(SharedConv(), IMAGE)) == ["shared"]
    assert dense_layers(trace(nn.Conv2d(3, 4, 3), IMAGE)) == [""]


def test_features_are_the_inputs_of_the_named_layers():
    model = awaken(Residual())
    with Features(model, ["conv_a", "fc"]) as features:
        model(images(2))
    assert features.values["fc"].shape == (2, 6)
    expected = F.relu(model.bn_stem(model.stem(images(2))))
    torch.testing.assert_close(features.values["conv_a"], expected)
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_features_of_layers_that_are_called_by_keyword():
    model = awaken(Asking())
    with Features(model, ["conv1", "fc"]) as features:
        model(images(2))
    assert torch.equal(features.values["conv1"], images(2)) and features.values["fc"].shape == (2, 6)


@pytest.mark.parametrize("network", [Residual, Mobile, SharedConv])
def test_the_gap_to_the_teacher_closes_and_the_teacher_stays(network):
    teacher, student, stages = pair(network)
    before, teacher_before, start = snapshot(student), snapshot(teacher), gap(student, teacher)
    steps = []
    finetune(student, teacher, draw, stages, iterations=60, learning_rate=2e-3,
             on_step=lambda i, loss: steps.append(loss))
    assert gap(student, teacher) < 0.85 * start and len(steps) == 60
    assert same_state(teacher_before, teacher.state_dict())
    moved = {key for key, value in student.state_dict().items() if not torch.equal(value, before[key])}
    assert any(key.endswith("layer.weight") for key in moved)
    assert any("weight_quantizer.scale" in key for key in moved) and any("input_quantizers" in key for key in moved)
    assert not any("zero_point" in key for key in moved)


def test_everything_is_frozen_again_afterwards():
    teacher, student, stages = pair()
    finetune(student, teacher, draw, stages, iterations=2, learning_rate=1e-3)
    assert not any(p.requires_grad or p.grad is not None for p in student.parameters())
    assert all((layer.weight_quantizer.scale > 0).all() for layer in quant_layers(student).values())
    before = snapshot(student)
    student(100 * images(4))
    assert same_state(before, student.state_dict())
    assert not any(m._forward_pre_hooks for m in [*student.modules(), *teacher.modules()])


def test_batchnorm_statistics_are_not_updated_from_synthetic_images():
    teacher, student, stages = pair(config=QuantConfig(3, 3, convention="literature"))
    norms = {name: value.clone() for name, value in student.state_dict().items() if "bn_" in name}
    assert len(norms) == 15
    finetune(student, teacher, draw, stages, iterations=5, learning_rate=1e-3)
    assert all(torch.equal(student.state_dict()[name], value) for name, value in norms.items())


def test_the_seed_decides_all():
    results = []
    for seed in (0, 0, 1):
        teacher, student, stages = pair()
        random_state = torch.get_rng_state()
        finetune(student, teacher, draw, stages, iterations=3, learning_rate=1e-3, seed=seed)
        assert torch.equal(torch.get_rng_state(), random_state)
        results.append(snapshot(student))
    assert same_state(results[0], results[1]) and not same_state(results[0], results[2])


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_works_where_the_caller_has_switched_gradients_off(context):
    results = []
    for gradients_off in (False, True):
        teacher, student, stages = pair()
        if gradients_off:
            with context():
                finetune(student, teacher, draw, stages, iterations=2, learning_rate=1e-3)
        else:
            finetune(student, teacher, draw, stages, iterations=2, learning_rate=1e-3)
        results.append(snapshot(student))
    assert same_state(*results)


def test_a_dead_channel_does_not_speed_up_the_other_scales():
    """A channel of zeros has the stand-in scale 1; steps are taken relative to the size of the scales that count."""
    moves = []
    for dead in (False, True):
        model = awaken(Residual())
        with torch.no_grad():
            model.bn_a.weight[2] = 0
            if not dead:
                model.conv_a.weight[2] = model.bn_a.weight[2] = 1e-3
        teacher, student = convert(model, QuantConfig(4, 4), IMAGE)
        fit_weight_ranges(student, search=False)
        fit_input_ranges(student, [images(32)], search=False)
        scale = quant_layers(student)["conv_a"].weight_quantizer.scale
        before = scale.clone()
        finetune(student, teacher, draw, ["fc"], iterations=1, learning_rate=1e-4)
        moves.append((scale - before).abs()[[0, 1, 3, 4, 5]].max())
    assert moves[1] < 2 * moves[0]


def outputs_only(student_output, teacher_output, student_features, teacher_features):
    return (student_output - teacher_output).square().mean()


def test_whoever_holds_the_fine_tuning_chooses_images_and_loss():
    teacher, student, stages = pair()
    x = draw(torch.Generator().manual_seed(0))
    expected = (student(x) - teacher(x)).square().mean().item()
    before = snapshot(teacher)
    with FineTuning(student, teacher, stages, 2e-3, outputs_only) as tuning:
        losses = [tuning.step(x, done / 20) for done in range(20)]
    assert losses[0] == pytest.approx(expected, rel=1e-5) and losses[-1] < 0.7 * losses[0]
    assert same_state(before, teacher.state_dict())


def test_the_step_shrinks_to_nothing_at_the_end_of_the_run():
    """Adam's first step is the rate, times 1/2 (1 + cos(pi done)): all of it at 0, half of it at 1/2, nothing at 1."""
    moves = []
    for done in (0.0, 0.5, 1.0):
        teacher, student, stages = pair()
        weight = student.conv_a.layer.weight
        before = weight.clone()
        with FineTuning(student, teacher, stages, 1e-3) as tuning:
            tuning.step(draw(torch.Generator().manual_seed(0)), done)
        moves.append((weight - before).abs().max().item())
    assert moves == pytest.approx([1e-3, 5e-4, 0], rel=1e-2, abs=1e-9)


def test_a_state_put_back_goes_on_as_if_nothing_had_been():
    """Also the optimizer's memory: four steps in one piece are two steps, and two more by another student."""
    x, results = draw(torch.Generator().manual_seed(0)), []
    for cut in (None, 2):
        teacher, student, stages = pair()
        with FineTuning(student, teacher, stages, 1e-3) as tuning:
            for step in range(cut or 4):
                tuning.step(x, step / 4)
            state = {"student": snapshot(student), "optimizer": tuning.state()["optimizer"]}
        if cut:
            teacher, student, stages = pair()
            with FineTuning(student, teacher, stages, 1e-3) as tuning:
                tuning.restore(state)
                assert all(p.requires_grad for p in tuning.parameters)
                for step in range(cut, 4):
                    tuning.step(x, step / 4)
        results.append(snapshot(student))
    assert same_state(*results)


def test_an_interrupted_run_leaves_nothing_learnable():
    def interrupt(*_):
        raise KeyboardInterrupt

    teacher, student, stages = pair()
    with pytest.raises(KeyboardInterrupt):
        finetune(student, teacher, draw, stages, iterations=5, learning_rate=1e-3, on_step=interrupt)
    assert not any(p.requires_grad or p.grad is not None for p in student.parameters())
    assert not any(m._forward_pre_hooks for m in [*student.modules(), *teacher.modules()])


def test_divergence_is_named_and_leaves_nothing_learnable():
    teacher, student, stages = pair()
    with pytest.raises(Stopped, match=r"fine-tuning diverged after \d+% of its run.*lower the learning rate .*, "
                                      "or use more bits or another recipe; the input model is unchanged"):
        finetune(student, teacher, draw, stages, iterations=5, learning_rate=1e30)
    assert not any(p.requires_grad for p in student.parameters())


@pytest.mark.parametrize("begun, features", [(0.0, None), (0.19, None), (0.2, 3.0), (0.33, 30.0), (9.0, 30.0)])
def test_the_farther_a_student_starts_the_more_its_features_weigh(begun, features):
    loss = suited_loss(begun)
    assert loss is knowledge_loss if features is None else (loss.func, loss.keywords) == (thorough_loss, {"features": features})


@pytest.mark.parametrize("begun, rate", [(0.0, 5e-5), (0.042, 5e-5), (0.0465, 2e-4), (0.08, 2e-4), (0.17, 5e-4), (0.28, 5e-4),
                                         (0.575, 5e-4), (0.69, 1e-3), (9.0, 1e-3), (float("nan"), 5e-5)])
def test_the_farther_a_student_starts_the_faster_it_learns(begun, rate):
    assert suited_rate(begun) == rate


def test_feature_error_is_the_mean_relative_error_and_leaves_no_hook():
    teacher, student, stages = pair()
    x = draw(torch.Generator().manual_seed(0))
    with torch.no_grad(), Features(student, stages) as own, Features(teacher, stages) as wanted:
        student(x), teacher(x)
        errors = [((own.values[n] - wanted.values[n]) ** 2).sum() / (wanted.values[n] ** 2).sum() for n in stages]
    assert feature_error(student, teacher, x, stages) == pytest.approx(torch.stack(errors).mean().item(), rel=1e-4)
    assert feature_error(teacher, teacher, x, stages) == 0
    assert not any(m._forward_pre_hooks for m in [*student.modules(), *teacher.modules()])


def test_what_a_model_keeps_from_feature_error_may_meet_gradients():
    teacher, student, stages = pair(Remembering)
    feature_error(student, teacher, draw(torch.Generator()), stages)
    assert not student.kept.is_inference() and not teacher.kept.is_inference()
    finetune(student, teacher, draw, stages, iterations=1, learning_rate=1e-3)


def test_thorough_loss_worked_by_hand():
    """Output loss, the outputs' relative error 2 / 1, and three times the features' (4 / 25 + 1 / 4) / 2."""
    logits, wanted = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    own = {"a": torch.tensor([[3.0, 2.0]]), "b": torch.tensor([[1.0]])}
    features = {"a": torch.tensor([[3.0, 4.0]]), "b": torch.tensor([[2.0]])}
    expected = output_loss(logits, wanted).item() + 2 + 3 * (4 / 25 + 1 / 4) / 2
    three = thorough_loss(logits, wanted, own, features, features=3.0)
    assert three.item() == pytest.approx(expected)
    more = thorough_loss(logits, wanted, own, features, features=30.0) - three
    assert more.item() == pytest.approx(27 * (4 / 25 + 1 / 4) / 2)
    several = thorough_loss((logits, torch.tensor([1])), (wanted, torch.tensor([2])), own, features, features=3.0)
    assert several.item() == pytest.approx(expected), "whole numbers are not compared"

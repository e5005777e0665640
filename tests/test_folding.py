"""BatchNorm folding: the same output for every kind of layer, by data flow, and left alone where it cannot be done."""
import copy

import pytest
import torch
import torch.nn.functional as F
from networks import LAYER_TYPES, Residual, Standardised, awaken, images, layer_and_norm, same_state, snapshot
from torch import Tensor, nn

from zsq_lab.folding import FoldedBatchNorm, fold_batchnorms, replace_module
from zsq_lab.graph import BATCH_NORMS, trace


def folded(model: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """A folded copy, in float64 so that agreement can be asked for to ten digits."""
    copied = copy.deepcopy(model).double()
    return fold_batchnorms(copied, trace(copied, shape))


def norms_left(model: nn.Module) -> int:
    return sum(isinstance(m, BATCH_NORMS) for m in model.modules())


def assert_same_output(model: nn.Module, other: nn.Module, shape: tuple[int, ...]) -> None:
    x = images(4, shape).double()
    torch.testing.assert_close(other(x), copy.deepcopy(model).double()(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", LAYER_TYPES)
def test_every_kind_of_layer_takes_its_batchnorm_in(kind):
    model, shape = layer_and_norm(kind)
    result = folded(model, shape)
    assert norms_left(result) == 0
    assert_same_output(model, result, shape)


def test_worked_by_hand():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, eps=0.0)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        model[0].bias.copy_(torch.tensor([1.0, 0.0]))
        model[1].running_mean.copy_(torch.tensor([3.0, 1.0]))
        model[1].running_var.copy_(torch.tensor([4.0, 0.25]))
        model[1].weight.copy_(torch.tensor([2.0, -1.0]))
        model[1].bias.copy_(torch.tensor([0.5, 1.0]))
    result = fold_batchnorms(model, trace(model, (2,)))
    # factors gamma / sigma: 2/2 = 1 and -1/0.5 = -2
    assert result[0].weight.tolist() == [[1.0, 2.0], [-6.0, -8.0]]
    assert result[0].bias.tolist() == [(1 - 3) * 1 + 0.5, (0 - 1) * -2 + 1]
    assert isinstance(result[1], FoldedBatchNorm)
    assert result[1].mean.tolist() == [0.5, 1.0] and result[1].std.tolist() == [2.0, 1.0]


def test_pairs_follow_the_data_flow_not_the_order_of_definition():
    model = awaken(Residual())
    result = folded(model, (3, 8, 8))
    assert norms_left(result) == 0
    assert_same_output(model, result, (3, 8, 8))


class Crossed(nn.Module):
    """Order of definition pairs conv1 with bn1; the data flow pairs it with bn2."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.conv2, self.bn2 = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn1(self.conv2(F.relu(self.bn2(self.conv1(x)))))


def test_a_crossed_pair_is_folded_right():
    model = awaken(Crossed())
    result = folded(model, (3, 5, 5))
    assert norms_left(result) == 0
    assert_same_output(model, result, (3, 5, 5))


class Unfoldable(nn.Module):
    """A conv and a BatchNorm wired in one of the ways that must not be folded."""

    def __init__(self, case: str):
        super().__init__()
        self.case = case
        self.conv, self.other = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x: Tensor):
        match self.case:
            case "after a sum":
                return self.bn(self.conv(x) + x)
            case "after an activation":
                return self.bn(F.relu(self.conv(x)))
            case "on the image":
                return self.conv(self.bn(x))
            case "BatchNorm shared by two layers":
                return self.bn(self.conv(x)) + self.bn(self.other(x))
            case "layer called twice":
                return self.bn(self.conv(self.conv(x)))
            case "layer feeds two":
                out = self.conv(x)
                return self.bn(out) + F.relu(out)
            case "layer's output is returned":
                out = self.conv(x)
                return {"normed": self.bn(out), "raw": [out]}


@pytest.mark.parametrize("case", ["after a sum", "after an activation", "on the image", "layer called twice",
                                  "BatchNorm shared by two layers", "layer feeds two", "layer's output is returned"])
def test_what_cannot_be_folded_is_left_alone(case):
    model = awaken(Unfoldable(case))
    result = folded(model, (4, 5, 5))
    assert norms_left(result) == 1
    assert_same_output(model, result, (4, 5, 5))


def test_a_linear_whose_channels_are_not_the_batchnorms_is_left_alone():
    """On [N, C, L] a linear works along L and BatchNorm along C; with equal sizes a wrong fold raises no error."""
    model = awaken(nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7)))
    result = folded(model, (7, 5))
    assert norms_left(result) == 1
    assert_same_output(model, result, (7, 5))


class Padded(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (1, 1, 1, 1)))


@pytest.mark.parametrize("kind, left", [(Standardised, 1), (Padded, 0)])
def test_a_layer_with_a_forward_of_its_own_takes_a_batchnorm_in_only_if_it_is_linear(kind, left):
    """A standardised weight would lose the factor again."""
    model = awaken(nn.Sequential(kind(3, 4, 3), nn.BatchNorm2d(4)))
    result = folded(model, (3, 5, 5))
    assert norms_left(result) == left
    assert_same_output(model, result, (3, 5, 5))


def test_a_batchnorm_without_statistics_is_left_alone():
    model = awaken(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)))
    assert norms_left(folded(model, (3, 5, 5))) == 1


def test_a_batchnorm_without_gamma_and_beta():
    model = awaken(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=False)))
    result = folded(model, (3, 5, 5))
    assert norms_left(result) == 0
    assert result[1].mean.tolist() == [0] * 4 and result[1].std.tolist() == [1] * 4
    assert_same_output(model, result, (3, 5, 5))


def test_a_dead_channel_folds_to_its_constant():
    model = awaken(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
    with torch.no_grad():
        model[1].weight[2] = 0
    result = folded(model, (3, 5, 5))
    assert (result[0].weight[2] == 0).all() and result[0].bias[2] == model[1].bias[2].double()
    assert_same_output(model, result, (3, 5, 5))


def test_a_graph_of_another_model_changes_neither():
    model = awaken(Residual())
    other = copy.deepcopy(model)
    graph, before = trace(other, (3, 8, 8)), snapshot(model)
    with pytest.raises(ValueError, match="traced on another model.*'stem'.*trace"):
        fold_batchnorms(model, graph)
    assert same_state(model.state_dict(), before) and same_state(other.state_dict(), before)


def test_a_graph_from_before_the_fold_does_not_fold_twice():
    model = awaken(Residual())
    graph = trace(model, (3, 8, 8))
    fold_batchnorms(model, graph)
    once = snapshot(model)
    with pytest.raises(ValueError, match="before this one was changed: its layer 'bn_stem'"):
        fold_batchnorms(model, graph)
    assert same_state(model.state_dict(), once)
    fold_batchnorms(model, trace(model, (3, 8, 8)))
    assert same_state(model.state_dict(), once)


def test_statistics_with_variance_zero_stay_finite():
    model = awaken(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
    model[1].running_var[1] = 0
    assert torch.isfinite(folded(model, (3, 5, 5))[0].weight).all()


def test_a_folded_batchnorm_knows_its_channels():
    assert folded(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), (3, 5, 5))[1].num_features == 4


def test_replace_reaches_every_name_of_a_module():
    old, new = nn.ReLU(), nn.Identity()
    model = nn.Module()
    model.first, model.again, model.inner = old, old, nn.Sequential(old, nn.Conv2d(1, 1, 1))
    assert replace_module(model, old, new) is model
    assert model.first is model.again is model.inner[0] is new
    assert replace_module(old, old, new) is new

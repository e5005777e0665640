"""The record of a forward pass: who feeds whom, whatever style the model is written in, and nothing left behind."""
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from networks import IMAGE, Residual, SharedConv, SharedReLU, awaken
from torch import Tensor, nn

from zsq_lab.graph import INPUT, evaluating, input_of, tensors, trace

X = torch.ones(3)


def names(graph) -> list[str]:
    return [node.name for node in graph.nodes]


def feeds(graph, name: str) -> list[str]:
    """Names of what reads the (first) operation called `name`."""
    return [graph.nodes[i].name for i in graph.consumers(names(graph).index(name))]


def test_layers_come_in_the_order_of_the_data_flow():
    graph = trace(Residual(), IMAGE)
    assert [graph.nodes[i].name for i in graph.layers()] == ["stem", "conv_a", "conv_b", "fc"]
    assert graph.first_layers() == {"stem"} and graph.last_layers() == {"fc"}


def test_functional_relu_and_residual_sum_are_operations():
    graph = trace(Residual(), IMAGE)
    assert feeds(graph, "stem") == ["bn_stem"] and feeds(graph, "bn_stem") == ["relu"]
    assert feeds(graph, "relu") == ["conv_a", "add"]
    assert graph.nodes[0].inputs == (INPUT,)
    assert graph.nodes[0].input_shape == (2, *IMAGE) and graph.nodes[0].output_shape == (2, 6, 4, 4)


def test_each_call_of_a_shared_module_is_an_operation_of_its_own():
    model = SharedConv()
    assert len(trace(model, IMAGE).calls(model.shared)) == 2
    model = SharedReLU()
    graph = trace(model, IMAGE)
    first, second = graph.calls(model.relu)
    assert [graph.nodes[i].name for i in graph.consumers(first)] == ["conv2"]
    assert [graph.nodes[i].name for i in graph.consumers(second)] == ["conv3"]


class Styles(nn.Module):
    """In-place calls, writing into a slice, concatenation, a layer called by keyword, a tuple as result."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Conv2d(6, 2, 1)
        self.relu, self.same, self.unused = nn.ReLU(inplace=True), nn.Identity(), nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a = self.relu(self.a(x))
        b = torch.zeros_like(a)
        b[:, 1:] = self.same(self.b(input=a))[:, 1:]
        b += 1
        return self.c(torch.cat([a, b], 1)), a


def test_in_place_slices_concatenation_and_keywords_are_seen():
    graph = trace(Styles(), IMAGE)
    assert [graph.nodes[i].name for i in graph.layers()] == ["a", "b", "c"]
    assert feeds(graph, "a") == ["relu"]
    assert feeds(graph, "b") == ["same"]
    assert "cat" in feeds(graph, "relu")
    cat = graph.nodes[names(graph).index("cat")]
    assert len(cat.inputs) == 2
    reached = {names(graph).index("b")}
    for index, node in enumerate(graph.nodes):
        if reached & set(node.inputs):
            reached.add(index)
    assert names(graph).index("cat") in reached, "what was written into a slice reaches the concatenation"


@pytest.mark.parametrize("args, kwargs", [((1, X), {"y": -X}), ((), {"flag": True, "input": X}), (([X, -X],), {})])
def test_the_input_of_a_call_is_its_first_tensor(args, kwargs):
    assert input_of(args, kwargs) is X


def test_what_the_model_returns_counts_as_a_reader():
    graph = trace(Styles(), IMAGE)
    assert len(graph.consumers(names(graph).index("relu"))) >= 3  # the layer, the concatenation, the caller
    assert graph.last_layers() == {"c"}


def test_a_layer_never_called_is_not_in_the_record():
    assert "unused" not in names(trace(Styles(), IMAGE))


def test_a_bare_layer_is_a_model():
    graph = trace(nn.Conv2d(3, 4, 1), IMAGE)
    assert graph.first_layers() == graph.last_layers() == {""}


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right, self.head = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(torch.cat([self.left(x), self.right(x)], 1)))


def test_several_layers_may_read_the_image():
    graph = trace(Branches(), IMAGE)
    assert graph.first_layers() == {"left", "right"} and graph.last_layers() == {"head"}


def test_tracing_leaves_nothing_behind():
    model = awaken(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5))).train()
    model[2].eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    random_state = torch.get_rng_state()
    trace(model, IMAGE)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items()), "BatchNorm statistics were updated"
    assert [m.training for m in model.modules()] == [True, True, True, False]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("shape", [(5, 8, 8), (3,), (3, 0, 8)])
def test_a_wrong_image_shape_is_one_clear_error(shape):
    model = Residual().train()
    with pytest.raises(ValueError, match="does not take an input of shape .* Pass the image_shape"):
        trace(model, shape)
    assert model.training and not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


class Between(nn.Module):
    """A function between two layers, called by the model itself or as a module of its own."""

    def __init__(self, function, *, wrapped: bool = False):
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)
        self.function = Wrapped(function) if wrapped else function

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.second(self.function(self.first(x))))


class Wrapped(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x


HIDDEN = [torch.vmap(F.silu), lambda x: torch.from_numpy(x.numpy() ** 2), lambda x, held=torch.ones(2, 4, 8, 8): held]


@pytest.mark.parametrize("function", HIDDEN, ids=["vmap", "numpy", "unregistered tensor"])
def test_a_layer_behind_an_operation_that_nobody_sees_is_named(function):
    model = Between(function)
    with pytest.raises(ValueError, match="what layer 'second' gets cannot be traced back to the model's input.*nn.Module of "
                                         "its own, or register the tensor as a buffer"):
        trace(model, IMAGE)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("function", HIDDEN[:2], ids=["vmap", "numpy"])
def test_in_a_module_of_its_own_it_is_one_operation(function):
    graph = trace(Between(function, wrapped=True), IMAGE)
    assert [graph.nodes[i].name for i in graph.layers()] == ["first", "second", "third"]
    assert feeds(graph, "first") == ["function"]


@pytest.mark.parametrize("function", [Doubled.apply, torch.ops.aten.silu], ids=["autograd", "operator"])
def test_operations_outside_torchs_own_functions_are_seen(function):
    assert len(list(trace(Between(function), IMAGE).layers())) == 3


class Queried(nn.Module):
    """Layers that work on what the model holds: the same for every image."""

    def __init__(self):
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, 4))
        self.register_buffer("places", torch.linspace(0, 1, 4))
        self.conv, self.key, self.place, self.fc = nn.Conv2d(3, 4, 1), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        constant = self.key(F.relu(self.place(self.places + torch.arange(4))) + self.query)
        return self.fc(self.conv(x).mean((2, 3)) * constant)


def test_what_follows_from_the_models_own_tensors_is_a_constant():
    graph = trace(Queried(), IMAGE)
    assert [graph.nodes[i].name for i in graph.layers()] == ["conv", "fc"]
    assert graph.first_layers() == {"conv"} and graph.last_layers() == {"fc"}


@pytest.mark.parametrize("fails", [False, True])
def test_evaluating_gives_each_module_its_own_mode_back(fails):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout()).train()
    model[1].eval()
    try:
        with evaluating(model):
            assert not any(module.training for module in model.modules())
            if fails:
                raise KeyError
    except KeyError:
        pass
    assert [module.training for module in model.modules()] == [True, True, False, True]


@dataclass
class Seen:
    masks: Tensor
    others: list[Tensor]


def test_tensors_are_found_in_whatever_holds_them():
    a, b, c = (torch.tensor(float(i)) for i in range(3))
    assert [t.item() for t in tensors({"x": (a, None), "y": Seen(b, [c])})] == [0, 1, 2]
    assert not list(tensors(Seen)), "the class itself holds none"

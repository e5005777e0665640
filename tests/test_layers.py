"""Quantized layers against PyTorch's own operations, one range for each call site, and one clear error for the rest."""
import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from networks import (
    IMAGE,
    LAYER_TYPES,
    TINY,
    Asking,
    Mobile,
    Residual,
    SharedConv,
    SharedReLU,
    awaken,
    images,
    layer_and_norm,
    same_state,
    snapshot,
)
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from zsq_lab.graph import BATCH_NORMS, trace
from zsq_lab.layers import (
    QuantConfig,
    QuantLayer,
    check_model,
    convert,
    float_copy,
    float_layers,
    quant_layers,
    quantization_off,
    quantize_model,
    scale_axis,
)
from zsq_lab.ranges import fit_input_ranges, fit_weight_ranges
from zsq_lab.recipes import quantize

W4A4 = QuantConfig(4, 4)


def calibrated(model: nn.Module, config: QuantConfig = W4A4, shape: tuple[int, ...] = IMAGE) -> nn.Module:
    """A student with ranges from a few noise images."""
    _, student = convert(model, config, shape)
    fit_weight_ranges(student, search=False)
    fit_input_ranges(student, [images(16, shape)], search=False)
    return student


def seen_by(layer: QuantLayer, student: nn.Module, x: Tensor) -> list[Tensor]:
    """The inputs that reach the float layer inside a quantized one, call by call."""
    inputs: list[Tensor] = []
    handle = layer.layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0].detach().clone()))
    student(x)
    handle.remove()
    return inputs


@pytest.mark.parametrize("arguments, problem", [
    ({"weight_bits": 1}, "weight_bits: bits must be"), ({"activation_bits": 17}, "activation_bits: bits must be"),
    ({"edge_bits": 0}, "edge_bits: bits must be"), ({"weight_bits": 4.0}, "weight_bits"),
    ({"convention": "mine"}, "unknown convention 'mine': expected one of deployable, literature")])
def test_bad_configurations_are_refused(arguments, problem):
    with pytest.raises(ValueError, match=problem):
        QuantConfig(**arguments)


@pytest.mark.parametrize("config, bits", [
    (QuantConfig(4, 8), 4), (QuantConfig(4, 3), 3), (QuantConfig(8, 8, layer_bits={"a": 5, "b": 3}), 3),
    (QuantConfig(2, 4, layer_bits={"a": 8}), 2), (QuantConfig(4, 4, edge_bits=8), 4)])
def test_the_narrowest_of_all_widths(config, bits):
    assert config.narrowest == bits


def test_configuration_prints_its_convention():
    assert str(QuantConfig(4, 3)) == "W4A3 deployable"
    assert str(QuantConfig(2, 2, 8, "literature")) == "W2A2 literature, first and last layer 8 bits"


@pytest.mark.parametrize("convention", ["deployable", "literature"])
@pytest.mark.parametrize("kind", LAYER_TYPES)
def test_every_kind_of_layer_computes_with_quantized_weight_and_input(kind, convention):
    """The same result as PyTorch's fake quantization of the weight and of the input, then the float layer."""
    model, shape = layer_and_norm(kind)
    student = calibrated(model, QuantConfig(4, 4, convention=convention), shape)
    (layer,) = quant_layers(student).values()
    x = images(4, shape, seed=5)
    plain = copy.deepcopy(layer.layer)
    axis, weights = scale_axis(plain), layer.weight_quantizer
    assert weights.scale.numel() == plain.weight.shape[axis]
    ends = (-8, 7) if convention == "deployable" else (0, 15)
    plain.weight.copy_(torch.fake_quantize_per_channel_affine(
        plain.weight, weights.scale.flatten(), weights.zero_point.flatten().to(torch.int32), axis, *ends))
    inputs = layer.input_quantizer
    grid = torch.fake_quantize_per_tensor_affine(x, inputs.scale.item(), int(inputs.zero_point), 0, 255)
    torch.testing.assert_close(layer(x), plain(grid), rtol=1e-5, atol=1e-5)
    for channel in plain.weight.transpose(0, axis):
        assert len(channel.unique()) <= 16


@pytest.mark.parametrize("kind", sorted(LAYER_TYPES.keys() - {"grouped transposed"}))  # that one has none
def test_output_channels_of_very_different_size_have_scales_of_their_own(kind):
    (layer, norm, _), shape = layer_and_norm(kind)
    norm.weight, norm.bias = (nn.Parameter(values, False) for values in (torch.logspace(-3, 0, 4), torch.zeros(4)))
    norm.running_mean.zero_()
    model, x = nn.Sequential(layer, norm), images(8, shape)
    layer.bias = None
    student = calibrated(model, QuantConfig(8, 8), shape)
    with torch.no_grad(), quantization_off(student, weights=False):
        wrong, size = ((student(x) - model(x)).transpose(0, 1).flatten(1).norm(dim=1),
                       model(x).transpose(0, 1).flatten(1).norm(dim=1))
    assert (wrong < 0.02 * size).all()


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_functional_relu_is_quantized_before_the_next_convolution(bits):
    student = calibrated(awaken(Residual()), QuantConfig(8, bits))
    for name in ("conv_a", "conv_b", "fc"):
        (x,) = seen_by(quant_layers(student)[name], student, images(32))
        assert 1 < len(x.unique()) <= 2**bits, name
        assert x.min() >= 0 or name == "fc"


def test_inputs_that_are_never_negative_use_an_unsigned_grid():
    layers = quant_layers(calibrated(awaken(Residual())))
    assert layers["conv_a"].input_quantizer.zero_point == 0
    assert layers["stem"].input_quantizer.zero_point > 0


def test_a_convolution_called_twice_has_a_range_for_each_call():
    student = calibrated(awaken(SharedConv()))
    layer = quant_layers(student)["shared"]
    first, second = layer.input_quantizers
    inputs = seen_by(layer, student, images(16))  # the images that the ranges were taken from
    for quantizer, x in zip((first, second), inputs, strict=True):
        torch.testing.assert_close(quantizer(x), x)  # on the grid of its own quantizer
        assert 0.8 < x.max() / (quantizer.scale * 15) < 1.001, "uses all of its own range"
        assert 8 < len(x.unique()) <= 16
    assert second.scale > 20 * first.scale


def test_a_relu_used_twice_leaves_each_convolution_its_own_range():
    layers = quant_layers(calibrated(awaken(SharedReLU())))
    assert layers["conv3"].input_quantizer.scale > 20 * layers["conv2"].input_quantizer.scale


def test_call_sites_are_counted_anew_after_a_failed_pass():
    student = calibrated(awaken(SharedConv()))
    x = images(4)
    expected = student(x)
    handle = quant_layers(student)["shared"].layer.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        student(x)
    handle.remove()
    assert torch.equal(student(x), expected)
    assert torch.equal(copy.deepcopy(student)(x), expected)


def test_a_quantized_layer_stands_in_for_its_layer():
    model, x = awaken(Asking()), images(4)
    student = calibrated(model, QuantConfig(3, 8))
    layer = student.conv2
    assert layer.kernel_size == (3, 3) and layer.out_channels == 6 and layer.bias is layer.layer.bias
    assert torch.equal(layer.weight, layer.weight_quantizer(layer.layer.weight)) and len(layer.weight[0].unique()) <= 8
    assert set(layer.state_dict()) == {"layer.weight", "layer.bias", "weight_quantizer.scale", "weight_quantizer.zero_point",
                                       "input_quantizers.0.scale", "input_quantizers.0.zero_point"}
    with pytest.raises(AttributeError, match="'Conv2d' object has no attribute 'running_mean'"):
        layer.running_mean
    for again in (copy.deepcopy(student), pickle.loads(pickle.dumps(student))):
        assert torch.equal(again(x), student(x)) and again.conv2 is not layer and isinstance(again.conv2, QuantLayer)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # what torch itself does
@pytest.mark.parametrize("network", [Residual, SharedConv])
def test_a_student_is_compiled_once(network):
    student, x = calibrated(awaken(network())), images(4)
    graphs = []

    def count(graph, _examples):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(student, backend=count)
    for _ in range(4):
        assert torch.equal(compiled(x), student(x))
    assert len(graphs) == 1


@pytest.mark.parametrize("edge_bits, weights, inputs", [(None, [3, 3, 3, 3], [8, 4, 4, 4]),
                                                        (8, [8, 3, 3, 8], [8, 4, 4, 8])])
def test_edge_bits_reach_the_first_and_last_layer_only(edge_bits, weights, inputs):
    layers = quant_layers(convert(awaken(Residual()), QuantConfig(3, 4, edge_bits), IMAGE)[1])
    by_flow = [layers[name] for name in ("stem", "conv_a", "conv_b", "fc")]
    assert [layer.weight_quantizer.bits for layer in by_flow] == weights
    assert [layer.input_quantizer.bits for layer in by_flow] == inputs  # the image itself always has 8


def test_only_the_call_that_reads_the_image_gets_the_images_bits():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(F.relu(self.conv(x)))

    layers = quant_layers(convert(Twice(), W4A4, IMAGE)[1])
    assert [q.bits for q in layers["conv"].input_quantizers] == [8, 4]


def test_conventions():
    _, deployable = convert(awaken(Residual()), W4A4, IMAGE)
    assert not any(isinstance(m, BATCH_NORMS) for m in deployable.modules())
    assert all(layer.weight_quantizer.symmetric for layer in quant_layers(deployable).values())
    _, literature = convert(awaken(Residual()), QuantConfig(4, 4, convention="literature"), IMAGE)
    assert sum(isinstance(m, BATCH_NORMS) and not m.training for m in literature.modules()) == 3
    assert not any(layer.weight_quantizer.symmetric for layer in quant_layers(literature).values())
    assert not any(layer.input_quantizer.symmetric for layer in quant_layers(literature).values())


@pytest.mark.parametrize("network", [Residual, Mobile, SharedConv, SharedReLU])
@pytest.mark.parametrize("convention", ["deployable", "literature"])
def test_with_quantization_off_the_student_is_the_model(network, convention):
    model = awaken(network())
    teacher, student = convert(model, QuantConfig(2, 2, convention=convention), IMAGE)
    x = images(4)
    with quantization_off(student):
        torch.testing.assert_close(student(x), model(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(teacher(x), model(x), rtol=1e-4, atol=1e-4)
    assert all(q.enabled for layer in quant_layers(student).values() for q in layer.input_quantizers)


def test_quantization_off_restores_after_an_error_and_by_kind():
    student = calibrated(awaken(Residual()))
    layer = quant_layers(student)["conv_a"]
    with pytest.raises(ZeroDivisionError), quantization_off(student, weights=False):
        assert layer.weight_quantizer.enabled and not layer.input_quantizer.enabled
        1 / 0
    assert layer.input_quantizer.enabled


@pytest.mark.parametrize("convention", ["deployable", "literature"])
def test_converting_leaves_the_input_untouched(convention):
    model = awaken(Residual()).train()
    model.fc.eval()
    model.stem.weight.requires_grad_(False)
    before = snapshot(model)
    teacher, student = convert(model, QuantConfig(convention=convention), IMAGE)
    for parameter in [*teacher.parameters(), *student.parameters()]:
        parameter.data.fill_(7)
    assert same_state(before, model.state_dict())
    assert model.training and not model.fc.training
    assert [p.requires_grad for n, p in model.named_parameters() if n == "stem.weight"] == [False]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_quantized_as_floats(dtype):
    model = awaken(Residual()).to(dtype)
    student = calibrated(model)
    assert {p.dtype for p in student.parameters()} == {torch.float32}
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert torch.isfinite(student(images(2))).all()


def test_two_and_three_dimensional_layers_in_one_model():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.flat, self.deep = nn.Conv2d(3, 4, 3, padding=1), nn.Conv3d(1, 2, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.deep(self.flat(x).unsqueeze(1))

    assert torch.isfinite(calibrated(awaken(Mixed()))(images(2))).all()


def test_a_bare_layer_becomes_a_quantized_layer():
    student = calibrated(awaken(nn.Conv2d(3, 4, 3)))
    assert isinstance(student, QuantLayer) and student(images(2)).shape == (2, 4, 6, 6)


class Holder(nn.Module):
    def __init__(self, **modules: nn.Module):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        for name, module in modules.items():
            setattr(self, name, module)


@pytest.mark.parametrize("layer", [nn.LSTM(4, 4), nn.GRUCell(4, 4), nn.MultiheadAttention(4, 1), nn.Embedding(3, 4),
                                   nn.Bilinear(2, 2, 2), nn.TransformerEncoderLayer(4, 1)],
                         ids=lambda layer: type(layer).__name__)
def test_unsupported_layers_are_named(layer):
    with pytest.raises(ValueError, match=r"layer 'inner.*' \(.*\) is not supported.*replace or remove"):
        check_model(Holder(inner=layer))


def test_an_already_quantized_model_is_refused():
    student = calibrated(awaken(Residual()))
    with pytest.raises(ValueError, match="layer 'fc' is already quantized: pass the full-precision model"):
        check_model(student)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("where, own", [("conv_a", "weight"), ("fc", "bias"), ("bn_b", "running_var"),
                                        ("bn_a", "weight")])
def test_nan_and_infinity_are_named(where, own, value):
    model = awaken(Residual())
    getattr(model.get_submodule(where), own).data[0] = value
    with pytest.raises(ValueError, match=f"layer '{where}' has NaN or infinity in its {own}: load a sound checkpoint"):
        check_model(model)


@pytest.mark.parametrize("model, problem", [
    (nn.Sequential(nn.ReLU()), "no convolution and no linear layer"),
    ("resnet20", "expected a torch.nn.Module, got str"),
    (nn.Sequential(nn.ReLU(), weight_norm(nn.Linear(2, 2))), "layer '1' computes its weight from others"),
])
def test_other_things_that_cannot_be_quantized(model, problem):
    with pytest.raises(ValueError, match=problem):
        check_model(model)


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_a_layer_without_weights_yet_is_named():
    with pytest.raises(ValueError, match="layer '1' has no weights yet: run the model once before quantizing it"):
        check_model(nn.Sequential(nn.ReLU(), nn.LazyConv2d(4, 1)))


def test_layers_that_the_image_does_not_reach_stay_floats_and_are_named():
    class Partly(Holder):
        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) + self.constant(self.places)[..., None, None]

    model = awaken(Partly(never=nn.Conv2d(3, 3, 1), constant=nn.Linear(2, 4), places=nn.Parameter(torch.ones(1, 2))))
    _, student = convert(model, W4A4, IMAGE)
    assert list(quant_layers(student)) == ["conv"] and float_layers(student) == ["never", "constant"]
    assert float_layers(convert(awaken(Residual()), W4A4, IMAGE)[1]) == []


def test_a_graph_of_another_model_is_refused():
    model, other = awaken(Residual()), awaken(Residual())
    with pytest.raises(ValueError, match="the graph is of another model.*trace this one"):
        quantize_model(model, QuantConfig(4, 4), trace(other, IMAGE))


def test_quantizers_are_of_the_type_of_their_layers():
    """As a packed file is loaded into them, wherever the network is and whatever the default type."""
    model = awaken(Residual()).double().requires_grad_(False)
    student = quantize_model(model, W4A4, trace(model, IMAGE))
    assert {value.dtype for name, value in student.state_dict().items() if "quantizer" in name} == {torch.float64}


class Centred(Residual):
    """Normalises the very images that it is given; `change` is how."""

    def __init__(self, change):
        super().__init__()
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        self.change(x)
        return super().forward(x)


@pytest.mark.parametrize("convention", ["deployable", "literature"])
@pytest.mark.parametrize("change", [lambda x: x.sub_(0.5).mul_(2.0), lambda x: x.flatten(1).mul_(2.0),
                                    nn.Hardtanh(-1, 1, inplace=True)], ids=["itself", "a view", "a module"])
def test_images_that_a_model_overwrites_are_the_same_for_teacher_student_and_caller(change, convention):
    model, x = awaken(Centred(change)), images(4)
    expected = model(x.clone())
    teacher, student = convert(model, QuantConfig(convention=convention), IMAGE)
    with quantization_off(student):
        for _ in range(2):
            for network in (teacher, student):
                torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(x, images(4))
    kept = quantize(model, QuantConfig(4, 4, convention=convention), "real-ranges", image_shape=IMAGE, images=x).model
    kept(x)
    assert torch.equal(x, images(4))


def test_images_that_a_model_leaves_alone_are_not_copied():
    with torch.inference_mode():
        networks = convert(awaken(Residual()), W4A4, IMAGE)
    assert not any(network._forward_pre_hooks for network in networks)


@pytest.mark.parametrize("recipe", ["rtn-bn", "distilled"])
def test_a_model_made_in_inference_mode(recipe):
    with torch.inference_mode():
        model = awaken(Residual())
    assert quantize(model, W4A4, recipe, image_shape=IMAGE, budget=TINY).model(images(2)).isfinite().all()


def test_a_model_that_keeps_tensors_of_an_earlier_pass_can_be_copied():
    model = awaken(Residual())
    model.last, model.cache = [model(images(2))], {"weight": model.fc.weight * 2}
    copied = float_copy(model)
    assert torch.equal(copied.last[0], model.last[0]) and copied.last[0] is not model.last[0]
    torch.testing.assert_close(copied(images(2)), model.eval()(images(2)))


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_scripted_model_is_named():
    scripted = torch.jit.trace(awaken(Residual()), images(2))
    with pytest.raises(ValueError, match="TorchScript module, whose layers cannot be replaced: pass the nn.Module"):
        check_model(scripted)

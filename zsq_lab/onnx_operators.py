"""How each ATen operation of a program is written in ONNX: a table, name -> function of (writer, step).

Here is what computes; what only moves numbers is in `onnx_shaping`. Arguments stand in the order of ATen's schema. An
operation that is in neither is refused by its name.
"""
import numpy as np
from torch import Tensor

from . import onnx_shaping
from .onnx_shaping import shape_of
from .program import Step, Value

SIMPLE = {"sigmoid": "Sigmoid", "tanh": "Tanh", "exp": "Exp", "log": "Log", "sqrt": "Sqrt", "neg": "Neg", "abs": "Abs",
          "hardswish": "HardSwish", "erf": "Erf", "sin": "Sin", "cos": "Cos"}
ARITHMETIC = {"add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "matmul": "MatMul", "mm": "MatMul",
              "bmm": "MatMul"}


def write(writer, step: Step) -> None:
    """Write one step. Raises ValueError for an operation that is not in the table, or with arguments that ONNX lacks."""
    if step.name in SIMPLE:
        writer.result(writer.node(SIMPLE[step.name], [writer.float_of(step.args[0])]))
    elif step.name in ARITHMETIC:
        _arithmetic(writer, step)
    elif step.name in OPERATORS:
        OPERATORS[step.name](writer, step)
    else:
        raise _refused(step, f"only these operations are: {', '.join(sorted({*SIMPLE, *ARITHMETIC, *OPERATORS}))}")


def _refused(step: Step, why: str) -> ValueError:
    return ValueError(f"the operation {step.name} cannot be exported: {why}")


def _arithmetic(writer, step: Step) -> None:
    if step.options.get("alpha", 1) != 1:
        raise _refused(step, "alpha is not 1; multiply in an operation of its own")
    if step.options.get("rounding_mode"):
        raise _refused(step, "ONNX's division has no rounding_mode")
    writer.result(writer.node(ARITHMETIC[step.name], [writer.float_of(a) for a in step.args[:2]]))


def _convolution(writer, step: Step) -> None:
    x, weight, bias, stride, padding, dilation, transposed, output_padding, groups = step.args
    attributes = {"strides": stride, "pads": [*padding, *padding], "dilations": dilation, "group": groups}
    if transposed:
        axis = writer.grid[weight].axis if isinstance(weight, Value) else 1
        own_bias = [] if bias is None else [writer.float_of(bias)]
        writer.result(writer.node("ConvTranspose", [writer.float_of(x), writer.layer_weight(weight, axis), *own_bias],
                                  output_padding=output_padding, **attributes))
        return
    writer.result(writer.node("Conv", [writer.float_of(x), writer.layer_weight(weight, 0), *writer.layer_bias(step)],
                              **attributes))


def _linear(writer, step: Step) -> None:
    if any(step.options.get(factor, 1) != 1 for factor in ("alpha", "beta")):
        raise _refused(step, "alpha or beta is not 1; multiply in an operation of its own")
    bias, x, weight = step.args[:3]
    transpose = isinstance(weight, Value) and writer.program.steps[weight.step].name == "t"
    if transpose:  # stored as PyTorch has it, [out, in]
        weight = writer.program.steps[weight.step].args[0]
    name = writer.layer_weight(weight, 0 if transpose else 1)
    writer.result(writer.node("Gemm", [writer.float_of(x), name, *writer.layer_bias(step)], transB=int(transpose)))


def _transposed_weight(writer, step: Step) -> None:
    if step.args[0] not in writer.integers:
        writer.result(writer.node("Transpose", [writer.float_of(step.args[0])], perm=[1, 0]))


def _clamp(low, high):
    """Bounds as ONNX's Clip wants them; on integers the bounds' own integers, and nothing where the grid ends anyway."""
    def on_integers(writer, name, quantizer):
        ends = [int(quantizer.integers(_tensor(b, quantizer))) if b is not None else None for b in (low, high)]
        bottom = quantizer.quant_min if ends[0] is None else ends[0]
        top = quantizer.quant_max if ends[1] is None else ends[1]
        if (bottom, top) == (quantizer.quant_min, quantizer.quant_max):
            return name
        return writer.node("Clip", [name, writer.constant(bottom, np.uint8), writer.constant(top, np.uint8)])

    def on_floats(writer, name):
        ends = ["" if b is None else writer.constant(b, np.float32) for b in (low, high)]
        return writer.node("Clip", [name, *ends])
    return on_integers, on_floats


def _tensor(bound, quantizer):
    import torch
    return torch.as_tensor(bound, dtype=torch.float32, device=quantizer.scale.device)


def _bounded(low, high, writer, step: Step) -> None:
    if any(isinstance(b, Value) or isinstance(b, Tensor) and b.numel() > 1 for b in (low, high)):
        raise _refused(step, "its bounds are no single numbers; use torch.minimum and torch.maximum")
    low, high = (b if b is None else float(b) for b in (low, high))
    on_integers, on_floats = _clamp(low, high)
    plain_relu = (low, high) == (0, None)
    writer.same_grid(step, lambda name, q: on_integers(writer, name, q),
                     lambda name: writer.node("Relu", [name]) if plain_relu else on_floats(writer, name))


def _extreme(kind: str):
    def write(writer, step: Step) -> None:
        first, other = step.args[:2]

        def on_integers(name, quantizer):
            return writer.node(kind, [name, writer.constant(quantizer.integers(other), np.uint8)])
        if isinstance(other, Tensor):
            writer.same_grid(step, on_integers,
                             lambda name: writer.node(kind, [name, writer.constant(other, np.float32)]))
        else:
            writer.result(writer.node(kind, [writer.float_of(first), writer.float_of(other)]))
    return write


def _overhangs(writer, step: Step, reach, stride, padding) -> bool:
    """Whether `ceil_mode` adds windows; one that would begin beyond the image PyTorch leaves out, and ONNX counts it."""
    sides = zip(shape_of(writer, step.args[0])[2:], reach, stride, padding, strict=True)
    return tuple((n + 2 * p - r) // s + 1 for n, r, s, p in sides) != tuple(step.shape[2:])


def _max_pool(writer, step: Step) -> None:
    _, kernel, stride, padding, dilation, ceil = step.args
    padding, dilation = (list(sides) * (len(kernel) // len(sides)) for sides in (padding, dilation))
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    attributes = {"kernel_shape": kernel, "strides": stride or kernel, "pads": [*padding, *padding], "dilations": dilation,
                  "ceil_mode": int(ceil and _overhangs(writer, step, reach, stride or kernel, padding))}
    writer.same_grid(step, lambda name, _: writer.node("MaxPool", [name], **attributes),
                     lambda name: writer.node("MaxPool", [name], **attributes))


def _average_pool(writer, step: Step) -> None:
    x, kernel, stride, padding, ceil, include, divisor = step.args
    if divisor is not None:
        raise _refused(step, "ONNX's average has no divisor of its own")
    ceil = ceil and _overhangs(writer, step, kernel, stride or kernel, padding)
    if ceil and include and any(padding):
        raise _refused(step, "runtimes disagree about windows that hang over a border which counts; leave out ceil_mode or "
                             "count_include_pad")
    writer.result(writer.node("AveragePool", [writer.float_of(x)], kernel_shape=kernel, strides=stride or kernel,
                              pads=[*padding, *padding], ceil_mode=int(ceil), count_include_pad=int(include and not ceil)))


def _adaptive_pool(writer, step: Step) -> None:
    x, size = step.args[:2]
    before = shape_of(writer, x)[2:]
    if any(b % s for b, s in zip(before, size, strict=True)):
        raise _refused(step, f"{before} positions are no multiple of {size}")
    kernel = [b // s for b, s in zip(before, size, strict=True)]
    kind = {"kernel_shape": kernel, "strides": kernel} if max(size) > 1 else {}
    writer.result(writer.node("AveragePool" if kind else "GlobalAveragePool", [writer.float_of(x)], **kind))


def _mean(writer, step: Step) -> None:
    x, axes, keep = (*step.args, None, False)[:3]  # without axes: the mean of everything
    rank = len(shape_of(writer, x))
    axes = sorted(a % rank for a in axes) if axes else list(range(rank))
    if axes == list(range(2, rank)) and rank > 2:  # the one that runtimes have an integer kernel for
        name = writer.node("GlobalAveragePool", [writer.float_of(x)])
        writer.result(name if keep else writer.node("Flatten", [name], axis=1))
    elif writer.opset < 18:
        writer.result(writer.node("ReduceMean", [writer.float_of(x)], axes=axes, keepdims=int(keep)))
    else:
        writer.result(writer.node("ReduceMean", [writer.float_of(x), writer.constant(axes, np.int64)],
                                  keepdims=int(keep)))


def _batch_norm(writer, step: Step) -> None:
    x, weight, bias, mean, variance = step.args[:5]
    if mean is None or any(flag is True for flag in step.args[5:]):
        raise _refused(step, "it normalises by the batch's own statistics; track_running_stats keeps them")
    eps = next(a for a in reversed(step.args) if isinstance(a, float))
    weight = np.ones(len(mean), np.float32) if weight is None else weight
    bias = np.zeros(len(mean), np.float32) if bias is None else bias
    constants = [writer.constant(values, np.float32) for values in (weight, bias, mean, variance)]
    writer.result(writer.node("BatchNormalization", [writer.float_of(x), *constants], epsilon=eps))


def _silu(writer, step: Step) -> None:
    name = writer.float_of(step.args[0])
    writer.result(writer.node("Mul", [name, writer.node("Sigmoid", [name])]))


def _hard_sigmoid(writer, step: Step) -> None:
    writer.result(writer.node("HardSigmoid", [writer.float_of(step.args[0])], alpha=1 / 6, beta=0.5))


def _leaky(writer, step: Step) -> None:
    writer.result(writer.node("LeakyRelu", [writer.float_of(step.args[0])], alpha=step.args[1]))


def _softmax(writer, step: Step) -> None:
    writer.result(writer.node("Softmax", [writer.float_of(step.args[0])], axis=step.args[1]))


OPERATORS = onnx_shaping.OPERATORS | {
    "convolution": _convolution, "addmm": _linear, "t": _transposed_weight,
    "relu": lambda w, s: _bounded(0, None, w, s),
    "hardtanh": lambda w, s: _bounded(s.args[1], s.args[2], w, s),
    "clamp": lambda w, s: _bounded(s.args[1], s.args[2], w, s),
    "clamp_min": lambda w, s: _bounded(s.args[1], None, w, s),
    "clamp_max": lambda w, s: _bounded(None, s.args[1], w, s),
    "minimum": _extreme("Min"), "maximum": _extreme("Max"),
    "max_pool2d_with_indices": _max_pool, "avg_pool2d": _average_pool, "_adaptive_avg_pool2d": _adaptive_pool,
    "mean": _mean, "native_batch_norm": _batch_norm, "_native_batch_norm_legit_no_training": _batch_norm,
    "silu": _silu, "hardsigmoid": _hard_sigmoid, "leaky_relu": _leaky, "_softmax": _softmax,
}

"""An integer network in NumPy, for reading and for checking: what a QDQ file computes, with nothing but integers inside.

It reads the ONNX file and shares no code with what wrote it. Multiplications and sums are int32; the one place where
real numbers enter is requantization, from the accumulator's grid to the next one:

    q_y = clip(round(acc * M) + z_y, 0, 255),        M = s_x s_w / s_y

With M in float32 that is what ONNX Runtime does, bit for bit. Hardware without floats holds M as an integer and a shift
(Jacob et al. 2018, section 2.2): `fixed_point=True`. The two differ where acc * M lies within about 2**-31 of a tie, by
one step. Sums of two tensors and averages are rounded in float32, by the formula that stands at `_add`. Notebook 09
builds `convolve` and `requantize`.
"""
from dataclasses import dataclass

import numpy as np

SHIFT = 31  # bits of a fixed-point multiplier


@dataclass(frozen=True)
class Grid:
    """Integers and the numbers they stand for: (integers - zero_point) * scale, per channel of `axis` or all alike."""

    integers: np.ndarray
    scale: np.ndarray
    zero_point: np.ndarray
    axis: int = 1


def convolve(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None, *, strides=(1, 1), pads=(0, 0, 0, 0),
             dilations=(1, 1), group: int = 1) -> np.ndarray:
    """int32 sums [N, O, H', W'] of x [N, C, H, W] (int32, zero point subtracted) and weight [O, C / group, kh, kw].

    pads: top, left, bottom, right, as in ONNX. bias: int32 [O], on the grid of the sums.
    """
    n, channels, (out, _, kh, kw) = len(x), x.shape[1], weight.shape
    x = np.pad(x.astype(np.int32), ((0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])))
    reach = [(k - 1) * d + 1 for k, d in zip((kh, kw), dilations, strict=True)]
    windows = np.lib.stride_tricks.sliding_window_view(x, reach, (2, 3))
    windows = windows[:, :, ::strides[0], ::strides[1], ::dilations[0], ::dilations[1]]  # [N, C, H', W', kh, kw]
    height, width = windows.shape[2:4]
    rows = windows.reshape(n, group, channels // group, height, width, kh * kw).transpose(0, 1, 3, 4, 2, 5)
    rows = rows.reshape(n, group, height * width, -1)
    columns = weight.astype(np.int32).reshape(group, out // group, -1)
    total = np.stack([rows[:, g] @ columns[g].T for g in range(group)], 1)  # [N, group, H'W', O / group]
    total = total.transpose(0, 1, 3, 2).reshape(n, out, height, width)
    return total if bias is None else total + bias.astype(np.int32).reshape(1, -1, 1, 1)


def requantize(total: np.ndarray, multiplier: np.ndarray, zero_point: int, *, fixed_point: bool = False) -> np.ndarray:
    """int32 sums [N, O, ...] on the next grid, uint8.

    multiplier: float32 [O] (or [1]), input scale * weight scale / output scale.
    """
    multiplier = multiplier.astype(np.float32).reshape(1, -1, *[1] * (total.ndim - 2))
    if fixed_point:
        mantissa, exponent = np.frexp(multiplier.astype(np.float64))
        whole = np.rint(mantissa * 2.0**SHIFT).astype(np.int64)  # 31 bits
        shift = np.clip(SHIFT - exponent, 1, 62).astype(np.int64)
        rounded = (total.astype(np.int64) * whole + (np.int64(1) << (shift - 1))) >> shift
    else:
        rounded = np.rint(total.astype(np.float32) * multiplier)  # ties to even, as processors do
    return np.clip(rounded + zero_point, 0, 255).astype(np.uint8)


def run(model, images: np.ndarray, *, fixed_point: bool = False, keep: dict | None = None) -> np.ndarray:
    """The (first) output of a QDQ model (a ModelProto) for images [N, ...] float32, layers in integers.

    keep: a dictionary that gets every intermediate result by its name, integers as they are.
    Raises ValueError for an operator that this reader does not know.
    """
    from onnx import helper, numpy_helper
    results = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    results[model.graph.input[0].name] = images.astype(np.float32)
    grids: dict[str, Grid] = {}  # what a DequantizeLinear gives is kept as integers: nobody needs the floats yet
    pending: dict[str, tuple] = {}  # layers that wait for their quantizer: accumulator and its scale
    sums: dict[str, tuple] = {}  # the same for sums of two tensors: their grids

    def real(name: str) -> np.ndarray:
        if name in grids:
            g = grids[name]
            shape = [-1 if a == g.axis and g.scale.size > 1 else 1 for a in range(g.integers.ndim)]
            return (g.integers.astype(np.int32) - g.zero_point.astype(np.int32).reshape(shape if g.scale.size > 1 else ())) \
                .astype(np.float32) * g.scale.reshape(shape)
        if name in pending:
            total, scale = pending[name]
            return total.astype(np.float32) * scale.reshape(1, -1, *[1] * (total.ndim - 2))
        return results[name]

    for node in model.graph.node:
        names, out = list(node.input), node.output[0]
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "DequantizeLinear":
            scale = results[names[1]]
            zero = results[names[2]] if len(names) > 2 else np.zeros_like(scale, np.int32)
            grids[out] = Grid(results[names[0]], scale, zero, attributes.get("axis", 1))
        elif node.op_type == "QuantizeLinear":
            scale, zero = results[names[1]], results[names[2]]
            if names[0] in pending:
                total, before = pending[names[0]]
                results[out] = requantize(total, before / scale, int(zero), fixed_point=fixed_point)
            elif names[0] in sums:
                results[out] = _add(*sums[names[0]], scale, zero)
            else:
                rounded = np.rint(real(names[0]) / scale) + zero.astype(np.float32)
                results[out] = np.clip(rounded, 0, 255).astype(np.uint8)
        elif node.op_type in ("Conv", "Gemm") and all(name in grids for name in names[:2]):
            pending[out] = _layer(node.op_type, [grids[name] for name in names], attributes)
        elif node.op_type == "Add" and all(name in grids for name in names):
            sums[out] = grids[names[0]], grids[names[1]]
            results[out] = real(names[0]) + real(names[1])
        elif node.op_type in OPERATORS:
            results[out] = OPERATORS[node.op_type]([real(name) if name else None for name in names], attributes)
        else:
            raise ValueError(f"the integer reference does not know the operator {node.op_type}: compare with "
                             "ONNX Runtime alone")
    if keep is not None:
        keep |= results
    return real(model.graph.output[0].name)


def _layer(kind: str, parts: list[Grid], attributes: dict) -> tuple[np.ndarray, np.ndarray]:
    """(int32 sums, their scale for each output channel)."""
    x, weight, *bias = parts
    bias = bias[0].integers if bias else None
    shifted = x.integers.astype(np.int32) - np.int32(x.zero_point)
    scale = (x.scale * weight.scale).astype(np.float32).reshape(-1)
    if kind == "Conv":
        return convolve(shifted, weight.integers, bias,
                        **{k: attributes[k] for k in ("strides", "pads", "dilations", "group")}), scale
    columns = weight.integers.T if attributes.get("transB") else weight.integers
    total = shifted @ columns.astype(np.int32)
    return (total if bias is None else total + bias), scale


def _add(a: Grid, b: Grid, scale: np.ndarray, zero_point: np.ndarray) -> np.ndarray:
    """round(b s_b / s + (a s_a / s + fixed)), fixed = z - (z_a s_a / s + z_b s_b / s): uint8 on the grid of the sum.

    Each product is added before it is rounded (a fused multiply-add), which double precision reproduces.
    """
    ratio_a, ratio_b = np.float32(a.scale / scale), np.float32(b.scale / scale)
    fixed = np.float32(zero_point) - (ratio_a * np.float32(a.zero_point) + ratio_b * np.float32(b.zero_point))
    part = (a.integers * np.float64(ratio_a) + np.float64(fixed)).astype(np.float32)
    total = (b.integers * np.float64(ratio_b) + part).astype(np.float32)
    return np.clip(np.rint(total), 0, 255).astype(np.uint8)


def _slice(inputs: list, _attributes: dict) -> np.ndarray:
    x, starts, ends, axes, steps = inputs
    where = [slice(None)] * x.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        where[axis] = slice(int(start), int(min(end, x.shape[axis])), int(step))
    return x[tuple(where)]


def _pad(inputs: list, _attributes: dict) -> np.ndarray:
    x, amounts, fill = inputs
    return np.pad(x, amounts.reshape(2, -1).T, constant_values=fill)


# Operators on whole tensors: float32, or integers that are only moved and compared.
OPERATORS = {
    "Add": lambda i, a: i[0] + i[1],
    "Relu": lambda i, a: np.maximum(i[0], 0),
    "Clip": lambda i, a: np.clip(i[0], i[1], i[2]),
    "Min": lambda i, a: np.minimum(i[0], i[1]),
    "GlobalAveragePool": lambda i, a: i[0].mean((2, 3), dtype=np.float32, keepdims=True),
    "Reshape": lambda i, a: i[0].reshape([len(i[0]) if k == 0 and s == -1 else s for k, s in enumerate(i[1])]),
    "Flatten": lambda i, a: i[0].reshape(len(i[0]), -1),
    "Slice": _slice, "Pad": _pad,
    "Cast": lambda i, a: i[0].astype(np.int8),
    "Identity": lambda i, a: i[0],
}

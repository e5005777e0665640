"""How the operations that only move numbers are written in ONNX: parts, shapes, orders, borders, joins, enlargements.

They work on integers as on floats, so most of them stay on the grid that their input is on (`writer.same_grid`).
"""
import numpy as np
import torch

from .program import Step, Value

END = 2**63 - 1  # "to the end" in ONNX's Slice


def shape_of(writer, value: Value) -> tuple[int, ...]:
    """The shape of a result, the batch as -1."""
    if value.step < 0:
        return (-1, *writer.program.image_shape)
    step = writer.program.steps[value.step]
    shape = list(step.shape)
    if value.part:  # the step's own is that of the first part
        shape[step.args[2]] = _part_sizes(writer, step)[value.part]
    return tuple(shape)


def _slice(writer, step: Step) -> None:
    _, axis, start, end, stride = step.args
    ends = [writer.constant([v], np.int64) for v in (start or 0, END if end is None else end, axis, stride)]
    writer.same_grid(step, lambda name, _: writer.node("Slice", [name, *ends]),
                     lambda name: writer.node("Slice", [name, *ends]))


def _select(writer, step: Step) -> None:
    _, axis, index = step.args
    place = writer.constant(index, np.int64)
    writer.same_grid(step, lambda name, _: writer.node("Gather", [name, place], axis=axis),
                     lambda name: writer.node("Gather", [name, place], axis=axis))


def _reshape(writer, step: Step) -> None:
    shape = writer.constant(step.shape, np.int64)
    writer.same_grid(step, lambda name, _: writer.node("Reshape", [name, shape]),
                     lambda name: writer.node("Reshape", [name, shape]))


def _permute(writer, step: Step) -> None:
    rank = len(shape_of(writer, step.args[0]))
    if step.name == "transpose":
        order = list(range(rank))
        a, b = (d % rank for d in step.args[1:3])
        order[a], order[b] = order[b], order[a]
    else:
        order = [d % rank for d in step.args[1]]
    writer.same_grid(step, lambda name, _: writer.node("Transpose", [name], perm=order),
                     lambda name: writer.node("Transpose", [name], perm=order))


def _pad(writer, step: Step) -> None:
    amounts, value = step.args[1], step.args[2] if step.name == "constant_pad_nd" else 0
    rank, pairs = len(shape_of(writer, step.args[0])), len(amounts) // 2
    pads = np.zeros((2, rank), np.int64)
    for i in range(pairs):  # PyTorch begins with the last dimension
        pads[:, rank - 1 - i] = amounts[2 * i:2 * i + 2]
    where, mode = writer.constant(pads.reshape(-1)), "reflect" if step.name == "reflection_pad2d" else "constant"
    fill = [] if mode == "reflect" else [writer.constant(value, np.float32)]

    def on_integers(name: str, quantizer) -> str:
        zero = [writer.grid_constants(quantizer)[1]] if fill else []
        return writer.node("Pad", [name, where, *zero], mode=mode)
    writer.same_grid(step, on_integers, lambda name: writer.node("Pad", [name, where, *fill], mode=mode))


def _concatenate(writer, step: Step) -> None:
    writer.result(writer.node("Concat", [writer.float_of(a) for a in step.args[0]], axis=step.args[1]))


def _part_sizes(writer, step: Step) -> list[int]:
    x, sizes, axis = step.args
    whole = shape_of(writer, x)[axis]
    return [min(sizes, whole - start) for start in range(0, whole, sizes)] if isinstance(sizes, int) else sizes


def _split(writer, step: Step) -> None:
    (x, _, axis), sizes = step.args, _part_sizes(writer, step)
    names = writer.node("Split", [writer.float_of(x), writer.constant(sizes, np.int64)], outputs=len(sizes), axis=axis)
    for part, name in enumerate(names if len(sizes) > 1 else [names]):
        writer.result(name, part)


def _upsample(writer, step: Step) -> None:
    """The output's size follows from the recorded one: the image's size is fixed, the batch is not.

    Where the model names a factor, PyTorch samples with that, whatever size it comes to, but copies a side that stays.
    """
    bilinear = "bilinear" in step.name
    align = bool(step.args[2]) if bilinear else False
    before, after = shape_of(writer, step.args[0])[2:], step.shape[2:]
    own = [a / b if align or a == b or not named else named
           for named, a, b in zip(step.args[-2:], after, before, strict=True)]
    if not bilinear and any(a % b or a != b * factor for factor, a, b in zip(own, after, before, strict=True)):
        _pick(writer, step, *before)
        return
    factors = writer.constant([1, 1, *map(_factor, own, before, after)], np.float32)
    how = {"mode": "linear" if bilinear else "nearest",
           "coordinate_transformation_mode": "align_corners" if align else "half_pixel" if bilinear else "asymmetric"}
    how |= {} if bilinear else {"nearest_mode": "floor"}
    writer.same_grid(step, lambda name, _: writer.node("Resize", [name, "", factors], **how),
                     lambda name: writer.node("Resize", [name, "", factors], **how))


def _factor(own: float, before: int, after: int) -> np.float32:
    """The factor in 32 bits, moved where before * factor would miss the size: its fraction is cut off."""
    factor = np.float32(own)
    if factor * np.float32(before) >= after + 1:
        return np.nextafter(factor, np.float32(0))
    return factor if float(factor) * before >= after else np.nextafter(factor, np.float32(np.inf))


def _pick(writer, step: Step, height: int, width: int) -> None:
    """Nearest neighbours by their numbers, as PyTorch has them: with a broken factor runtimes round to others now and then."""
    rows, columns = (step.function(x.expand(1, 1, height, width), *step.args[1:], **step.options)[0, 0] for x in (
        torch.arange(height, dtype=torch.float32).view(-1, 1), torch.arange(width, dtype=torch.float32)))

    def pick(name: str) -> str:
        for axis, numbers in ((2, rows[:, 0]), (3, columns[0])):
            name = writer.node("Gather", [name, writer.constant(numbers, np.int64)], axis=axis)
        return name
    writer.same_grid(step, lambda name, _: pick(name), pick)


OPERATORS = {
    "slice": _slice, "select": _select, "view": _reshape, "_unsafe_view": _reshape, "reshape": _reshape,
    "_reshape_alias": _reshape, "squeeze": _reshape, "unsqueeze": _reshape, "permute": _permute, "transpose": _permute,
    "constant_pad_nd": _pad, "reflection_pad2d": _pad, "cat": _concatenate, "split": _split, "split_with_sizes": _split,
    "upsample_nearest2d": _upsample, "upsample_bilinear2d": _upsample,
}

"""From a quantized model to one that integers can compute from end to end.

In the lab every layer quantizes its own input and everything between layers stays in floats. An integer runtime wants
more: it fuses a convolution only if its *output* is quantized too, residual sums and pooling included. So each
quantizer moves from the consumer up to the operation that made the numbers, branches share one, and where there is
none (before a residual sum, for instance) a new one gets its range from images. The result is the simulation of
exactly what the exported file computes. Notebook 09 follows one block.
"""
import copy
from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from .program import INPUT, QUANTIZE, Program, Step, Value, renamed
from .quantizer import Quantizer
from .ranges import SAMPLES, search_ranges
from .recorder import record

NEW_BITS = 8  # of the quantizers that are added, whatever the bits of the others
# Operations that rounding may change places with, as they only compare: f(round(x)) = round(f(x)).
MONOTONE = {"relu", "hardtanh", "clamp", "clamp_min", "clamp_max", "minimum", "maximum", "max_pool2d_with_indices"}
# Operations that only move numbers.
MOVES = {"slice", "select", "view", "_unsafe_view", "reshape", "_reshape_alias", "permute", "transpose", "squeeze",
         "unsqueeze", "constant_pad_nd", "reflection_pad2d", "upsample_nearest2d"}
FUSED = {"convolution", "addmm", "mm", "add"}  # integers in, integers out, if the output is quantized


def moves(step: Step) -> bool:
    """Whether the step only moves the numbers of its first argument (a zero that pads is on every grid)."""
    return step.name in MOVES and not (step.name == "constant_pad_nd" and len(step.args) > 2 and step.args[2] != 0)


def monotone(step: Step) -> bool:
    """Whether the step only compares its first argument with constants, or its elements with each other."""
    return step.name in MONOTONE and len(step.inputs()) == 1


def is_weight(step: Step) -> bool:
    """Whether the step quantizes a constant."""
    return step.name == QUANTIZE and isinstance(step.args[0], Tensor)


@torch.no_grad()
def deploy(student: nn.Module, image_shape: tuple[int, ...], images: Tensor, *, seed: int = 0) -> Program:
    """The program of a quantized model (convention deployable, at most 8 bits), with all quantizers where integers need them.

    images: [N, *image_shape] as the model takes them, synthetic ones for instance; the ranges of the added quantizers
    come from them, all other ranges stay. Biases are rounded to the accumulator's grid. The student is left untouched.
    Raises ValueError for models that no integer runtime takes, saying why.
    """
    if tuple(images.shape[1:]) != tuple(image_shape) or len(images) == 0:
        raise ValueError(f"the calibration images have shape {list(images.shape)}, expected [N, "
                         f"{', '.join(map(str, image_shape))}]")
    program = record(student, image_shape)
    check_deployable(program)
    program, added = _place(_with_own_quantizers(program))
    _fit(program, added, images.split(128), seed)
    return round_constants(program)


def grids(program: Program) -> dict[Value, Quantizer]:
    """For each result whose numbers lie on a quantizer's grid: that quantizer."""
    found: dict[Value, Quantizer] = {}
    for index, step in enumerate(program.steps):
        if step.name == QUANTIZE:
            found[Value(index)] = step.quantizer
        elif (moves(step) or monotone(step) or step.name == "t") and step.args[0] in found:
            found[Value(index)] = found[step.args[0]]
    return found


def check_deployable(program: Program) -> None:
    """Raise ValueError, saying why, for the program of a model that no integer runtime takes."""
    if not any(is_weight(step) for step in program.steps):
        raise ValueError("the model has no quantized layer: quantize it first, or export it in full precision")
    for step in program.steps:
        if step.quantizer is None:
            continue
        if is_weight(step) and not step.quantizer.symmetric:
            raise ValueError("the weights have zero points (convention 'literature'): integer runtimes want convention "
                             "'deployable'")
        if step.quantizer.bits > 8:
            raise ValueError(f"a quantizer has {step.quantizer.bits} bits: integer runtimes take at most 8; wider "
                             "models can be stored packed")


def _with_own_quantizers(program: Program) -> Program:
    own = {id(q): copy.deepcopy(q) for q in program.quantizers}
    steps = [replace(s, quantizer=own[id(s.quantizer)]) if s.quantizer is not None else s for s in program.steps]
    return Program(steps, program.outputs, program.image_shape).eval()


def _place(program: Program) -> tuple[Program, dict[Quantizer, int]]:
    """The program with its quantizers moved to the sources; the added ones, and after which step to look for their range."""
    users = program.users()
    after: dict[Value, Quantizer] = {}
    removed: set[int] = set()
    look_at: dict[Quantizer, Value] = {}
    split = {value.step for value in (*users, *program.outputs) if value.part}  # each part keeps the quantizers behind it
    for source in [INPUT, *(Value(i) for i, step in enumerate(program.steps) if _computes(step) and i not in split)]:
        end = _trunk(program, users, source)
        ends = list(_endpoints(program, users, end))
        readers = [i for i in ends if i is not None and program.steps[i].name == QUANTIZE]
        widest = max(readers, key=lambda i: _width(program.steps[i].quantizer), default=None)
        chosen = None if widest is None else program.steps[widest].quantizer
        if chosen is None or len(readers) < len(ends) and chosen.bits < NEW_BITS:
            # Nobody has a range for this, or only one that is too coarse for the others (a 4-bit shortcut, say).
            fused = source != INPUT and program.steps[source.step].name in FUSED and len(_operands(program, source)) > 1
            if not fused or all(i is None for i in ends):
                continue
            chosen = Quantizer(NEW_BITS, symmetric=False)
            look_at[chosen] = end
        after[source] = chosen
        removed |= {i for i in readers if program.steps[i].quantizer.bits == chosen.bits} if chosen not in look_at else set()
    return _rebuild(program, after, removed, look_at)


def _computes(step: Step) -> bool:
    return step.name not in (QUANTIZE, "t") and not moves(step) and not monotone(step)


def _picks_channels(step: Step) -> bool:
    """Whether the step takes some of the channels, whose range says nothing of the others."""
    return step.name in ("slice", "select") and step.args[1] % (len(step.shape) + (step.name == "select")) == 1


def _operands(program: Program, value: Value) -> list:
    """The tensors that an operation combines: results and constants."""
    return [a for a in program.steps[value.step].args if isinstance(a, Value | Tensor)]


def _trunk(program: Program, users: dict, value: Value) -> Value:
    """The last result made from `value` alone, by moving and comparing, before it branches or is computed with."""
    while len(users.get(value, ())) == 1 and value not in program.outputs:
        step = program.steps[users[value][0]]
        if not (moves(step) or monotone(step)) or step.args[0] != value:
            break
        value = Value(users[value][0])
    return value


def _endpoints(program: Program, users: dict, value: Value) -> Iterator[int | None]:
    """The steps that use `value`, perhaps moved, all its channels; None for the model's output."""
    if value in program.outputs:
        yield None
    for index in users.get(value, ()):
        if moves(program.steps[index]) and not _picks_channels(program.steps[index]):
            yield from _endpoints(program, users, Value(index))
        else:
            yield index


def _width(quantizer: Quantizer) -> tuple[int, float]:
    return quantizer.bits, float(quantizer.scale)


def _rebuild(program: Program, after: dict, removed: set[int], look_at: dict) -> tuple[Program, dict[Quantizer, int]]:
    steps, place = [], {-1: -1}

    def quantize(value: Value, shape: tuple[int, ...]) -> None:
        if value in after:
            steps.append(Step(QUANTIZE, (Value(place[value.step]),), shape, quantizer=after[value]))
            place[value.step] = len(steps) - 1
    quantize(INPUT, (-1, *program.image_shape))
    for index, step in enumerate(program.steps):
        if index in removed:
            place[index] = place[step.args[0].step]
            continue
        steps.append(renamed(step, place))
        place[index] = len(steps) - 1
        quantize(Value(index), step.shape)
    outputs = [Value(place[value.step], value.part) for value in program.outputs]
    return (Program(steps, outputs, program.image_shape).eval(),
            {quantizer: place[value.step] for quantizer, value in look_at.items()})


def _fit(program: Program, added: dict[Quantizer, int], batches: Iterable[Tensor], seed: int) -> None:
    """Ranges of the added quantizers by least squared error, from what reaches them while all others are at work."""
    generator = torch.Generator().manual_seed(seed)
    seen: dict[int, list[Tensor]] = {index: [] for index in added.values()}

    def observe(index: int, result) -> None:
        if index in seen:
            x = result.reshape(-1)
            seen[index].append(x[torch.randint(len(x), (min(SAMPLES, len(x)),), generator=generator).to(x.device)])
    for quantizer in added:
        quantizer.enabled = False
    for batch in batches:
        program(batch, observe)
    for quantizer, index in added.items():
        sample = torch.cat(seen[index])
        if not torch.isfinite(sample).all():
            raise ValueError("the calibration images lead to NaN or infinity: pass sound ones")
        low, high = search_ranges(sample[None], quantizer.bits, symmetric=False)
        quantizer.set_range(low[0], high[0])
        quantizer.enabled = True


def round_constants(program: Program) -> Program:
    """What the integers are compared with or added to, rounded to their grids: bounds of clamps, biases of layers.

    A bias lives on the accumulator's grid, input scale times weight scale. Where that is so fine that 32 bits cannot
    hold it, in a channel that hardly has weights, the weights' scale grows until they can.
    """
    found, steps = grids(program), []
    for step in program.steps:
        if monotone(step) and step.args[0] in found:
            step = replace(step, args=(step.args[0], *(_on_grid(a, found[step.args[0]]) for a in step.args[1:]))
                           if step.name != "max_pool2d_with_indices" else step.args)
        layer = layer_parts(step)
        if layer and layer[0] in found and isinstance(layer[1], Value) and layer[1] in found and layer[2] is not None:
            x, weight, bias, place = layer
            scale, q = found[x].scale.reshape(()), found[weight]
            q.scale = nn.Parameter(torch.maximum(q.scale, (bias.abs() / scale / 2**30).reshape(q.scale.shape)), False)
            step_size = scale * q.scale.reshape(-1)
            rounded = (bias.double() / step_size.double()).round().mul(step_size.double()).float()
            step = replace(step, args=(*step.args[:place], rounded, *step.args[place + 1:]))
        steps.append(step)
    return Program(steps, program.outputs, program.image_shape).eval()


def layer_parts(step: Step) -> tuple | None:
    """(input, weight, bias, place of the bias among the arguments) of a layer with one weight scale per output
    channel."""
    if step.name == "convolution" and not step.args[6]:
        return step.args[0], step.args[1], step.args[2], 2
    if step.name == "addmm":
        return step.args[1], step.args[2], step.args[0], 0
    return None


def _on_grid(bound, quantizer: Quantizer):
    if bound is None or isinstance(bound, bool | Value):
        return bound
    value = torch.as_tensor(bound, dtype=torch.float32, device=quantizer.scale.device)
    snapped = quantizer(value)
    return snapped if isinstance(bound, Tensor) else snapped.item()

"""A forward pass written down as a list of tensor operations that can be run again, changed and translated.

`graph.trace` says which layer feeds which; a file for another runtime needs more, every operation with all its
arguments. `recorder` writes a model's program down. Notebook 09 prints the program of a network.
"""
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from .quantizer import Quantizer

QUANTIZE = "quantize"  # the only operation that is not one of ATen's
SHAPING = {"view", "_unsafe_view", "_reshape_alias", "reshape", "expand"}  # `shape` says what they make


@dataclass(frozen=True)
class Value:
    """The result of a step (`part`: which of several), or the model's input where step is -1."""

    step: int
    part: int = 0


INPUT = Value(-1)


@dataclass(frozen=True)
class Step:
    """One operation: ATen's name without in-place underscore, or QUANTIZE; all arguments in the order of its schema.

    args: nested lists of Values, constant tensors, numbers, None. options: arguments that the schema takes by keyword
    only (`alpha` of a sum). shape: of the (first) result, the batch as -1.
    """

    name: str
    args: tuple
    shape: tuple[int, ...] = ()
    function: Any = None
    quantizer: Quantizer | None = None
    options: dict = field(default_factory=dict)

    def inputs(self) -> list[Value]:
        """The results that this step reads."""
        return list(values(self.args))


class Program(nn.Module):
    """Steps that turn one batch [N, *image_shape] into the model's output: a tensor, or a tuple of tensors."""

    def __init__(self, steps: list[Step], outputs: list[Value], image_shape: tuple[int, ...]):
        super().__init__()
        self.steps, self.outputs, self.image_shape = list(steps), list(outputs), tuple(image_shape)
        self.quantizers = nn.ModuleList(step.quantizer for step in steps if step.quantizer is not None)

    def users(self) -> dict[Value, list[int]]:
        """For each result that is read by steps: their indices, in order."""
        found: dict[Value, list[int]] = {}
        for index, step in enumerate(self.steps):
            for value in dict.fromkeys(step.inputs()):
                found.setdefault(value, []).append(index)
        return found

    def forward(self, x: Tensor, observe=None) -> Tensor | tuple[Tensor, ...]:
        """Run the steps. observe(index, result), if given, sees the (first) result of each step."""
        last: dict[int, int] = {}  # for each step: the last one that reads any of its results
        for value, indices in self.users().items():
            last[value.step] = max(last.get(value.step, -1), indices[-1])
        kept = {value.step for value in self.outputs}
        results: dict[int, Any] = {-1: x}
        for index, step in enumerate(self.steps):
            results[index] = run_step(step, results)
            if observe:
                observe(index, _part(results[index], 0))
            for value in step.inputs():  # what nobody reads any more makes room
                if last[value.step] == index and value.step not in kept:
                    results.pop(value.step, None)
        outputs = tuple(_part(results[value.step], value.part) for value in self.outputs)
        return outputs if len(outputs) > 1 else outputs[0]

    def __str__(self) -> str:
        def text(argument) -> str:
            if isinstance(argument, Value):
                part = f".{argument.part}" if argument.part else ""
                return "image" if argument == INPUT else f"%{argument.step}{part}"
            return f"tensor{list(argument.shape)}" if isinstance(argument, Tensor) else str(argument)
        return "\n".join(f"%{i} = {s.name}({', '.join(map(text, s.args))})" for i, s in enumerate(self.steps))


def run_step(step: Step, results: dict[int, Any]):
    """The result of one step, given those of the steps before."""
    if step.name == QUANTIZE:
        return step.quantizer(_resolve(step.args[0], results))
    if step.name in SHAPING:
        x = _resolve(step.args[0], results)
        return x.expand(step.shape) if step.name == "expand" else x.reshape(step.shape)
    return step.function(*(_resolve(argument, results) for argument in step.args), **step.options)


def values(argument) -> Iterator[Value]:
    """The Values in nested lists and tuples."""
    if isinstance(argument, Value):
        yield argument
    elif isinstance(argument, list | tuple):
        for item in argument:
            yield from values(item)


def _resolve(argument, results: dict[int, Any]):
    if isinstance(argument, Value):
        return _part(results[argument.step], argument.part)
    if isinstance(argument, list | tuple):
        return [_resolve(item, results) for item in argument]
    return argument


def _part(result, part: int) -> Tensor:
    return result if isinstance(result, Tensor) else result[part]


def without_unused(program: Program) -> Program:
    """The program without the steps whose results nobody reads."""
    needed = {value.step for value in program.outputs}
    for index in range(len(program.steps) - 1, -1, -1):
        if index in needed:
            needed |= {value.step for value in program.steps[index].inputs()}
    place = {-1: -1} | {old: new for new, old in enumerate(sorted(needed - {-1}))}
    steps = [renamed(step, place) for index, step in enumerate(program.steps) if index in needed]
    return Program(steps, [Value(place[v.step], v.part) for v in program.outputs], program.image_shape).eval()


def renamed(step: Step, place: dict[int, int]) -> Step:
    """The step with the results that it reads found at other places: old index -> new index."""
    def move(argument):
        if isinstance(argument, Value):
            return Value(place[argument.step], argument.part)
        return [move(item) for item in argument] if isinstance(argument, list | tuple) else argument
    return replace(step, args=tuple(map(move, step.args)))

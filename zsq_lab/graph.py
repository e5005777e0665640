"""Which layer feeds which: the data flow of one real forward pass.

Every tensor operation of the pass is written down with the operations that produced its inputs. Nothing is assumed
about how the model is written: functional calls, in-place updates, residual sums and shared modules are all seen as
they happen. Folding, equalization and the choice of stages follow this record instead of the order of definition.
"""
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LAYERS = (*CONVOLUTIONS, nn.Linear)  # what gets quantized
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
INPUT = -1  # index of the model's own input


@dataclass
class Node:
    """One operation: `name` of the module (or of the function, where `module` is None) and who made its inputs.

    in_place: the result is one of the inputs, perhaps changed, instead of a tensor of its own.
    """

    name: str
    module: nn.Module | None
    inputs: tuple[int, ...]
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    in_place: bool


class Graph:
    """The operations of one forward pass, in the order in which they ran, and what came out."""

    def __init__(self, nodes: list[Node], output):
        self.nodes, self.output = nodes, output
        self._consumers: list[list[int]] = [[] for _ in nodes]
        for index, node in enumerate(nodes):
            for producer in node.inputs:
                if producer != INPUT:
                    self._consumers[producer].append(index)

    def consumers(self, index: int) -> list[int]:
        """Indices of the operations that read the result of operation `index`."""
        return self._consumers[index]

    def calls(self, module: nn.Module) -> list[int]:
        """Indices of the operations that are calls of `module`."""
        return [i for i, node in enumerate(self.nodes) if node.module is module]

    def layers(self) -> Iterator[int]:
        """Indices of the convolutions and linears, in the order in which they ran."""
        return (i for i, node in enumerate(self.nodes) if isinstance(node.module, LAYERS))

    def first_calls(self) -> set[int]:
        """Indices of the layer calls that read the image itself: no other layer lies between."""
        return self._ends(lambda node: node.inputs, range(len(self.nodes)))

    def first_layers(self) -> set[str]:
        """Names of the layers that read the image itself."""
        return {self.nodes[i].name for i in self.first_calls()}

    def last_layers(self) -> set[str]:
        """Names of the layers after which no other layer comes."""
        consumers = {id(node): self._consumers[i] for i, node in enumerate(self.nodes)}
        ends = self._ends(lambda node: consumers[id(node)], range(len(self.nodes) - 1, -1, -1))
        return {self.nodes[i].name for i in ends}

    def _ends(self, neighbours, order) -> set[int]:
        beyond = set()  # operations with a layer at or before them, seen along `order`
        ends = set()
        for index in order:
            node = self.nodes[index]
            reached = any(i in beyond for i in neighbours(node))
            is_layer = isinstance(node.module, LAYERS)
            if is_layer and not reached:
                ends.add(index)
            if reached or is_layer:
                beyond.add(index)
        return ends


class _Recorder(TorchFunctionMode):
    """Sees each call of a torch function; calls made inside a recorded module count as that module's one operation."""

    def __init__(self, model: nn.Module, example: Tensor):
        super().__init__()
        self.nodes: list[Node] = []
        self.producer = {id(example): INPUT}
        self.constants = {id(t) for t in (*model.parameters(), *model.buffers())}  # and what follows from them alone
        self.lost: str | None = None  # the first layer whose input came about unseen
        self.alive = [example]  # keeps ids unique while recording
        self.inside = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if not self.inside:
            written = args[0] if result is None and args else result  # x[...] = y returns nothing and changes x
            self.record(getattr(func, "__name__", str(func)), None, [*args, *(kwargs or {}).values()], written)
        return result

    def record(self, name: str, module: nn.Module | None, arguments, result) -> None:
        given, written = list(tensors(arguments)), list(tensors(result))
        read = [t for t in given if id(t) in self.producer]
        if not read and all(id(t) in self.constants for t in given):
            self.constants.update(map(id, written))
            self.alive += written
        elif not read and self.lost is None and isinstance(module, (*LAYERS, *BATCH_NORMS)):
            self.lost = name
        if not read or not written:
            return
        inputs = tuple(dict.fromkeys(self.producer[id(t)] for t in read))
        in_place = any(own is given for own in written for given in read)
        self.nodes.append(Node(name, module, inputs, tuple(read[0].shape), tuple(written[0].shape), in_place))
        for tensor in written:
            self.producer[id(tensor)] = len(self.nodes) - 1
            self.alive.append(tensor)


def tensors(value) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists, dictionaries and dataclasses, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors(item)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from tensors(getattr(value, field.name))


def input_of(args: tuple, kwargs: dict) -> Tensor:
    """What a module's call gets: the first tensor, whether by position or by keyword. For hooks `with_kwargs`."""
    return next(tensors((args, kwargs)))


@torch.no_grad()
def trace(model: nn.Module, image_shape: tuple[int, ...]) -> Graph:
    """Record one forward pass of `model` (in eval mode, on one batch of noise that leaves no trace behind).

    image_shape: shape of one input without the batch dimension, (3, 32, 32) for instance.
    Raises ValueError, with the model's own message, when the model cannot take such an input, and naming the layer where
    an operation that no record sees lies before it.
    """
    noise = example(model, image_shape)
    recorder = _Recorder(model, noise)
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, (*LAYERS, *BATCH_NORMS)) or not list(module.children()):
            handles.append(module.register_forward_pre_hook(lambda *_: _shift(recorder, 1)))
            handles.append(module.register_forward_hook(_record_call(recorder, name), with_kwargs=True,
                                                        always_call=True))
    try:
        with evaluating(model), recorder:
            output = model(noise)
        # The caller reads what is returned: no layer may change it on the way.
        recorder.record("output", None, output, output)
    except Exception as error:
        raise ValueError(f"the model does not take an input of shape {tuple(noise.shape)}: {error}. "
                         "Pass the image_shape that it was trained with.") from error
    finally:
        for handle in handles:
            handle.remove()
    if recorder.lost is not None:
        raise ValueError(f"what layer '{recorder.lost}' gets cannot be traced back to the model's input: a torch.jit.script "
                         "function, torch.vmap or numpy made it, or it is a tensor that the model does not register. Put the "
                         "operation into an nn.Module of its own, or register the tensor as a buffer.")
    return Graph(recorder.nodes, output)


def example(model: nn.Module, image_shape: tuple[int, ...]) -> Tensor:
    """The batch that `trace` uses: two inputs of standard normal noise, on the model's device and in its precision."""
    parameter = next(model.parameters(), torch.zeros(()))
    noise = torch.randn(2, *image_shape, generator=torch.Generator().manual_seed(0))
    return noise.to(parameter.device, parameter.dtype)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside the block the model is in eval mode; then each of its modules has the mode that it had."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _shift(recorder: _Recorder, by: int) -> None:
    recorder.inside += by


def _record_call(recorder: _Recorder, name: str):
    def hook(module, args, kwargs, output):
        _shift(recorder, -1)
        if not recorder.inside and output is not None:
            # An identity hands its input on: without a tensor of its own it could not be told from its producer.
            recorder.record(name, module, (args, kwargs), output)
    return hook

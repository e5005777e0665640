"""A program written as an ONNX graph in QDQ form: quantized numbers with `QuantizeLinear` and `DequantizeLinear` around
each operation, from which a runtime makes integer kernels.

Scales and zero points are the simulation's own. Steps that only move or compare numbers are written on the integers
themselves. Weights of at most 4 bits are stored as ONNX's INT4 and widened once, when the runtime loads the file.
`onnx_operators` says how each ATen operation is written. Notebook 09 reads a file that this one wrote.
"""
from typing import Any

import numpy as np
from torch import Tensor

from .deploy import grids, is_weight, layer_parts, monotone, moves
from .packing import pack
from .program import INPUT, QUANTIZE, Program, Step, Value
from .quantizer import Quantizer

OPSET, OPSET_INT4 = 17, 21  # the least that have what is written: INT4 came with 21
IR_VERSION, IR_VERSION_INT4 = 8, 10


class GraphWriter:
    """Collects nodes and constants; results are known by their Value, as float tensors, integers or both."""

    def __init__(self, program: Program, *, int4: bool = True):
        from . import onnx_operators
        self.program, self.grid, self.int4 = program, grids(program), int4
        self.nodes, self.constants = [], []
        self.floats: dict[Value, str] = {INPUT: "images"}
        self.integers: dict[Value, str] = {}
        self.stored_int4 = False
        self._shared: dict[tuple, str] = {}
        for index, step in enumerate(program.steps):
            self.value = Value(index)
            if step.name == QUANTIZE:
                self.weight(step) if is_weight(step) else self.quantize(step)
            else:
                onnx_operators.write(self, step)

    @property
    def opset(self) -> int:
        """The version of the operator set; as weights come first it is settled before it matters."""
        weights = [s.quantizer.bits for s in self.program.steps if s.name == QUANTIZE and is_weight(s)]
        return OPSET_INT4 if self.int4 and any(bits <= 4 for bits in weights) else OPSET

    def node(self, kind: str, inputs: list[str], outputs: int = 1, **attributes) -> str | list[str]:
        """Add a node; returns the name of its output, or a list of names."""
        from onnx import helper
        names = [f"r{len(self.nodes)}" + (f"_{i}" if outputs > 1 else "") for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, names, **attributes))
        return names if outputs > 1 else names[0]

    def constant(self, array, dtype=None, *, share: bool = True) -> str:
        """The name of a constant; equal small ones are stored once, unless a runtime wants to change them one by one."""
        from onnx import numpy_helper
        array = array.detach().cpu().numpy() if isinstance(array, Tensor) else np.asarray(array)
        array = np.ascontiguousarray(array if dtype is None else array.astype(dtype)).reshape(array.shape)
        key = (array.dtype.str, array.shape, array.tobytes()) if share and array.size <= 16 else (len(self.constants),)
        if key not in self._shared:
            self._shared[key] = f"c{len(self.constants)}"
            self.constants.append(numpy_helper.from_array(array, self._shared[key]))
        return self._shared[key]

    def grid_constants(self, quantizer: Quantizer) -> list[str]:
        """Names of an activation quantizer's scale (float32) and zero point (uint8)."""
        return [self.constant(quantizer.scale.reshape(()), np.float32),
                self.constant(quantizer.zero_point.reshape(()), np.uint8)]

    def float_of(self, argument) -> str:
        """The name of an argument as a float tensor: dequantized if it is on a grid."""
        if not isinstance(argument, Value):
            return self.constant(argument, np.float32)
        if argument not in self.floats:
            quantizer = self.grid[argument]
            self.floats[argument] = self.node("DequantizeLinear",
                                              [self.integers[argument], *self.grid_constants(quantizer)])
        return self.floats[argument]

    def quantize(self, step: Step) -> None:
        """Integers of a float result; where the grid has less than 8 bits a clip ends it, as the type would not."""
        quantizer = step.quantizer
        name = self.node("QuantizeLinear", [self.float_of(step.args[0]), *self.grid_constants(quantizer)])
        if quantizer.bits < 8:
            name = self.node("Clip", [name, self.constant(0, np.uint8), self.constant(quantizer.quant_max, np.uint8)])
        self.integers[self.value] = name

    def weight(self, step: Step) -> None:
        """Integers of a constant: int8, or INT4 and a cast that runtimes fold away when they load the file."""
        from onnx import TensorProto
        quantizer = step.quantizer
        integers = quantizer.integers(step.args[0].contiguous()).cpu().numpy().astype(np.int8)
        if not (self.int4 and quantizer.bits <= 4):
            self.integers[self.value] = self.constant(integers, share=False)
            return
        name = f"c{len(self.constants)}"
        self.constants.append(TensorProto(name=name, data_type=TensorProto.INT4, dims=integers.shape,
                                          raw_data=pack(integers & 15, 4).tobytes()))
        self.integers[self.value] = self.node("Cast", [name], to=TensorProto.INT8)

    def layer_weight(self, weight: Value | Tensor, axis: int) -> str:
        """A layer's weight as a float tensor: dequantized per channel of `axis`, or a plain constant."""
        if not isinstance(weight, Value):
            return self.constant(weight, np.float32)
        scale = self.grid[weight].scale.reshape(-1)
        zeros = self.constant(np.zeros(len(scale), np.int8), share=False)
        return self.node("DequantizeLinear", [self.integers[weight], self.constant(scale, np.float32), zeros], axis=axis)

    def layer_bias(self, step: Step) -> list[str]:
        """No name where there is no bias; int32 on the accumulator's grid for an integer layer, else floats."""
        x, weight, bias, _ = layer_parts(step)
        if bias is None:
            return []
        if x not in self.grid or weight not in self.grid:
            return [self.float_of(bias)]
        scale = self.grid[x].scale.reshape(()) * self.grid[weight].scale.reshape(-1)
        integers = self.constant((bias.double() / scale.double()).round(), np.int32, share=False)
        return [self.node("DequantizeLinear", [integers, self.constant(scale, np.float32)], axis=0)]

    def result(self, name: str, part: int = 0) -> None:
        """The step's result is the float tensor `name`."""
        self.floats[Value(self.value.step, part)] = name

    def same_grid(self, step: Step, on_integers, on_floats) -> None:
        """Write a step that moves or compares: on the integers where its input has them, else on the floats.

        Both take the input's name and return the result's; on_integers also takes the quantizer.
        """
        value = step.args[0]
        if value in self.integers and (moves(step) or monotone(step)):
            self.integers[self.value] = on_integers(self.integers[value], self.grid[value])
        else:
            self.result(on_floats(self.float_of(value)))

    def model(self, facts: dict[str, str]) -> Any:
        """The ModelProto: one input `images` [N, *image_shape], outputs `output` or `output_0`, `output_1`, ..."""
        from onnx import TensorProto, helper

        from . import __version__
        outputs = self.program.outputs
        names = ["output"] if len(outputs) == 1 else [f"output_{i}" for i in range(len(outputs))]
        last = [helper.make_node("Identity", [self.float_of(value)], [name])
                for value, name in zip(outputs, names, strict=True)]
        ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, self._shape(value))
                for value, name in zip(outputs, names, strict=True)]
        start = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", *self.program.image_shape])
        graph = helper.make_graph([*self.nodes, *last], "zsq_lab", [start], ends, self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], producer_name="zsq_lab",
                                  producer_version=__version__,
                                  ir_version=IR_VERSION if self.opset == OPSET else IR_VERSION_INT4)
        helper.set_model_props(model, facts)
        return model

    def _shape(self, value: Value) -> list:
        """The shape of an output: the batch by name, unknown sides for parts that are not a step's first."""
        sides = self.program.steps[value.step].shape[1:]
        return ["N", *(sides if value.part == 0 else [None] * len(sides))]

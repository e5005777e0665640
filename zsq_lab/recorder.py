"""Writing the program of a model down, by watching one forward pass.

A pass is seen where PyTorch itself ends up whatever the model's code looks like: at the ATen operators (functional
calls, methods, subclassed layers and in-place updates all become the same few dozen). Quantizers are kept in one piece.
"""
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from .graph import evaluating, tensors
from .program import INPUT, QUANTIZE, Program, Step, Value, without_unused
from .quantizer import Quantizer

SAME = {"detach", "alias", "clone", "lift_fresh", "_to_copy", "native_dropout", "contiguous"}  # hand their input on
SAME_SHAPE = {"as_strided", "expand"}  # do so too where the shape stays (matmul writes such an expand before a bmm)


class _Recorder(TorchDispatchMode):
    """Sees every ATen operator of a pass; what happens inside a Quantizer counts as one step."""

    def __init__(self, example: Tensor):
        super().__init__()
        self.steps: list[Step] = []
        self.value = {id(example): INPUT}
        self.alive = {id(example): example}  # keeps ids and storages unique while recording
        self.stale: set[int] = set()  # views of what was later changed in place
        self.batch = len(example)
        self.inside = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        shape = tuple(args[0].shape) if args and isinstance(args[0], Tensor) else ()
        result = func(*args, **(kwargs or {}))
        if not self.inside:
            self.record(func, args, dict(kwargs or {}), result, shape)
        return result

    def record(self, func, args, kwargs, result, shape) -> None:
        schema = [argument for argument in func._schema.arguments if not argument.kwarg_only]
        arguments = [args[i] if i < len(args) else kwargs.pop(a.name, a.default_value) for i, a in enumerate(schema)]
        read = [t for t in tensors(arguments) if id(t) in self.value]
        made = list(tensors(result))
        self.check_fresh(arguments, str(func))
        if not read or not made:
            return
        name = func._schema.name.removeprefix("aten::")
        in_place = name.endswith("_") and not name.endswith("__")
        name = name.rstrip("_") if in_place else name
        if name in SAME or name in SAME_SHAPE and tuple(made[0].shape) == shape:
            self.name_result(made[0], self.value[id(read[0])])
            return
        if name == "mm" and id(arguments[0]) in self.value:  # a linear layer without a bias is one with a bias of zeros
            name, arguments = "addmm", [arguments[1].new_zeros(arguments[1].shape[1]), *arguments]
        function = getattr(getattr(torch.ops.aten, name, None), func._overloadname, None)
        if function is None:
            raise ValueError(f"the model uses {func}, which changes a tensor in a way that cannot be written down as a "
                             "step: write it without in-place operations")
        shrinks = func is torch.ops.aten.mean.dim and not arguments[2]
        if shrinks and sorted(axis % len(shape) for axis in arguments[1] or ()) == [2, 3]:
            # A mean over all positions is pooling, and then a change of shape that only moves numbers.
            pooled = (-1, shape[1], 1, 1)
            pool = Step(name, (self.value[id(read[0])], arguments[1], True), pooled, function, options=kwargs)
            self.steps.append(pool)
            self.add(Step("view", (Value(len(self.steps) - 1), [-1, shape[1]]), (-1, shape[1])), made)
            return
        # The batch comes first, perhaps times the positions of each image: a linear layer reads them in one row.
        batched = all(len(s) > 0 and s[0] % self.batch == 0 for s in (shape, made[0].shape))
        self.add(Step(name, tuple(map(self.refer, arguments)),
                      (-1, *made[0].shape[1:]) if batched else tuple(made[0].shape), function, options=kwargs), made)
        if in_place:
            self.outdate(made[0])

    def add(self, step: Step, made: list[Tensor]) -> None:
        self.steps.append(step)
        for part, tensor in enumerate(made):
            self.name_result(tensor, Value(len(self.steps) - 1, part))

    def name_result(self, tensor: Tensor, value: Value) -> None:
        self.value[id(tensor)], self.alive[id(tensor)] = value, tensor

    def check_fresh(self, arguments, reader: str) -> None:
        if any(id(t) in self.stale for t in tensors(arguments)):
            raise ValueError(f"{reader} reads a tensor of which a view was changed in place, or a view of one that "
                             "was: write that update without in-place operations")

    def outdate(self, changed: Tensor) -> None:
        place = changed.untyped_storage().data_ptr()
        for key, tensor in self.alive.items():
            if key != id(changed) and tensor.untyped_storage().data_ptr() == place:
                self.stale.add(key)

    def refer(self, argument):
        """Values for tensors of the pass, copies of constants, everything else as it is."""
        if isinstance(argument, Tensor):
            return self.value[id(argument)] if id(argument) in self.value else argument.detach().clone()
        if isinstance(argument, list | tuple):
            return [self.refer(item) for item in argument]
        return argument

    def watch(self, quantizer: Quantizer) -> list:
        def before(*_):
            self.inside += 1

        def after(module, args, output):
            self.inside -= 1
            if not self.inside:
                self.add(Step(QUANTIZE, (self.refer(args[0]),), (-1, *output.shape[1:]), quantizer=module), [output])
        return [quantizer.register_forward_pre_hook(before), quantizer.register_forward_hook(after, always_call=False)]


@torch.no_grad()
def record(model: nn.Module, image_shape: tuple[int, ...]) -> Program:
    """The program of a model in eval mode, for batches of any size; shares nothing with the model but its quantizers.

    The program is run beside the model on batches of two sizes: a model that computes otherwise (because it depends on
    the batch's size or on the values in it) is refused with a ValueError, as are operations that cannot be written down.
    """
    parameter = next(model.parameters(), torch.zeros(()))
    noise = torch.randn(5, *image_shape, generator=torch.Generator().manual_seed(0))
    noise = noise.to(parameter.device, parameter.dtype)
    example = noise[:2].clone()
    recorder = _Recorder(example)
    handles = [h for m in model.modules() if isinstance(m, Quantizer) for h in recorder.watch(m)]
    with evaluating(model):
        try:
            with recorder:
                output = model(example)
            recorder.check_fresh(output, "the caller")
        finally:
            for handle in handles:
                handle.remove()
        outputs = [recorder.value.get(id(t)) for t in tensors(output)]
        if None in outputs or not outputs:
            raise ValueError("the model's output does not depend on its input: expected a tensor, or tensors, computed from it")
        program = Program(recorder.steps, outputs, image_shape).eval()
        for batch in (noise[:2], noise[2:]):
            try:
                same = [torch.allclose(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max() + 1e-9))
                        for a, b in zip(tensors(program(batch)), tensors(model(batch)), strict=True)]
            except RuntimeError as error:
                raise ValueError(f"the model cannot be written down for batches of any size: {error}") from error
            if not all(same):
                raise ValueError("the recorded program computes something else than the model: does it depend on the "
                                 "size of the batch, or on the values in it?")
    return without_unused(program)

"""Numbers to a grid and back: uniform affine quantization with straight-through and learned-scale gradients.

Three verbs, `choose_qparams`, `quantize` and `dequantize`; everything else is built from them. The forward pass follows
PyTorch's `fake_quantize_per_tensor_affine` and `_per_channel_affine` to the bit; the gradient of the scale is that of
LSQ (Esser et al. 2020, eq. 3). Notebook 01 builds this file step by step.
"""
import numpy as np
import torch
from torch import Tensor, nn

MIN_BITS, MAX_BITS = 2, 16


def integer_range(bits: int, *, symmetric: bool) -> tuple[int, int]:
    """Smallest and largest integer of a grid: signed for symmetric grids, 0 .. 2**bits - 1 for affine ones.

    Raises ValueError for bits that are not a whole number in 2..16.
    """
    if isinstance(bits, bool) or not isinstance(bits, int) or not MIN_BITS <= bits <= MAX_BITS:
        raise ValueError(f"bits must be a whole number from {MIN_BITS} to {MAX_BITS}, got {bits!r}")
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1)


def qparams_from_range(low: Tensor, high: Tensor, bits: int, *, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Scale and zero point whose grid covers [low, high]; element by element, so that many ranges fit at once.

    Affine grids are widened to hold zero exactly (padding and ReLU produce it); symmetric ones have zero point 0.
    A range of width zero gets scale 1, so that a dead channel stays zero instead of becoming NaN; so does one that is so
    narrow that 1 / scale**2, the scale's gradient, is no number.
    """
    quant_min, quant_max = integer_range(bits, symmetric=symmetric)
    if low.dtype in (torch.float16, torch.bfloat16):  # whose steps and ends small scales fall below
        low, high = low.float(), high.float()
    low, high = low.clamp(max=0), high.clamp(min=0)
    width = 2 * torch.maximum(-low, high) if symmetric else high - low
    scale = width / (quant_max - quant_min)
    scale = torch.where(scale > torch.finfo(scale.dtype).tiny ** 0.5, scale, torch.ones_like(scale))
    zero_point = torch.zeros_like(scale) if symmetric else (quant_min - low / scale).round().clamp(quant_min, quant_max)
    return scale, zero_point


def choose_qparams(x: Tensor, bits: int, *, symmetric: bool, axis: int | None = None) -> tuple[Tensor, Tensor]:
    """Scale and zero point that fit all of `x` on a grid of 2**bits steps.

    x: any shape [...]. axis: the channel dimension that gets its own pair, or None for one pair.
    Returns scale > 0 and zero_point (float tensors, broadcastable to x), eq. (1) of notebook 01.
    Raises ValueError for bits outside 2..16, an empty x, or an x with NaN or infinity.
    """
    integer_range(bits, symmetric=symmetric)
    if x.numel() == 0:
        raise ValueError("cannot choose a scale for an empty tensor: pass at least one value")
    if not torch.isfinite(x).all():
        raise ValueError("cannot choose a scale for a tensor with NaN or infinity: look for the layer that produced it")
    if axis is None:
        return qparams_from_range(x.min(), x.max(), bits, symmetric=symmetric)
    others = [d for d in range(x.ndim) if d != axis % x.ndim]
    low = x.amin(others, keepdim=True) if others else x
    high = x.amax(others, keepdim=True) if others else x
    return qparams_from_range(low, high, bits, symmetric=symmetric)


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor, quant_min: int, quant_max: int) -> Tensor:
    """Nearest grid point of each value as int32, clamped to quant_min..quant_max; ties go to the even integer."""
    return ((x * (1.0 / scale)).round() + zero_point).clamp(quant_min, quant_max).to(torch.int32)


def dequantize(q: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """The real number that a grid point stands for: (q - zero_point) * scale."""
    return (q - zero_point) * scale


def fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, quant_min: int, quant_max: int) -> Tensor:
    """quantize, then dequantize: what an integer network would compute, in floats and with a gradient.

    The gradient to x passes straight through inside the range, that is where the nearest integer need not be clamped,
    and is zero outside. The gradient to scale, where it is asked for, is LSQ's: (round(v) - v) inside with
    v = x / scale, and the clipped grid point outside.
    """
    if scale.numel() == 1 and x.dtype == torch.float32:
        return _FakeQuantizePerTensor.apply(x, scale, zero_point, quant_min, quant_max)
    rounded = _round_straight_through(x * (1.0 / scale)) + zero_point
    return (rounded.clamp(quant_min, quant_max) - zero_point) * scale


def _round_straight_through(v: Tensor) -> Tensor:
    return v + (v.round() - v).detach()


class _FakeQuantizePerTensor(torch.autograd.Function):
    """The same with one scale, written for speed: activations are large and memory traffic is what costs.

    With y the output and m the inside mask, the scale's gradient sum g (y - m x) / scale splits into two dot products,
    <g, y> - <m g, x>, and m g is the gradient of x that is needed anyway.
    """

    @staticmethod
    def forward(ctx, x, scale, zero_point, quant_min, quant_max):
        # In place: twelve times as fast as the loop of torch.fake_quantize_per_tensor_affine, and the same to the bit.
        q = torch.mul(x, 1.0 / scale.reshape(())).round_().add_(zero_point.reshape(())).clamp_(quant_min, quant_max)
        y = q.sub_(zero_point.reshape(())).mul_(scale.reshape(()))
        ctx.save_for_backward(x, y, scale, zero_point)
        ctx.bounds = quant_min, quant_max
        return y

    @staticmethod
    def backward(ctx, grad):
        x, y, scale, zero_point = ctx.saved_tensors
        low, high = _first_clamped(scale.item(), zero_point.item(), *ctx.bounds)
        grad_x = torch.ops.aten.hardtanh_backward(grad, x, low, high)
        grad_scale = None
        if ctx.needs_input_grad[1]:
            grad_scale = ((_dot(grad, y) - _dot(grad_x, x)) / scale).reshape(scale.shape)
        return grad_x, grad_scale, None, None, None


def _first_clamped(scale: float, zero_point: float, quant_min: int, quant_max: int) -> tuple[float, float]:
    """The greatest float32 below the range and the smallest above it that quantizing has to clamp.

    Half a step beyond the last grid point there is a tie. It goes to the even integer, inside or outside, and the
    product x * (1 / scale) is rounded as well; so the floats around the tie are tried out (in NumPy, as 18 numbers are
    five times as fast there).
    """
    step, zero = np.float32(scale), np.float32(zero_point)
    with np.errstate(all="ignore"):  # a scale that training has ruined is reported by its loss, not here
        ties = (np.array([[quant_min - 0.5], [quant_max + 0.5]], np.float32) - zero) * step
        around = (ties.view(np.int32) + np.arange(-4, 5, dtype=np.int32)).view(np.float32)
        nearest = np.rint(around * (1 / step)) + zero
    below = np.where(nearest[0] < quant_min, around[0], -np.inf)
    above = np.where(nearest[1] > quant_max, around[1], np.inf)
    return below.max().item(), above.min().item()


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product; tensors in the same channels-last layout are read as they lie in memory, without a copy."""
    layouts = (torch.channels_last,) if a.ndim == 4 else ()
    if any(a.is_contiguous(memory_format=f) and b.is_contiguous(memory_format=f) for f in layouts):
        a, b = a.permute(0, 2, 3, 1), b.permute(0, 2, 3, 1)
    return torch.dot(a.reshape(-1), b.reshape(-1))


class Quantizer(nn.Module):
    """A grid with its state: `scale` and `zero_point`, set once by `set_range`, then frozen unless made learnable.

    axis: channel dimension with its own scales, or None. `enabled = False` lets values pass unchanged.
    """

    def __init__(self, bits: int, *, symmetric: bool, axis: int | None = None):
        super().__init__()
        self.bits, self.symmetric, self.axis, self.enabled = bits, symmetric, axis, True
        self.quant_min, self.quant_max = integer_range(bits, symmetric=symmetric)
        self.scale = nn.Parameter(torch.ones(()), requires_grad=False)
        self.register_buffer("zero_point", torch.zeros(()))

    @torch.no_grad()
    def set_range(self, low: Tensor, high: Tensor) -> None:
        """Cover [low, high]; both broadcastable to the tensors that will be quantized."""
        scale, self.zero_point = qparams_from_range(low, high, self.bits, symmetric=self.symmetric)
        self.scale = nn.Parameter(scale, requires_grad=self.scale.requires_grad)

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        # A stored scale has the shape of the range it was fitted to, a new quantizer's is a single number.
        if prefix + "scale" in state_dict:
            shapes = [state_dict[prefix + name].shape for name in ("scale", "zero_point")]
            self.scale = nn.Parameter(self.scale.new_empty(shapes[0]), self.scale.requires_grad)
            self.zero_point = self.zero_point.new_empty(shapes[1])
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def integers(self, x: Tensor) -> Tensor:
        """The int32 grid points of x: what a deployed network would store or compute with."""
        return quantize(x, self.scale.detach(), self.zero_point, self.quant_min, self.quant_max)

    def forward(self, x: Tensor) -> Tensor:
        if not self.enabled:
            return x
        scale = self.scale
        if scale.requires_grad:  # LSQ's step-size factor, 1 / sqrt(N * quant_max), keeps scale and weights in balance
            factor = (x.numel() / scale.numel() * self.quant_max) ** -0.5
            scale = scale * factor + (scale * (1 - factor)).detach()
        return fake_quantize(x, scale, self.zero_point, self.quant_min, self.quant_max)

    def extra_repr(self) -> str:
        kind = "symmetric" if self.symmetric else "affine"
        return f"{self.bits} bits, {kind}, {'per tensor' if self.axis is None else f'per channel of axis {self.axis}'}"

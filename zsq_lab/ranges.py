"""What the quantizers clip to: weight ranges from the weights, input ranges from observed activations.

A narrow range rounds finely and clips much, a wide one the other way round; `search_ranges` tries many and keeps the
one with the least squared error. Ranges are fixed here, once, and never move during evaluation. Notebook 01 draws the
trade-off, notebooks 02 and 03 feed this file from statistics and from synthetic images.
"""
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from .layers import quant_layers, quantization_off
from .quantizer import Quantizer, qparams_from_range

CANDIDATES = 64  # widths tried between 1/64 of the full range and all of it
SAMPLES = 8192  # values kept from each batch and layer


@torch.no_grad()
def search_ranges(x: Tensor, bits: int, *, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Low and high ends [R] that quantize each row of x [R, N] with the least mean squared error."""
    low, high = x.amin(1).clamp(max=0), x.amax(1).clamp(min=0)
    best = torch.full_like(low, torch.inf)
    best_low, best_high = low.clone(), high.clone()
    quant_min, quant_max = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1)
    for step in range(CANDIDATES, 0, -1):
        share = step / CANDIDATES
        scale, zero_point = (q.unsqueeze(1) for q in qparams_from_range(low * share, high * share, bits,
                                                                       symmetric=symmetric))
        q = torch.mul(x, 1.0 / scale).round_().add_(zero_point).clamp_(quant_min, quant_max)
        error = q.sub_(zero_point).mul_(scale).sub_(x).square_().mean(1)
        better = error < best
        best = torch.where(better, error, best)
        best_low = torch.where(better, low * share, best_low)
        best_high = torch.where(better, high * share, best_high)
    return best_low, best_high


def full_ranges(x: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest value [R] of each row of x [R, N]."""
    return x.amin(1), x.amax(1)


def _fit(quantizer: Quantizer, rows: Tensor, search: bool) -> tuple[Tensor, Tensor]:
    return search_ranges(rows, quantizer.bits, symmetric=quantizer.symmetric) if search else full_ranges(rows)


@torch.no_grad()
def fit_weight_ranges(student: nn.Module, *, search: bool) -> None:
    """Set the range of each weight quantizer, per output channel; `search`: least error instead of min-max."""
    for layer in quant_layers(student).values():
        quantizer, weight = layer.weight_quantizer, layer.layer.weight
        rows = weight.transpose(0, quantizer.axis)
        shape = [1] * weight.ndim
        shape[quantizer.axis] = -1
        low, high = _fit(quantizer, rows.reshape(rows.shape[0], -1), search)
        quantizer.set_range(low.reshape(shape), high.reshape(shape))


@torch.no_grad()
def fit_input_ranges(student: nn.Module, batches: Iterable[Tensor], *, search: bool, seed: int = 0) -> None:
    """Set the range of each input quantizer from what reaches it when `batches` pass with quantization off.

    The search works on a random sample of the values; min-max ranges are exact.
    Raises ValueError when no batch came, or when a layer saw NaN or infinity.
    """
    generator = torch.Generator().manual_seed(seed)
    names = {q: name for name, layer in quant_layers(student).items() for q in layer.input_quantizers}
    seen: dict[Quantizer, list[Tensor]] = {q: [] for q in names}

    def observe(quantizer, args):
        x = args[0].reshape(-1)
        ends = torch.stack([x.min(), x.max()])
        if not torch.isfinite(ends).all():
            raise ValueError(f"the input of layer '{names[quantizer]}' has NaN or infinity: check the calibration images")
        if search:
            chosen = torch.randint(len(x), (min(SAMPLES, len(x)),), generator=generator).to(x.device)
            seen[quantizer].append(x[chosen])
        else:
            seen[quantizer].append(ends)

    handles = [q.register_forward_pre_hook(observe) for q in names]
    try:
        with quantization_off(student):
            for batch in batches:
                student(batch)
    finally:
        for handle in handles:
            handle.remove()
    for quantizer, name in names.items():
        if not seen[quantizer]:
            raise ValueError(f"layer '{name}' saw no input: pass at least one batch of calibration images")
        low, high = _fit(quantizer, torch.cat(seen[quantizer])[None], search)
        quantizer.set_range(low[0], high[0])

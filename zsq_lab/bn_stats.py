"""What BatchNorm remembers: reading the stored statistics, and measuring how far a batch is from them.

A BatchNorm stores the mean and variance of its input over the training set; a folded one knows the same of its output
(beta and |gamma|). `BatchNormStatistics` watches both kinds and gives the matching loss of ZeroQ (Cai et al. 2020) and
ZS-CGAN (Choi et al. 2022); `remembered_activations` lets the layers speak from memory, without any image.
Notebook 03 builds the first, notebook 02 uses the second.
"""
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .distributed import mean_over_processes
from .folding import FoldedBatchNorm, affine
from .graph import BATCH_NORMS, input_of

SHARED = 0.5  # share of a remembered channel's variance that all positions of an image have in common


def statistics_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers of `model` that remember statistics: BatchNorms that track them, and folded BatchNorms."""
    return {name: module for name, module in model.named_modules()
            if isinstance(module, FoldedBatchNorm)
            or isinstance(module, BATCH_NORMS) and module.running_mean is not None}


def require_statistics(model: nn.Module, purpose: str) -> None:
    """Raise ValueError for a model without BatchNorm statistics, saying what they were wanted for."""
    if not statistics_layers(model):
        raise ValueError(f"the model has no BatchNorm with running statistics, which {purpose} needs: use recipe "
                         "'rtn-noise', or pass calibration images to a recipe that takes them")


def stored_statistics(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Mean and deviation [C] of the layer's input as remembered from training."""
    if isinstance(layer, FoldedBatchNorm):
        return _wide(layer.mean), _wide(layer.std)
    return _wide(layer.running_mean), _wide(layer.running_var).sqrt()


def _wide(x: Tensor) -> Tensor:
    """In float32 where x has 16 bits: too few for a mean over a million values, and float16 has no square above 65504."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def batch_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation [C] of a batch [N, C, ...] over all but the channels; the gradient is finite at deviation 0."""
    dims = [d for d in range(x.ndim) if d != 1]
    x = _wide(x)
    mean = mean_over_processes(x.mean(dims))
    variance = (mean_over_processes(x.square().mean(dims)) - mean.square()).clamp(min=0)
    return mean, (variance + 1e-12).sqrt()


def layer_distance(mean: Tensor, std: Tensor, stored_mean: Tensor, stored_std: Tensor) -> Tensor:
    """(|mean - stored_mean|^2 + |std - stored_std|^2) / |stored_std|^2: no unit, comparable from layer to layer.

    Dividing by the whole layer's power instead of each channel's own keeps a dead channel from ruling the sum.
    """
    power = stored_std.square().sum() + 1e-12
    return ((mean - stored_mean).square().sum() + (std - stored_std).square().sum()) / power


def squared_distance(mean: Tensor, std: Tensor, stored_mean: Tensor, stored_std: Tensor) -> Tensor:
    """Mean over the channels of (mean - stored_mean)^2 + (std - stored_std)^2, in the units of the layer, as in the papers."""
    return ((mean - stored_mean).square() + (std - stored_std).square()).mean()


def gaussian_kl(mean: Tensor, std: Tensor, stored_mean: Tensor, stored_std: Tensor) -> Tensor:
    """KL(batch || memory) of the two Gaussians, mean over the channels: log(s/d) + (d^2 + (m - n)^2) / (2 s^2) - 1/2.

    m, d: mean and deviation of the batch; n, s: the stored ones. A channel without spread is left out, a layer of
    such channels is at distance 0.
    """
    alive = stored_std > 1e-6 * stored_std.max()
    mean, std, stored_mean, stored_std = (v[alive] for v in (mean, std, stored_mean, stored_std))
    ratio = (std.square() + (mean - stored_mean).square()) / (2 * stored_std.square())
    return (stored_std.log() - std.clamp(min=1e-6).log() + ratio - 0.5).sum() / max(1, len(ratio))


class BatchNormStatistics:
    """Context manager that measures, in each forward pass, every statistics layer's distance from its memory.

    with BatchNormStatistics(model) as statistics:
        model(images)
        loss = statistics.loss()          # mean over the layers, differentiable
        statistics.distances()            # {layer name: float}

    distance: `layer_distance`, `squared_distance` or `gaussian_kl`.
    """

    def __init__(self, model: nn.Module, distance: Callable[..., Tensor] = layer_distance):
        self.model, self.layers, self.distance = model, statistics_layers(model), distance
        self._distances: dict[str, Tensor] = {}
        self._handles = []

    def __enter__(self) -> "BatchNormStatistics":
        distances = self._distances  # and not self: a copy of the model copies its hooks, too
        # First: the model itself may be one of the layers.
        self._handles.append(self.model.register_forward_pre_hook(lambda *_: distances.clear()))
        for name, layer in self.layers.items():
            self._handles.append(layer.register_forward_pre_hook(self._measure(name), with_kwargs=True))
        return self

    def __exit__(self, *_) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _measure(self, name: str):
        def hook(layer, args, kwargs):
            x = input_of(args, kwargs)
            self._distances[name] = self.distance(*batch_statistics(x), *stored_statistics(layer))
            # The gradient of the distance needs these values, so that what overwrites its input gets a copy.
            return ((x.clone(),), {}) if getattr(layer, "overwritten", False) else None
        return hook

    def loss(self) -> Tensor:
        """Mean distance over the layers of the last forward pass."""
        return torch.stack(list(self._distances.values())).mean()

    def distances(self) -> dict[str, float]:
        """Distance of each layer in the last forward pass."""
        return {name: value.item() for name, value in self._distances.items()}


@contextmanager
def remembered_activations(model: nn.Module, seed: int = 0) -> Iterator[nn.Module]:
    """Inside the block each statistics layer puts out Gaussian values with the moments that training left it.

    Whatever goes into the model, beyond the first such layer it computes on what BatchNorm remembers: per channel
    N(beta, gamma^2). ReLU, sums, pooling and concatenation then act on these values by themselves, so that the ranges
    of every layer's input follow from the statistics alone (the sampled form of DFQ's clipped normal distribution).
    BatchNorm does not say how alike the positions of one image are; SHARED of the variance is one draw per image and
    channel. With independent positions an average pool would leave next to nothing of the range that images have.
    """
    generators: dict[torch.device, torch.Generator] = {}

    def speak(layer, _args, output):
        if isinstance(layer, FoldedBatchNorm):
            mean, std = layer.mean, layer.std
        else:
            gamma, mean = affine(layer)
            std = gamma.abs()
        if output.device not in generators:
            generators[output.device] = torch.Generator(output.device).manual_seed(seed)
        noise = _partly_shared_noise(output.shape, generators[output.device])
        shape = (1, -1, *[1] * (output.ndim - 2))
        return (mean.reshape(shape) + std.reshape(shape) * noise).to(output.dtype)

    handles = [layer.register_forward_hook(speak) for layer in statistics_layers(model).values()]
    try:
        yield model
    finally:
        for handle in handles:
            handle.remove()


def _partly_shared_noise(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Standard normal values [N, C, ...]; those of one image and channel have SHARED of their variance in common."""
    own = torch.randn(shape, generator=generator, device=generator.device)
    if len(shape) < 3:
        return own
    common = torch.randn(*shape[:2], *[1] * (len(shape) - 2), generator=generator, device=generator.device)
    return SHARED**0.5 * common + (1 - SHARED) ** 0.5 * own

"""BatchNorms of other classes, made plain ones: what folds them and reads their statistics only knows PyTorch's own.

timm's network code has norm, dropout and activation in one module; folding puts an identity in its place, and the activation
would be lost without a word. Networks trained on several GPUs have SyncBatchNorm, detectors with a pretrained backbone
FrozenBatchNorm2d, which no test for a BatchNorm recognises. What was replaced is compared with what replaces it, on noise.
"""
import copy

import torch
from torch import nn

from .folding import replace_module
from .graph import BATCH_NORMS


class AnyBatchNorm(nn.BatchNorm2d):
    """A plain BatchNorm for inputs [N, C, ...] of any number of dimensions, as SyncBatchNorm takes them."""

    def _check_input_dim(self, input) -> None:
        pass


def is_plain(norm: nn.Module) -> bool:
    """Whether a BatchNorm computes what PyTorch's own does, and nothing else."""
    return type(norm).forward is nn.modules.batchnorm._BatchNorm.forward


def is_batch_norm(module: nn.Module) -> bool:
    """Whether the module normalises by statistics that it remembers, plain or not.

    The frozen kind goes by its name: torchvision, detectron2 and timm each have a class of it, with no common parent.
    """
    known = isinstance(module, (*BATCH_NORMS, nn.SyncBatchNorm)) or "FrozenBatchNorm" in type(module).__name__
    return known and getattr(module, "running_mean", None) is not None


@torch.no_grad()
def split_fused_norms(model: nn.Module) -> nn.Module:
    """Replace each BatchNorm with a `forward` of its own by a plain one, and then its child modules in order; in place.

    SyncBatchNorm and the frozen kind become `AnyBatchNorm`. Raises ValueError, naming the layer, where that is not the same
    function.
    """
    for name, norm in list(model.named_modules()):
        if not is_batch_norm(norm) or is_plain(norm):
            continue
        plain_class = next((kind for kind in BATCH_NORMS if isinstance(norm, kind)), AnyBatchNorm)
        channels = len(norm.running_mean)
        plain = plain_class(channels, getattr(norm, "eps", 1e-5), affine=norm.weight is not None)
        plain.load_state_dict(norm.state_dict(), strict=False)  # children have entries too, a frozen norm counts no batches
        after = [child for child in norm.children() if not isinstance(child, nn.Identity)]
        split = nn.Sequential(plain, *after) if after else plain
        split = split.to(norm.running_mean.device).eval().requires_grad_(False)
        dimensions = {nn.BatchNorm1d: 1, nn.BatchNorm3d: 3}.get(plain_class, 2)
        random = torch.Generator().manual_seed(0)
        noise = 4 * torch.randn(2, channels, *[5] * dimensions, generator=random, dtype=torch.float64)
        # In double precision: x * scale + bias and (x - mean) / deviation round differently where they cancel.
        own, wanted = (copy.deepcopy(module).cpu().double()(noise.clone()) for module in (split, norm.eval()))
        if not torch.allclose(own, wanted, rtol=1e-4, atol=1e-5):
            raise ValueError(f"layer '{name}' ({type(norm).__name__}) is a BatchNorm that computes something of its "
                             "own: replace it by torch.nn.BatchNorm and separate modules")
        model = replace_module(model, norm, split)
    return model

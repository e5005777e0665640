"""BatchNorms that do more than normalise, taken apart: timm's network code has norm,
dropout and activation in one module.

Folding puts an identity in the place of a BatchNorm; an activation inside it would be lost without a word. A module
that was taken apart is compared with what it was, on noise, before it is used.
"""
import torch
from torch import nn

from .folding import replace_module
from .graph import BATCH_NORMS


def is_plain(norm: nn.Module) -> bool:
    """Whether a BatchNorm computes what PyTorch's own does, and nothing else."""
    return type(norm).forward is nn.modules.batchnorm._BatchNorm.forward


@torch.no_grad()
def split_fused_norms(model: nn.Module) -> nn.Module:
    """Replace each BatchNorm with a `forward` of its own by (plain BatchNorm, its child modules in order); in place.

    Raises ValueError, naming the layer, where that is not the same function.
    """
    for name, norm in list(model.named_modules()):
        if not isinstance(norm, BATCH_NORMS) or is_plain(norm):
            continue
        plain_class = next(kind for kind in BATCH_NORMS if isinstance(norm, kind))
        plain = plain_class(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        plain.load_state_dict({key: value for key, value in norm.state_dict().items() if key in plain.state_dict()})
        after = [child for child in norm.children() if not isinstance(child, nn.Identity)]
        split = nn.Sequential(plain, *after).to(next(norm.parameters(), norm.running_mean).device).eval()
        split.requires_grad_(False)
        dimensions = {nn.BatchNorm1d: 1, nn.BatchNorm2d: 2, nn.BatchNorm3d: 3}[plain_class]
        noise = 4 * torch.randn(2, norm.num_features, *[5] * dimensions, generator=torch.Generator().manual_seed(0))
        noise = noise.to(norm.running_mean)
        if not torch.allclose(split(noise.clone()), norm.eval()(noise.clone()), rtol=1e-4, atol=1e-5):
            raise ValueError(f"layer '{name}' ({type(norm).__name__}) is a BatchNorm that computes something of its "
                             "own: replace it by torch.nn.BatchNorm and separate modules")
        model = replace_module(model, norm, split)
    return model

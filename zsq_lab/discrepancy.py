"""Where two networks disagree, at two levels (ZAQ, Liu et al. 2021).

Output level: the L1 distance of their logits. Feature level: how the channels of a stage relate to each other, the
matrix of cosines between channels, compared entry by entry. Relations survive what quantization does harmlessly (a
channel scaled up or down) and show what it breaks. Notebook 05 draws both.
"""
import torch
from torch import Tensor

from .graph import tensors

MEMORY = 0.9  # of the running size of each layer's discrepancy, for the adaptive weights


def output_discrepancy(student_output, teacher_output) -> Tensor:
    """Mean |P(x) - Q(x)| over images and logits; several outputs: the mean over those of floats."""
    pairs = zip(tensors(student_output), tensors(teacher_output), strict=True)
    return torch.stack([(own - wanted).abs().mean() for own, wanted in pairs if wanted.is_floating_point()]).mean()


def output_size(output) -> Tensor:
    """Mean |P(x)|, averaged as `output_discrepancy` is: the unit in which a discrepancy can be judged."""
    return torch.stack([value.abs().mean() for value in tensors(output) if value.is_floating_point()]).mean()


def channel_relations(features: Tensor) -> Tensor:
    """Cosines between the channels of each image, [N, C, C] of features [N, C, ...].

    A channel is the vector of its values over all positions; [N, C] is one position, and its channels are taken over
    the images instead: [1, C, C]. A channel of zeros has relation 0 to every other.
    """
    rows = features.flatten(2) if features.ndim > 2 else features.t().unsqueeze(0)
    length = rows.square().sum(2, keepdim=True).add(1e-12).sqrt()  # the gradient of a norm is not finite at zero
    unit = rows / length
    return unit @ unit.transpose(1, 2)


def relation_discrepancy(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """L1 distance of the two relation matrices over C^2, mean over the images."""
    return (channel_relations(student_features) - channel_relations(teacher_features)).abs().mean()


class FeatureDiscrepancy:
    """The relation discrepancies of all stages as one number, each layer weighted so that none drowns the others.

    The weight of a layer is the inverse of the running size of its own discrepancy, normalised to sum to one:
    a stage that differs ten times as much does not count ten times as much.
    """

    def __init__(self):
        self.size: dict[str, float] = {}

    def __call__(self, student: dict[str, Tensor], teacher: dict[str, Tensor]) -> Tensor:
        """student, teacher: features [N, C, ...] by the name of their stage."""
        each = {name: relation_discrepancy(student[name], teacher[name]) for name in teacher}
        for name, value in each.items():
            now = value.item()
            self.size[name] = MEMORY * self.size[name] + (1 - MEMORY) * now if name in self.size else now
        inverse = {name: 1 / (self.size[name] + 1e-6) for name in each}
        return torch.stack([inverse[name] * value for name, value in each.items()]).sum() / sum(inverse.values())


def activation_term(teacher_features: Tensor) -> Tensor:
    """-mean|h| over P's last features [N, C]: low where the images mean something to P."""
    return -teacher_features.abs().mean()

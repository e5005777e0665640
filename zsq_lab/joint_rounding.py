"""All roundings of a network learned at once, after each block has learned its own (`reconstruct`).

A block only sees its own output; what its error does to the answer, and which errors of two blocks cancel, it cannot know.
Here the whole network is the block: every weight still goes to one of the two grid points around it (`soft_rounding`,
straight through), and gradients come from the output and from where the resolution changes. With a choice between two
points for each weight a few hundred images cannot lead it far astray, as they do when weights move freely (notebook 07).
"""
from functools import partial

from torch import Tensor, nn

from .distill import Sampler, finetune, knowledge_loss
from .reconstruct import SCALE_RATE, rounding_groups, softly_rounded
from .resume import RunState
from .starts import layers_of, set_weights

LEARNING_RATE = 0.01  # of the V; biases and scales as in `reconstruct`


def exact_weights(student: nn.Module) -> list[Tensor]:
    """Copies of the weights of all quantized layers, to be taken before they are rounded."""
    return [layer.layer.weight.detach().clone() for layer in layers_of(student)]


def round_together(student: nn.Module, teacher: nn.Module, exact: list[Tensor], sampler: Sampler, stages: list[str], *,
                   iterations: int, learning_rate: float = LEARNING_RATE, scale_rate: float = SCALE_RATE, seed: int = 0,
                   progress: bool = False, run: RunState | None = None, loss=knowledge_loss) -> None:
    """Decide all roundings of the student in place, from those that it has; biases and scales learn too.

    student: its weights on their grids. exact: `exact_weights` from before. scale_rate: as `reconstruct` takes it, the rest as
    `distill.finetune` does.
    Raises `health.Stopped` when the loss stops being a number; the student then keeps the roundings that it had reached.
    """
    layers, start = layers_of(student), exact_weights(student)
    set_weights(layers, exact)
    with softly_rounded(student, start):
        finetune(student, teacher, sampler, stages, iterations=iterations, learning_rate=learning_rate, seed=seed,
                 progress=progress, run=run, loss=loss, groups=partial(rounding_groups, scale_rate=scale_rate))

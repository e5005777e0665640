"""Images per category through a generative model's eyes (GZNQ, He et al. 2021).

Instead of its pixels, the weights of a small generator and one code per image are optimised until the batch leaves the
remembered BatchNorm statistics and each image is taken for its class. The structure of the network is the image prior:
smooth patches are easy for it to draw, pixel noise is not. After the batch the generator is thrown away.
"""
from collections.abc import Callable
from math import cos, pi

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .bn_stats import BatchNormStatistics, require_statistics
from .generators import NOISE_SIZE, Generator, deal_labels
from .health import Stopped
from .images import count_classes, require_gradient
from .resume import RunState
from .tasks import CLASSIFICATION, Task

LEARNING_RATE = 5e-3  # of the weights; the codes move ten times as fast, each is seen by one image only
CLASS_WEIGHT = 0.1


@torch.inference_mode(False)  # gradients are needed here, whatever the caller has switched off
def prior_images(teacher: nn.Module, n: int, image_shape: tuple[int, ...], *, iterations: int = 200,
                 batch_size: int = 128, seed: int = 0,
                 on_step: Callable[[int, Tensor, dict[str, float]], None] | None = None, progress: bool = False,
                 run: RunState | None = None, task: Task = CLASSIFICATION) -> tuple[Tensor, Tensor | None]:
    """n images [n, *image_shape] in the model's own scale and the labels that they were made for (None: no classes).

    on_step(iteration, images, {"statistics", "class"}) is called after each iteration of each batch.
    Raises ValueError for a model without statistics and `health.Stopped` when a loss stops being a number.
    """
    require_statistics(teacher, "making images")
    run, device = run or RunState(), next(teacher.parameters()).device
    classes = count_classes(teacher, image_shape, task)
    labels = deal_labels(n, classes, torch.Generator().manual_seed(seed)) if classes else None
    state = run.load("prior") or {"made": [], "iteration": 0}
    made, first = [images.to(device) for images in state["made"]], state["iteration"]
    batches = [range(start, min(start + batch_size, n)) for start in range(0, n, batch_size)]
    bar = tqdm(total=iterations * len(batches), initial=iterations * len(made) + first, desc="images",
               disable=not progress, leave=False)
    with BatchNormStatistics(teacher) as statistics, bar:
        for number, batch in list(enumerate(batches))[len(made):]:
            with torch.random.fork_rng():  # the weights of the throw-away generator
                torch.manual_seed(seed * 100_003 + number)
                prior = Generator(image_shape, classes).to(device)
                codes = torch.randn(len(batch), NOISE_SIZE).to(device).requires_grad_(True)
            wanted = labels[batch.start:batch.stop].to(device) if classes else None
            weights = list(prior.parameters())
            optimizer = torch.optim.Adam([{"params": weights, "lr": LEARNING_RATE},
                                          {"params": [codes], "lr": 10 * LEARNING_RATE}], betas=(0.5, 0.99))
            rates = [group["lr"] for group in optimizer.param_groups]
            if first:  # the middle of a batch
                prior.load_state_dict(state["prior"])
                codes.data.copy_(state["codes"])
                optimizer.load_state_dict(state["optimizer"])
            for iteration in range(first, iterations):
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * 0.5 * (1 + cos(pi * iteration / iterations))
                images = prior(codes, wanted)
                output = teacher(images)
                distance = statistics.loss()
                require_gradient(distance)
                class_loss = task.label_loss(output, wanted) if classes else distance.new_zeros(())
                loss = distance + CLASS_WEIGHT * class_loss
                if not torch.isfinite(loss):
                    raise Stopped(f"making images stopped at iteration {iteration}: the loss is not a number; lower "
                                  f"the learning rate (gznq.LEARNING_RATE, {LEARNING_RATE}), or use another recipe")
                gradients = torch.autograd.grad(loss, [*weights, codes])
                for parameter, gradient in zip([*weights, codes], gradients, strict=True):
                    parameter.grad = gradient
                optimizer.step()
                bar.update()
                run.save("prior", lambda: {"made": made, "prior": prior.state_dict(), "codes": codes.detach(),
                                           "optimizer": optimizer.state_dict(), "iteration": iteration + 1})
                if on_step:
                    on_step(iteration, images.detach(), {"statistics": distance.item(), "class": class_loss.item()})
            with torch.no_grad():
                made.append(prior(codes, wanted))
            first = 0
    run.save("prior", lambda: {"made": made, "iteration": 0}, now=True)
    return torch.cat(made), labels

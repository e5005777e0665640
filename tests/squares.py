"""Scenes of one bright square each, whose masks and boxes can be read off the pictures."""
import torch

from zsq_lab.scenes import Boxes, Scenes


def squares(n: int, with_masks: bool = True) -> Scenes:
    """Bright squares of 12 pixels on dark pictures of 32."""
    generator = torch.Generator().manual_seed(0)
    images, masks = torch.full((n, 3, 32, 32), 40, dtype=torch.uint8), torch.zeros(n, 32, 32, dtype=torch.uint8)
    boxes = []
    for i, (x, y) in enumerate(torch.randint(0, 20, (n, 2), generator=generator).tolist()):
        images[i, :, y:y + 12, x:x + 12], masks[i, y:y + 12, x:x + 12] = 220, 1
        boxes.append(Boxes(torch.tensor([[x, y, x + 12.0, y + 12]]), torch.tensor([0])))
    return Scenes(images, masks if with_masks else boxes)


def normalise(images):
    return images.float() / 127.5 - 1

"""Patches: pixels of two images at their own places, half of the batch untouched, sizes within their limits."""
import pytest
import torch

from zsq_lab.patches import LARGEST, patched, with_patches


def draw(batch, seed=0):
    return with_patches(batch, torch.Generator().manual_seed(seed))


def numbered(n: int, *spatial: int) -> torch.Tensor:
    """Image i holds i everywhere, so that a pixel says where it comes from."""
    return torch.arange(float(n)).reshape(n, *[1] * (len(spatial) + 1)).expand(n, 3, *spatial).contiguous()


def test_half_of_the_images_hold_one_rectangle_of_another():
    batch = numbered(64, 32, 32)
    mixed = draw(batch)
    assert torch.equal(mixed[32:], batch[32:]) and torch.equal(batch, numbered(64, 32, 32))
    strange = (mixed[:32] != batch[:32]).all(1)
    assert torch.equal(strange, (mixed[:32] != batch[:32]).any(1)), "all channels of a pixel come from one image"
    changed, covered = 0, 0.0
    for image, where in zip(mixed[:32], strange, strict=True):
        if where.any():
            rows, columns = where.any(1), where.any(0)
            assert torch.equal(where, rows[:, None] & columns[None]), "the patch is a rectangle"
            for line in (rows, columns):
                places = line.nonzero().flatten()
                assert len(places) == places[-1] - places[0] + 1 and 5 <= len(places) <= 2 * LARGEST * 32
            assert image[0][where].unique().numel() == 1, "the patch comes from one image"
            changed += 1
            covered += where.float().mean().item()
    assert changed > 25 and 0.2 < covered / changed < 0.6, "patches end within the image"


def test_a_patch_keeps_its_place():
    ramp = torch.arange(16.0).expand(8, 1, 16, 16) + 100 * torch.arange(8.0).reshape(8, 1, 1, 1)
    assert torch.equal(draw(ramp) % 100, ramp % 100)


@pytest.mark.parametrize("shape", [(8, 3, 7, 12), (8, 2, 9), (1, 3, 8, 8), (4, 5)])
def test_any_shape_goes_and_the_seed_decides(shape):
    batch = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    mixed = draw(batch)
    assert mixed.shape == batch.shape and torch.equal(mixed, draw(batch))
    assert torch.isin(mixed, batch).all()
    assert len(shape) == 2 and torch.equal(mixed, batch) or len(batch) == 1 or not torch.equal(mixed, draw(batch, 3))


def test_a_sampler_is_wrapped():
    batch = numbered(8, 16, 16)
    random = torch.Generator().manual_seed(0)
    assert torch.equal(patched(lambda _: batch)(random), draw(batch))

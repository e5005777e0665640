"""Views move pictures, masks and boxes together; what is drawn stays inside the scene."""
import pytest
import torch
from squares import normalise, squares

from zsq_lab.scene_views import Views, draw_views, recolour
from zsq_lab.scenes import UNLABELLED, Boxes


def test_a_whole_view_is_the_scene():
    scenes = squares(3)
    views = Views(torch.full((3, 2), 16.0), torch.ones(3, 2), (32, 32))
    torch.testing.assert_close(views.images(normalise(scenes.images)), normalise(scenes.images), atol=1e-5, rtol=0)
    assert torch.equal(views.masks(scenes.targets), scenes.targets)
    mirrored = Views(views.centre, torch.tensor([[-1.0, 1]] * 3), (32, 32))
    assert torch.equal(mirrored.masks(scenes.targets), scenes.targets.flip(2))
    flipped = normalise(scenes.images).flip(3)
    torch.testing.assert_close(mirrored.images(normalise(scenes.images)), flipped, atol=1e-5, rtol=0)


@pytest.mark.parametrize("seed", range(4))
def test_pictures_masks_and_boxes_move_together(seed):
    masks, boxes = squares(4), squares(4, with_masks=False)
    views = draw_views(4, (32, 32), torch.Generator().manual_seed(seed), crop=(24, 28), zoom=(0.7, 1.6), vertical=True)
    seen, shown, targets = views.images(normalise(masks.images)), views.masks(masks.targets), views.boxes(boxes.targets)
    assert seen.shape == (4, 3, 24, 28) and shown.shape == (4, 24, 28)
    for picture, mask, target in zip(seen, shown, targets, strict=True):
        bright = picture[0] > 0.4
        assert (bright == (mask == 1)).float().mean() > 0.9
        for box in target.boxes:
            rows, columns = (mask == 1).any(1).nonzero(), (mask == 1).any(0).nonzero()
            edges = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()
            assert (edges - box).abs().max() < 1.01


def test_beyond_the_edge_nobody_knows():
    views = Views(torch.tensor([[0.0, 16]]), torch.ones(1, 2), (32, 32))
    mask = views.masks(squares(1).targets)
    assert (mask[:, :, :16] == UNLABELLED).all() and (mask[:, :, 16:] != UNLABELLED).all()


def test_boxes_that_are_cut_off_mostly_are_gone():
    scene = [Boxes(torch.tensor([[0.0, 0, 10, 10], [6, 0, 16, 10]]), torch.tensor([0, 1]))]
    views = Views(torch.tensor([[16.0, 8]]), torch.ones(1, 2), (16, 16))  # shows x from 8 to 24
    (left,) = views.boxes(scene)
    assert left.labels.tolist() == [1] and left.boxes.tolist() == [[0, 0, 8, 10]]


def test_views_of_all_of_it_are_only_mirrored():
    views = draw_views(64, (24, 32), torch.Generator().manual_seed(0))
    assert views.size == (24, 32) and (views.centre == torch.tensor([16.0, 12])).all()
    assert set(views.zoom[:, 0].tolist()) == {1.0, -1.0} and (views.zoom[:, 1] == 1).all()
    upside_down = draw_views(64, (24, 32), torch.Generator().manual_seed(0), vertical=True)
    assert set(upside_down.zoom[:, 1].tolist()) == {1.0, -1.0}


def test_crops_stay_inside_and_are_zoomed_as_told():
    views = draw_views(500, (60, 80), torch.Generator().manual_seed(0), crop=(30, 40), zoom=(0.8, 1.6))
    zoom = views.zoom.abs()
    assert (zoom[:, 0] == zoom[:, 1]).all() and 0.8 <= zoom.min() < 0.83 and 1.55 < zoom.max() <= 1.6
    assert zoom.log().mean().item() == pytest.approx((0.8 * 1.6) ** 0.5 - 1, abs=0.03), "as often below as above the middle"
    x, y = views.points()
    assert x.min() > 0 and x.max() < 80 and y.min() > 0 and y.max() < 60
    assert x.min() < 2 and x.max() > 78, "they come near the edges"
    far = draw_views(50, (20, 20), torch.Generator().manual_seed(0), crop=(20, 20), zoom=(0.5, 0.5))
    assert (far.centre == 10).all(), "larger than the scene: nothing to move"


def test_colours_change_by_contrast_brightness_and_tint_of_the_image():
    x = torch.randn(8, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(recolour(x, 0.0, torch.Generator()), x)
    y = recolour(x, 0.25, torch.Generator().manual_seed(1))
    for image, changed in zip(x, y, strict=True):
        slope, shift = zip(*(linear_fit(a, b) for a, b in zip(image, changed, strict=True)), strict=True)
        assert max(slope) == pytest.approx(min(slope), abs=1e-4) and 0.5 <= slope[0] <= 1.5, "one contrast an image"
        assert max(shift) - min(shift) > 1e-3, "a tint: each channel its own shift"


def linear_fit(x: torch.Tensor, y: torch.Tensor) -> tuple[float, float]:
    """Slope and intercept; the fit must be exact."""
    columns = torch.stack([x.flatten(), torch.ones(x.numel())], 1)
    found = torch.linalg.lstsq(columns, y.flatten()[:, None]).solution
    torch.testing.assert_close(columns @ found, y.flatten()[:, None], rtol=1e-4, atol=1e-4)
    return found[0].item(), found[1].item()

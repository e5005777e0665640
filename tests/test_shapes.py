"""The embedded data: the same bytes on every machine, balanced, independent of n, and boxes and masks that agree."""
import hashlib
import time

import numpy as np
import pytest

from zsq_lab import painting, shapes
from zsq_lab.shapes import CLASSES, draw_images, draw_scenes

IMAGES_SHA256 = "e5bc33606e3a9e3bacb17c203271639cd94119ee0cda06e26db5a253c7469929"
SCENES_SHA256 = "bbef988fec6d99a284df270a899f06b1764d3908c9a3abdb8a510bc2968633e2"


def digest(*arrays):
    """sha256 of the values, in little-endian order whatever the machine."""
    joined = b"".join(np.ascontiguousarray(a, np.dtype(a.dtype).newbyteorder("<")).tobytes() for a in arrays)
    return hashlib.sha256(joined).hexdigest()


def test_the_same_images_on_every_machine():
    assert digest(*draw_images(120, 0)) == IMAGES_SHA256, "the drawing changed: checkpoints on embedded data are void"


def test_the_same_scenes_on_every_machine():
    images, masks, boxes, labels = draw_scenes(15, 0)
    assert digest(images, masks, *boxes, *labels) == SCENES_SHA256


def test_types_shapes_and_balance():
    images, labels = draw_images(200, 3)
    assert (images.shape, images.dtype, labels.dtype) == ((200, 3, 32, 32), np.uint8, np.int64)
    assert len(CLASSES) == 10
    assert (np.sort(labels.reshape(-1, 10), axis=1) == np.arange(10)).all(), "each run of ten holds each class once"
    assert images.min() == 0 and images.max() == 255


@pytest.mark.parametrize("n", [0, 1, 37, 150])
def test_the_first_images_do_not_depend_on_n(n):
    images, labels = draw_images(230, 5)
    first, first_labels = draw_images(n, 5)
    assert np.array_equal(first, images[:n]) and np.array_equal(first_labels, labels[:n])


def test_nor_on_how_many_are_drawn_at_a_time(monkeypatch):
    images, scenes = draw_images(60, 5)[0], draw_scenes(25, 5)[0]
    monkeypatch.setattr(shapes, "_CHUNK_PIXELS", 20 * 32 * 32)
    assert np.array_equal(draw_images(60, 5)[0], images)
    monkeypatch.setattr(shapes, "_CHUNK_PIXELS", 20 * 96 * 96)
    assert np.array_equal(draw_scenes(25, 5)[0], scenes)


def test_seeds_give_different_images():
    train, test = draw_images(100, shapes.TRAIN_SEED)[0], draw_images(100, shapes.TEST_SEED)[0]
    assert len({image.tobytes() for image in [*train, *test]}) == 200


@pytest.mark.parametrize("size", [32, 64, 96])
def test_boxes_and_masks_of_scenes_agree(size):
    images, masks, boxes, labels = draw_scenes(40, 2, size)
    assert images.shape == (40, 3, size, size) and masks.shape == (40, size, size)
    assert len(boxes) == len(labels) == 40 and sum(map(len, labels)) >= 36
    assert masks.dtype == np.uint8 and masks.max() <= 10
    for mask, box, label in zip(masks, boxes, labels):
        assert box.shape == (len(label), 4) and label.dtype == np.int64
        assert set(np.unique(mask)) - {0} == set(label + 1)
        outside = mask > 0
        for (x0, y0, x1, y1), shape in zip(box.astype(int), label):
            assert 0 <= x0 < x1 <= size and 0 <= y0 < y1 <= size
            inside = mask[y0:y1, x0:x1] == shape + 1
            assert inside.sum() >= shapes.MIN_VISIBLE
            assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any(), "box is tight"
            outside[y0:y1, x0:x1] &= ~inside
        assert not outside.any(), "every shape pixel lies in a box of its class"


def test_occluders_are_background_in_the_mask(monkeypatch):
    monkeypatch.setattr(shapes, "MIN_VISIBLE", 1)
    images, masks, _, _ = draw_scenes(20, 4)
    monkeypatch.setattr(painting, "OCCLUDER_CHANCE", 0.0)  # the same dice, so the same scenes without them
    bare_images, bare_masks, _, _ = draw_scenes(20, 4)
    covered = masks != bare_masks
    assert covered.any() and (masks[covered] == 0).all()
    repainted = (images != bare_images).any(1)
    assert repainted[covered].mean() > 0.98, "what the mask leaves out is where the occluder was painted"


def test_bad_arguments_are_one_clear_error():
    for call in (lambda: draw_images(-1, 0), lambda: draw_images(3, -1), lambda: draw_scenes(-1, 0)):
        with pytest.raises(ValueError, match="0 or more"):
            call()
    for size in (0, -32, 100):
        with pytest.raises(ValueError, match="multiple of 32"):
            draw_scenes(1, 0, size)


def test_two_thousand_images_take_under_a_second():
    started = time.process_time()  # of this process: other work on the machine does not count
    draw_images(2000, 0)
    assert time.process_time() - started < 1.0

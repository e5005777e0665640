"""The embedded data: labelled images drawn from a seed, so that the lab runs without a file or a network.

Ten shapes in random colours, sizes and rotations lie on textured backgrounds, among distractors, under occluders and
noise; scenes add a mask and boxes. `painting` sets the difficulty: a ResNet-20 is to get 90-95 %.

The bytes are the same on every machine: the random bits are raw PCG64 output, whose stream NumPy guarantees, and the
arithmetic on them is elementwise + - * / and sqrt, which IEEE 754 defines exactly (no sin, exp, sum or matmul).
"""
from collections.abc import Iterator

import numpy as np
from numpy import ndarray

from .painting import Dice, Picture
from .shape_formulas import SHAPES

CLASSES = tuple(SHAPES)
TRAIN_SEED, TRAIN_SIZE = 0, 40_000  # the split every checkpoint of the embedded data was trained on
TEST_SEED, TEST_SIZE = 1, 10_000  # a different seed is a different, independent stream
MAX_OBJECTS = 6  # in a scene
MIN_VISIBLE = 16  # a scene's shape with fewer visible pixels counts as background: no mask, no box

_CHUNK_PIXELS = 100 * 32 * 32  # drawn at a time: what fits a core's cache


def draw_images(n: int, seed: int) -> tuple[ndarray, ndarray]:
    """n images uint8 [n, 3, 32, 32] and their labels int64 [n], indices into `CLASSES`.

    Each run of ten images holds each class once, in random order. The first images do not depend on n:
    draw_images(10, s) is the start of draw_images(1000, s). Raises ValueError for a negative n or seed.
    """
    images, labels = np.empty((max(n, 0), 3, 32, 32), np.uint8), np.empty(max(n, 0), np.int64)
    for part, dice, noise in _streams(n, seed, 32):
        label = dice.column().reshape(-1, 10).argsort(axis=1, kind="stable").reshape(-1, 1)
        picture = Picture(dice, 32, cells=1)
        picture.draw_object(label[:, 0], dice.near(16.0), dice.near(16.0), np.ones(len(noise), bool))
        kept = part.stop - part.start
        images[part], labels[part] = picture.finish(noise)[:kept], label[:kept, 0]
    return images, labels


def draw_scenes(n: int, seed: int, size: int = 96) -> tuple[ndarray, ndarray, list[ndarray], list[ndarray]]:
    """n scenes of 1 to `MAX_OBJECTS` shapes, at most one in each 32x32 cell (and reaching into its neighbours).

    Returns images uint8 [n, 3, size, size]; masks uint8 [n, size, size], 0 for background and 1 + class for a shape;
    and per scene the boxes float32 [k, 4] (x0, y0, x1, y1 in pixels, x1 and y1 exclusive, around the visible part) with
    their labels int64 [k]. Shapes that are covered nearly completely have neither mask nor box, so k can be 0.
    The first scenes do not depend on n. Raises ValueError for a negative n or seed or a size not a multiple of 32.
    """
    if size < 32 or size % 32:
        raise ValueError(f"scene size {size}: expected a positive multiple of 32, for example 96")
    images, masks = (np.zeros((max(n, 0), *shape), np.uint8) for shape in ((3, size, size), (size, size)))
    boxes, labels = [], []
    cells = size // 32
    slots = min(MAX_OBJECTS, cells * cells)
    for part, dice, noise in _streams(n, seed, size):
        kept = part.stop - part.start
        picture = Picture(dice, size, cells)
        places = np.stack([dice.column() for _ in range(cells * cells)], 1).argsort(axis=1, kind="stable")
        wanted = 1 + dice.below(slots)
        label = np.stack([dice.below(10) for _ in range(slots)], 1)
        for slot in range(slots):
            y, x = (32.0 * index + 16.0 for index in np.divmod(places[:, slot], cells))
            picture.draw_object(label[:, slot], dice.near(x), dice.near(y), slot < wanted)
        images[part] = picture.finish(noise)[:kept]
        found = [_annotate(picture.owner[i], label[i], masks[part.start + i]) for i in range(kept)]
        boxes += [box for box, _ in found]
        labels += [classes for _, classes in found]
    return images, masks, boxes, labels


def _annotate(owner: ndarray, label: ndarray, mask: ndarray) -> tuple[ndarray, ndarray]:
    """Fill the mask of one scene, and give boxes [k, 4] and labels [k] of the shapes seen in its owner map."""
    boxes, labels = [], []
    for slot, shape in enumerate(label):
        visible = owner == slot + 1
        if visible.sum() >= MIN_VISIBLE:
            rows, columns = visible.any(1).nonzero()[0], visible.any(0).nonzero()[0]
            boxes.append((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
            labels.append(shape)
            mask[visible] = shape + 1
    return np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, np.int64)


def _streams(n: int, seed: int, size: int) -> Iterator[tuple[slice, Dice, ndarray]]:
    """Yield (slice of the images, their dice, their noise in -1..1) chunk by chunk, the same bits for any n."""
    if n < 0 or seed < 0:
        raise ValueError(f"n = {n}, seed = {seed}: expected a number of images and a seed that are 0 or more")
    bits = np.random.PCG64(seed)
    pixels = 3 * size * size
    rolls = 2 * (200 + 60 * (size // 32) ** 2)  # bytes for the dice, more than any picture of this size uses
    supply = rolls + pixels
    chunk = max(10, _CHUNK_PIXELS // size**2 // 10 * 10)
    for start in range(0, n, chunk):
        stop = min(start + chunk, n)
        drawn = -(-(stop - start) // 10) * 10  # whole runs of ten, so that labels can be balanced
        raw = bits.random_raw(drawn * supply // 8).astype("<u8").view(np.uint8).reshape(drawn, supply)
        words = raw[:, :rolls].copy().view("<u2")
        noise = raw[:, rolls:].astype(np.float32).reshape(drawn, 3, size, size) / 127.5 - 1.0
        yield slice(start, stop), Dice(words), noise

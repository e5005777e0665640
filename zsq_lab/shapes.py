"""The embedded data: labelled images drawn from a seed, so that the lab runs without a file or a network.

Ten shapes in random colours, sizes and rotations lie on textured backgrounds, among distractors, under occluders and
noise; scenes add a mask and boxes. The numbers below set the difficulty: a ResNet-20 is to get 90-95 %.

The bytes are the same on every machine: the random bits are raw PCG64 output, whose stream NumPy guarantees, and the
arithmetic on them is elementwise + - * / and sqrt, which IEEE 754 defines exactly (no sin, exp, sum or matmul).
"""
import numpy as np
from numpy import ndarray

CLASSES = ("disc", "ring", "crescent", "triangle", "square", "bar", "cross", "star", "heart", "arrow")
TRAIN_SEED, TRAIN_SIZE = 0, 40_000  # the split every checkpoint of the embedded data was trained on
TEST_SEED, TEST_SIZE = 1, 10_000  # a different seed is a different, independent stream

# Difficulty. Lengths in pixels, colours and amplitudes in 0..1.
RADIUS = (6.0, 12.0)  # of a shape in a 32x32 image, and of one in a scene's 32x32 cell
TURN = 0.3  # tangent of half the greatest rotation of a shape: 0.3 is 33 degrees, 1.0 is 90
OFFSET = 5.0  # how far a centre may lie from the middle of the image or cell
CONTRAST = (0.20, 0.80)  # distance of a shape's colour from the background's, per channel
NOISE = (0.02, 0.20)  # amplitude of uniform pixel noise; small values are more likely
TEXTURE = 0.10  # greatest amplitude of each background gradient, stripe and blotch
OCCLUDERS, OCCLUDER_CHANCE = 2, 0.35  # how many may cover a shape, and how likely each one is there
OCCLUDER_SIDE = (0.3, 0.8)  # half of its length, as a share of the shape's radius
DISTRACTORS, DISTRACTOR_CHANCE = 2, 0.5  # patches behind the shapes, per image or cell
DISTRACTOR_SIDE = (1.5, 4.5)  # half of its length
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
        picture = _Picture(dice, 32, cells=1)
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
        picture = _Picture(dice, size, cells)
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


class _Dice:
    """Uniform 16-bit numbers, a fixed supply for each of n images: every call takes the next column."""

    def __init__(self, words: ndarray):
        self.words, self.used = words, 0

    def column(self) -> ndarray:
        self.used += 1
        return self.words[:, self.used - 1].astype(np.int64)

    def below(self, k: int) -> ndarray:
        return self.column() * k >> 16

    def uniform(self, low: float = -1.0, high: float = 1.0) -> ndarray:
        """float32 [n, 1, 1]"""
        return (self.column().astype(np.float32) * ((high - low) / 65536) + low)[:, None, None]

    def colour(self, low: float = -1.0, high: float = 1.0) -> ndarray:
        """float32 [n, 3, 1, 1]"""
        return np.stack([self.uniform(low, high) for _ in range(3)], 1)

    def near(self, middle: ndarray | float) -> ndarray:
        return self.uniform(-OFFSET, OFFSET) + np.asarray(middle, np.float32).reshape(-1, 1, 1)

    def chance(self, probability: float) -> ndarray:
        return self.uniform(0.0, 1.0)[:, 0, 0] < probability


def _streams(n: int, seed: int, size: int):
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
        yield slice(start, stop), _Dice(words), noise


class _Picture:
    """n canvases, painted from back to front; `owner` keeps which object each pixel shows (0 for none)."""

    def __init__(self, dice: _Dice, size: int, cells: int):
        self.dice, self.size, self.objects = dice, size, 0
        self.axis = np.arange(size, dtype=np.float32) + 0.5
        self.noise_amplitude = dice.uniform(0.0, 1.0)
        self.base = dice.colour(0.2, 0.8)
        count = len(self.base)
        self.owner = np.zeros((count, size, size), np.uint8)
        self.canvas = np.broadcast_to(self.base, (count, 3, size, size)).copy()
        u, v = self._local(size / 2, size / 2, size / 2)
        self.canvas += dice.colour(-TEXTURE, TEXTURE) * u[:, None]
        self.canvas += dice.colour(-TEXTURE, TEXTURE) * _stripes(v * (cells * dice.uniform(0.5, 4.0)))[:, None]
        self.canvas += dice.colour(-TEXTURE, TEXTURE) * self._blotches()[:, None]
        for index in range(DISTRACTORS * cells * cells):
            x, y, side = dice.uniform(0, size), dice.uniform(0, size), dice.uniform(*DISTRACTOR_SIDE)
            self._patch(index, x, y, side, DISTRACTOR_CHANCE)

    def draw_object(self, label: ndarray, x: ndarray, y: ndarray, present: ndarray) -> None:
        """Paint a shape (where present [n]) with its centre at x, y [n, 1, 1], then its occluders."""
        dice = self.dice
        radius = dice.uniform(*RADIUS)
        u, v = self._local(x, y, radius, TURN)
        distance = np.full(u.shape, 9.0, np.float32)  # outside
        for index, shape in enumerate(_SHAPES):
            chosen = np.flatnonzero((label == index) & present)
            distance[chosen] = shape(u[chosen], v[chosen])
        sign = np.where(dice.chance(0.5), 1.0, -1.0).astype(np.float32)[:, None, None]  # lighter or darker
        step = dice.colour(-0.3, 1.0) * (sign * dice.uniform(*CONTRAST))[:, None]
        fill = self.base + step * (1.0 + 0.4 * _stripes(u * dice.uniform(0.0, 2.0))[:, None])
        self.objects += 1
        self._paint(distance * radius, fill, self.objects)
        for index in range(OCCLUDERS):
            reach = [dice.uniform(-0.9, 0.9) * radius for _ in range(2)]
            side = dice.uniform(*OCCLUDER_SIDE) * radius
            self._patch(index, x + reach[0], y + reach[1], side, OCCLUDER_CHANCE, present)

    def finish(self, noise: ndarray) -> ndarray:
        """Add the noise (-1..1, like the canvas) and round to uint8 [n, 3, size, size]."""
        share = self.noise_amplitude * self.noise_amplitude  # squared: mostly small
        noise *= (NOISE[0] + (NOISE[1] - NOISE[0]) * share)[:, None]
        noise += self.canvas
        noise *= 255.0
        noise += 0.5
        return np.clip(noise, 0.0, 255.0, out=noise).astype(np.uint8)

    def _local(self, x, y, radius, turn=1.0) -> tuple[ndarray, ndarray]:
        """Coordinates [n, size, size] in a frame at x, y, turned by a random angle, with `radius` as its unit."""
        t = self.dice.uniform(-turn, turn)  # the rational points of the circle: cos = (1-t^2)/(1+t^2), sin = 2t/(1+t^2)
        scale = 1.0 / ((1.0 + t * t) * radius)
        cos, sin = (1.0 - t * t) * scale, 2.0 * t * scale
        dx, dy = self.axis[None, None, :] - x, self.axis[None, :, None] - y
        return cos * dx + sin * dy, cos * dy - sin * dx

    def _blotches(self) -> ndarray:
        """Smooth random field [n, size, size] in -1..1: random values every eight pixels, interpolated."""
        knots = self.size // 8 + 1
        values = np.concatenate([self.dice.uniform() for _ in range(knots * knots)], 1).reshape(-1, knots, knots)
        low = (self.axis / 8).astype(np.int64)
        weight = (self.axis / 8 - low).astype(np.float32)
        values = values[:, low] + weight[:, None] * (values[:, low + 1] - values[:, low])
        return values[:, :, low] + weight * (values[:, :, low + 1] - values[:, :, low])

    def _patch(self, index, x, y, side, chance, present=True) -> None:
        """A flat rhombus (even index) or half disc (odd); neither is a class, so a patch is never a wrong answer."""
        u, v = self._local(x, y, 1.0)
        there = self.dice.chance(chance) & present
        side = np.where(there[:, None, None], side, np.float32(-9.0))  # a negative side draws nothing
        if index % 2:
            distance = np.maximum(np.sqrt(u * u + v * v) - side, u)
        else:
            distance = (np.abs(u) + 2.0 * np.abs(v) - side) * 0.4472136
        self._paint(distance, self.base + self.dice.colour(-0.5, 0.5), 0)

    def _paint(self, distance: ndarray, fill: ndarray, owner: int) -> None:
        """Lay `fill` over the pixels where the signed distance [n, size, size] (in pixels) is negative, soft edges."""
        self.owner[distance < 0] = owner
        cover = np.clip(0.5 - distance, 0.0, 1.0)[:, None]
        change = fill - self.canvas
        change *= cover
        self.canvas += change


def _stripes(phase: ndarray) -> ndarray:
    """Triangle wave in -1..1, one period per unit."""
    return np.abs(phase - np.floor(phase) - 0.5) * 4.0 - 1.0


# Signed distances to the shapes, in units of the radius: negative inside, and at least of the right order outside.


def _disc(u, v, radius=0.85):
    return np.sqrt(u * u + v * v) - radius


def _ring(u, v):
    return np.abs(_disc(u, v, 0.72)) - 0.24


def _crescent(u, v):
    return np.maximum(_disc(u, v, 1.0), -_disc(u - 0.5, v, 0.8))


def _triangle(u, v):
    return np.maximum(v * -1.0, np.abs(u) * 0.8660254 + v * 0.5) - 0.55


def _square(u, v):
    return np.maximum(np.abs(u), np.abs(v)) - 0.75


def _bar(u, v):
    return np.maximum(np.abs(u) - 1.0, np.abs(v) - 0.34)


def _cross(u, v):
    u, v = np.abs(u), np.abs(v)
    return np.maximum(np.maximum(u, v) - 0.95, np.minimum(u, v) - 0.28)


def _star(u, v):
    """Five-pointed: inside at least four of five half planes, so the second largest of their distances counts."""
    largest = second = None
    for normal_u, normal_v in ((0.0, 1.0), (0.95105652, 0.30901699), (-0.95105652, 0.30901699),
                               (0.58778525, -0.80901699), (-0.58778525, -0.80901699)):
        side = normal_u * u + normal_v * v
        if largest is None:
            largest, second = side, np.full_like(side, -9.0)
        else:
            second = np.maximum(second, np.minimum(largest, side))
            largest = np.maximum(largest, side)
    return second - 0.36


def _heart(u, v):
    u = np.abs(u)
    return np.minimum((u + np.abs(v) - 0.8) * 0.70710678,
                      _disc(u - 0.4, v + 0.4, 0.56568542))


def _arrow(u, v):
    v = np.abs(v)
    shaft = np.maximum(v - 0.22, np.abs(u + 0.4) - 0.6)
    head = np.maximum(-u, (u + v - 1.0) * 0.70710678)
    return np.minimum(shaft, np.maximum(head, v - 0.8))


_SHAPES = (_disc, _ring, _crescent, _triangle, _square, _bar, _cross, _star, _heart, _arrow)

"""How a picture of the embedded data is painted, from the background to the last occluder, and how hard it is to read.

Each part of a picture throws its dice whether it is seen or not, so that a chance or an amplitude can be changed while
everything else in the picture stays. n pictures are painted at a time, one array operation for all.
"""
import numpy as np
from numpy import ndarray

from .shape_formulas import SHAPES

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


class Dice:
    """Uniform 16-bit numbers, a fixed supply for each of n images: every call takes the next column."""

    def __init__(self, words: ndarray):
        self.words, self.used = words, 0

    def column(self) -> ndarray:
        """int64 [n], 0..65535"""
        self.used += 1
        return self.words[:, self.used - 1].astype(np.int64)

    def below(self, k: int) -> ndarray:
        """int64 [n], 0..k - 1"""
        return self.column() * k >> 16

    def uniform(self, low: float = -1.0, high: float = 1.0) -> ndarray:
        """float32 [n, 1, 1]"""
        return (self.column().astype(np.float32) * ((high - low) / 65536) + low)[:, None, None]

    def colour(self, low: float = -1.0, high: float = 1.0) -> ndarray:
        """float32 [n, 3, 1, 1]"""
        return np.stack([self.uniform(low, high) for _ in range(3)], 1)

    def near(self, middle: ndarray | float) -> ndarray:
        """float32 [n, 1, 1], at most `OFFSET` away from the middle"""
        return self.uniform(-OFFSET, OFFSET) + np.asarray(middle, np.float32).reshape(-1, 1, 1)

    def chance(self, probability: float) -> ndarray:
        """bool [n]"""
        return self.uniform(0.0, 1.0)[:, 0, 0] < probability


class Picture:
    """n canvases, painted from back to front; `owner` keeps which object each pixel shows (0 for none).

    size: side in pixels. cells: 32x32 cells along a side, which distractors and stripes are counted by.
    """

    def __init__(self, dice: Dice, size: int, cells: int):
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
        for index, shape in enumerate(SHAPES.values()):
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

"""The ten shapes as formulas: the signed distance of a point to the outline, negative inside.

u, v: coordinates (any equal shape) in the frame of the shape, whose radius is 1; v points down, as in an image. Outside
the distance is at least of the right order, which soft edges need. Nothing but + - * /, sqrt, abs, minimum and maximum:
IEEE 754 defines them exactly, so that a shape has the same pixels on every machine.
"""
import numpy as np
from numpy import ndarray


def disc(u: ndarray, v: ndarray, radius: float = 0.85) -> ndarray:
    return np.sqrt(u * u + v * v) - radius


def ring(u: ndarray, v: ndarray) -> ndarray:
    return np.abs(disc(u, v, 0.72)) - 0.24


def crescent(u: ndarray, v: ndarray) -> ndarray:
    return np.maximum(disc(u, v, 1.0), -disc(u - 0.5, v, 0.8))


def triangle(u: ndarray, v: ndarray) -> ndarray:
    return np.maximum(v * -1.0, np.abs(u) * 0.8660254 + v * 0.5) - 0.55


def square(u: ndarray, v: ndarray) -> ndarray:
    return np.maximum(np.abs(u), np.abs(v)) - 0.75


def bar(u: ndarray, v: ndarray) -> ndarray:
    return np.maximum(np.abs(u) - 1.0, np.abs(v) - 0.34)


def cross(u: ndarray, v: ndarray) -> ndarray:
    u, v = np.abs(u), np.abs(v)
    return np.maximum(np.maximum(u, v) - 0.95, np.minimum(u, v) - 0.28)


def star(u: ndarray, v: ndarray) -> ndarray:
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


def heart(u: ndarray, v: ndarray) -> ndarray:
    u = np.abs(u)
    return np.minimum((u + np.abs(v) - 0.8) * 0.70710678, disc(u - 0.4, v + 0.4, 0.56568542))


def arrow(u: ndarray, v: ndarray) -> ndarray:
    v = np.abs(v)
    shaft = np.maximum(v - 0.22, np.abs(u + 0.4) - 0.6)
    head = np.maximum(-u, (u + v - 1.0) * 0.70710678)
    return np.minimum(shaft, np.maximum(head, v - 0.8))


SHAPES = {"disc": disc, "ring": ring, "crescent": crescent, "triangle": triangle, "square": square, "bar": bar,
          "cross": cross, "star": star, "heart": heart, "arrow": arrow}

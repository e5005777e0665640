"""The formulas of the ten shapes: their areas, distances and symmetries are what geometry says."""
import numpy as np
import pytest

from zsq_lab.shape_formulas import SHAPES, disc, square

AXIS = (np.arange(1200, dtype=np.float32) + 0.5) / 500 - 1.2
U, V = np.meshgrid(AXIS, AXIS)  # a fine grid over [-1.2, 1.2]^2
INSIDE = {name: shape(U, V) < 0 for name, shape in SHAPES.items()}
AREA = {name: region.sum() / 500**2 for name, region in INSIDE.items()}


def test_areas_are_those_of_geometry():
    star_radius = 0.36 / ((5**0.5 - 1) / 4)  # inradius of the inner pentagon / cos 72 degrees
    expected = {"disc": np.pi * 0.85**2, "ring": np.pi * (0.96**2 - 0.48**2), "square": 1.5**2, "bar": 2 * 0.68,
                "cross": 2 * 1.9 * 0.56 - 0.56**2, "triangle": 3 * 3**0.5 * 0.55**2, "star": 1.12257 * star_radius**2}
    for name, value in expected.items():
        assert AREA[name] == pytest.approx(value, rel=0.01), name


@pytest.mark.parametrize("name", SHAPES)
def test_each_shape_is_whole_and_neither_a_speck_nor_a_blot(name):
    region = INSIDE[name]
    assert 0.5 < AREA[name] < 2.4
    assert not region[[0, -1]].any() and not region[:, [0, -1]].any(), "cut off"


def test_distances_by_hand():
    points = np.float32([[0, 0], [3, 4], [0.75, 0.1]])
    assert disc(*points.T) == pytest.approx([-0.85, 4.15, np.hypot(0.75, 0.1) - 0.85], abs=1e-6)
    assert square(*points.T) == pytest.approx([-0.75, 3.25, 0], abs=1e-6)


@pytest.mark.parametrize("name, mirrored", [("triangle", "u"), ("star", "u"), ("heart", "u"), ("arrow", "v"),
                                            ("crescent", "v"), ("cross", "uv"), ("bar", "uv"), ("ring", "uv")])
def test_mirror_images(name, mirrored):
    for direction, flipped in (("u", INSIDE[name][:, ::-1]), ("v", INSIDE[name][::-1])):
        same = (flipped == INSIDE[name]).mean() > 0.999
        assert same == (direction in mirrored)


def test_no_two_shapes_are_alike():
    """The part of their union that two shapes share, at most: what a network has to tell apart."""
    names = list(SHAPES)
    for i, first in enumerate(names):
        for second in names[:i]:
            one, other = INSIDE[first], INSIDE[second]
            assert (one & other).sum() / (one | other).sum() < 0.9, (first, second)

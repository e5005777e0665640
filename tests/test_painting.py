"""Dice that come in a fixed order, and pictures whose parts keep to their places and to their own dice."""
import numpy as np
import pytest

from zsq_lab import painting
from zsq_lab.painting import Dice, Picture

N = 40


def dice(seed: int = 0, columns: int = 900) -> Dice:
    return Dice(np.random.default_rng(seed).integers(0, 1 << 16, (N, columns), dtype=np.uint16))


def middle() -> np.ndarray:
    return np.full((N, 1, 1), 16, np.float32)


def painted(label: int, present: bool = True, seed: int = 0) -> Picture:
    """N pictures of one class at the centre."""
    picture = Picture(dice(seed), 32, cells=1)
    picture.draw_object(np.full(N, label), middle(), middle(), np.full(N, present))
    return picture


def test_dice_by_hand():
    words = np.array([[0, 0x8000, 0xFFFF, 0x4000]], np.uint16)
    assert [int(Dice(words[:, i:]).below(10)[0]) for i in range(4)] == [0, 5, 9, 2]
    assert [float(Dice(words[:, i:]).uniform().item()) for i in (0, 1, 3)] == [-1, 0, -0.5]
    assert Dice(words).near(3.0) == 3 - painting.OFFSET
    assert [bool(Dice(words[:, i:]).chance(0.5)[0]) for i in range(4)] == [True, False, False, True]


def test_each_call_takes_the_next_column():
    one, other = dice(), dice()
    assert one.colour(0, 1).shape == (N, 3, 1, 1)
    first = np.stack([other.uniform(0, 1) for _ in range(3)], 1)
    assert np.array_equal(first, dice().colour(0, 1)) and one.used == other.used == 3


def test_the_owner_map_shows_the_shape_and_nothing_where_there_is_none():
    disc = painted(0)
    assert set(np.unique(disc.owner)) == {0, 1}
    away = np.hypot(disc.axis - 16, (disc.axis - 16)[:, None]) > 0.85 * painting.RADIUS[1]
    assert not disc.owner[:, away].any(), "outside the largest disc"
    assert (disc.owner.reshape(N, -1).sum(1) > 0).all()
    assert not painted(0, present=False).owner.any()


def test_the_class_changes_the_shape_and_no_other_throw():
    disc, ring = painted(0), painted(1)
    assert disc.dice.used == ring.dice.used == painted(0, present=False).dice.used
    background = np.hypot(disc.axis - 16, (disc.axis - 16)[:, None]) > 1.9 * painting.RADIUS[1]
    assert np.array_equal(disc.canvas[:, :, background], ring.canvas[:, :, background])
    assert (disc.owner != ring.owner).any()


def test_a_chance_changes_only_what_it_is_the_chance_of(monkeypatch):
    with_occluders = painted(4)
    monkeypatch.setattr(painting, "OCCLUDER_CHANCE", 0.0)
    without = painted(4)
    lost = (without.owner == 1) & (with_occluders.owner == 0)
    assert lost.any() and not ((without.owner == 0) & (with_occluders.owner == 1)).any()
    untouched = (without.canvas == with_occluders.canvas).all(1)
    assert untouched.any((1, 2)).all() and not untouched[lost].all()


@pytest.mark.parametrize("noise", [-1.0, 0.0, 1.0])
def test_finish_adds_noise_and_rounds(noise):
    picture = painted(2)
    strength = painting.NOISE[0] + (painting.NOISE[1] - painting.NOISE[0]) * picture.noise_amplitude**2
    exact = 255 * (picture.canvas + noise * strength[:, None])
    image = picture.finish(np.full(picture.canvas.shape, noise, np.float32))
    assert image.dtype == np.uint8
    assert np.abs(image - exact.clip(0, 255)).max() <= 0.51

"""Packing: every width and size comes back, as tight and in the order that NumPy's own bits say."""
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zsq_lab.packing import pack, packed_bytes, unpack


@given(bits=st.integers(2, 16), size=st.integers(0, 70), seed=st.integers(0, 99))
def test_round_trip_of_all_widths_and_odd_sizes(bits, size, seed):
    codes = np.random.default_rng(seed).integers(0, 2**bits, size)
    data = pack(codes, bits)
    assert data.dtype == np.uint8 and len(data) == packed_bytes(size, bits)
    assert np.array_equal(unpack(data, bits, size), codes)


@given(bits=st.integers(2, 8), size=st.integers(1, 40), seed=st.integers(0, 9))
def test_the_bits_lie_as_numpy_packs_them(bits, size, seed):
    codes = np.random.default_rng(seed).integers(0, 2**bits, size)
    one_by_one = (codes[:, None] >> np.arange(bits)) & 1
    assert np.array_equal(pack(codes, bits), np.packbits(one_by_one.astype(np.uint8), bitorder="little"))


def test_by_hand():
    assert pack(np.array([1, 2, 3]), 4).tolist() == [0x21, 0x03]  # two to a byte, the first one low
    assert pack(np.array([[7, 0], [1, 5]]), 3).tolist() == [0b01000111, 0b1010]
    assert pack(np.array([0x1AB, 0x0CD]), 9).tolist() == [0xAB, 0xCD, 0b01]


@pytest.mark.parametrize("codes, bits", [([16], 4), ([-1], 4), ([3, 4], 2), ([2**16], 16)])
def test_codes_that_do_not_fit_are_refused(codes, bits):
    with pytest.raises(ValueError, match=f"codes of {bits} bits lie in 0..{2**bits - 1}"):
        pack(np.array(codes), bits)


@pytest.mark.parametrize("bits", [1, 17])
def test_other_widths_are_refused(bits):
    with pytest.raises(ValueError, match="from 2 to 16"):
        pack(np.zeros(3, int), bits)
    with pytest.raises(ValueError, match="from 2 to 16"):
        unpack(np.zeros(3, np.uint8), bits, 3)


@pytest.mark.parametrize("bits", [3, 4, 8, 11])
def test_data_of_another_length_is_refused(bits):
    data = pack(np.arange(4), bits)
    for wrong in (data[:-1], np.append(data, data[:1])):
        with pytest.raises(ValueError, match=f"4 codes of {bits} bits are {len(data)} bytes"):
            unpack(wrong, bits, 4)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_five_million_weights_take_a_fifth_of_a_second(bits):
    codes = np.random.default_rng(0).integers(0, 2**bits, 5_000_000, np.uint8)
    seconds = []
    for _ in range(3):  # of this process: other work on the machine does not count, but for the memory it shares
        started = time.process_time()
        back = unpack(pack(codes, bits), bits, codes.size)
        seconds.append(time.process_time() - started)
    assert np.array_equal(back, codes)
    assert min(seconds) < 0.4, "twice the 0.2 s of a quiet machine"
    print(f"{bits} bits: {min(seconds):.3f} s")

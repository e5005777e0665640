"""Freed memory that stays: asked of the C library where it is glibc's, and only large images count as large."""
import ctypes
import subprocess
import sys

import pytest

from zsq_lab import memory
from zsq_lab.memory import is_large, keep_freed_memory


@pytest.mark.parametrize("shape, large", [((3, 128, 128), True), ((3, 224, 224), True), ((3, 64, 256), True),
                                          ((3, 127, 128), False), ((3, 32, 32), False), ((40000,), False),
                                          ((9, 500), False)])
def test_an_image_is_large_by_its_pixels(shape, large):
    assert is_large(shape) is large


def test_both_limits_are_set_and_only_success_is_reported(monkeypatch):
    monkeypatch.setattr(memory.sys, "platform", "linux")
    for answers, expected in (((1, 1), True), ((0, 1), False), ((1, 0), False)):
        calls, left = [], list(answers)

        class Library:
            def mallopt(self, option, value, calls=calls, left=left):
                calls.append((option, value))
                return left.pop(0)
        monkeypatch.setattr(ctypes, "CDLL", lambda name: Library())
        assert keep_freed_memory() is expected
        assert calls[0] == (-4, 0) and (len(calls) == 1 or calls[1][0] == -1 and calls[1][1] > 2**30)


def test_elsewhere_nothing_is_asked(monkeypatch):
    monkeypatch.setattr(memory.sys, "platform", "win32")
    assert keep_freed_memory() is False
    monkeypatch.setattr(memory.sys, "platform", "linux")
    for error in (OSError, AttributeError):  # no such library, or another C library

        def fail(name, error=error):
            raise error
        monkeypatch.setattr(ctypes, "CDLL", fail)
        assert keep_freed_memory() is False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc has this")
def test_a_process_keeps_what_it_has_freed():
    """Eighty megabytes that were freed are still the process's; without the call they went back to the system."""
    code = """
import ctypes, sys
if sys.argv[1] == "keep":
    sys.path.insert(0, sys.argv[2])
    from zsq_lab.memory import keep_freed_memory
    if not keep_freed_memory():
        print(-1); sys.exit()
libc = ctypes.CDLL("libc.so.6")
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
place = libc.malloc(80_000_000)
ctypes.memset(place, 1, 80_000_000)
libc.free(place)
print(next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS")))
"""
    root = str(memory.__file__).rsplit("/", 2)[0]
    kept, plain = (int(subprocess.run([sys.executable, "-c", code, how, root], capture_output=True, text=True,
                                      check=True).stdout) for how in ("keep", "plain"))
    if kept < 0:
        pytest.skip("another C library")
    assert kept - plain > 60_000, "in kB"

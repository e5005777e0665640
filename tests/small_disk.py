"""A disk that is soon full, for the tests of what is written to one."""
import os
import shutil
import subprocess

import pytest


@pytest.fixture
def full_disk(tmp_path):
    """A folder on a disk of 256 kB, and a call that fills it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = shutil.which("mount") and hasattr(os, "geteuid") and os.geteuid() == 0 and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True).returncode == 0
    if not mounted:
        pytest.skip("only root can mount a small disk")

    def fill() -> None:
        try:
            with open(folder / "filler", "ab", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
        except OSError:
            pass
    yield folder, fill
    subprocess.run(["umount", "--lazy", str(folder)], check=True)  # a failed test may have left a file open on it

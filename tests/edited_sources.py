"""A copy of the module's sources to be changed: digests of code then look at it, and nothing that runs does."""
import shutil

import pytest

from zsq_lab import code_version
from zsq_lab.results import weights_version


@pytest.fixture
def fresh():
    """Digests are worked out anew, before, when asked and after."""
    def clear():
        for kept in (code_version.code_version, code_version.files_version, weights_version):
            kept.cache_clear()
    clear()
    yield clear
    clear()


@pytest.fixture
def edit(tmp_path, monkeypatch, fresh):
    """edit(file, old, new): change the copy."""
    copy = tmp_path / "sources"
    copy.mkdir()
    for file in code_version.PACKAGE.glob("*.py"):
        shutil.copy(file, copy)
    monkeypatch.setattr(code_version, "PACKAGE", copy)

    def change(file: str, old: str, new: str) -> None:
        text = (copy / file).read_text(encoding="utf-8")
        assert old in text, f"the test is outdated: {file} has no {old!r}"
        (copy / file).write_text(text.replace(old, new, 1), encoding="utf-8")
        fresh()
    return change

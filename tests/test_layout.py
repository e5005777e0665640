"""The shape of the project: a test file for each file of the module, and files that can be held in the head."""
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULE = sorted((ROOT / "zsq_lab").glob("*.py"))


@pytest.mark.parametrize("file", MODULE, ids=lambda file: file.stem)
def test_each_file_of_the_module_is_of_one_idea_and_has_tests_of_its_own(file):
    tests = ROOT / "tests" / f"test_{file.stem.strip('_')}.py"
    assert tests.is_file(), f"{file.name} has no tests: expected {tests.name}"
    assert "def test_" in tests.read_text(encoding="utf-8")
    source = file.read_text(encoding="utf-8")
    assert source.count("\n") <= 250, f"{file.name} is long: split it by idea"
    assert source.startswith('"""') and len(source.split('"""')[1].split()) >= 5, f"{file.name} does not say what it is for"

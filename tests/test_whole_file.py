"""Files that are there whole or not at all, whoever else writes at the same time."""
from contextlib import ExitStack

import pytest

from zsq_lab.whole_file import beside, whole


def test_a_file_is_there_at_the_end_and_not_before(tmp_path):
    file = tmp_path / "new" / "folder" / "file.txt"
    with whole(file) as partial:
        partial.write_text("new")
        assert not file.exists() and partial.parent == file.parent
    assert file.read_text() == "new" and list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_where_the_end_is_not_reached_the_old_file_stays_alone(tmp_path, error):
    file = tmp_path / "file.txt"
    file.write_text("old")
    with pytest.raises(error), whole(file) as partial:
        partial.write_text("half of the n")
        raise error
    assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("names", [("w4a4.seed0", "w4a4.seed1"), ("m.onnx", "m.safetensors"), ("same", "same")])
def test_writings_at_once_do_not_meet(tmp_path, names):
    """The one that began first ends last, and counts where both have one name."""
    with ExitStack() as stack:
        partials = [stack.enter_context(whole(tmp_path / name)) for name in names]
        for partial, name, text in zip(partials, names, "ab", strict=True):
            partial.write_text(f"{text} of {name}")
    assert (tmp_path / names[0]).read_text() == f"a of {names[0]}"
    assert names[0] == names[1] or (tmp_path / names[1]).read_text() == f"b of {names[1]}"
    assert {path.name for path in tmp_path.iterdir()} == set(names)


def test_a_name_is_nobody_elses(tmp_path):
    file = tmp_path / "net.v1"
    names = {beside(file) for _ in range(100)}
    assert len(names) == 100
    assert all(path.parent == tmp_path and path.name.startswith("net.v1.") and path.suffix == ".partial" for path in names)


def test_a_file_that_was_not_written_is_an_error(tmp_path):
    with pytest.raises(OSError), whole(tmp_path / "file"):
        pass
    assert not list(tmp_path.iterdir())

"""What the commands share: numbers are checked as they are read, trouble is one line, answers are text or JSON."""
import argparse
import json
import os
import shutil
import subprocess

import pytest

from zsq_lab.arguments import (
    Parser,
    WrongArgument,
    answer,
    bit_width,
    known,
    positive,
    rate,
    seed,
    share,
    writable,
)


@pytest.mark.parametrize("text, bits", [("2", 2), ("8", 8), ("16", 16)])
def test_a_bit_width_is_a_whole_number_from_2_to_16(text, bits):
    assert bit_width(text) == bits


@pytest.mark.parametrize("text", ["1", "17", "0", "-4", "4.0", "four", "", " 4", "1e1"])
def test_anything_else_is_named(text):
    with pytest.raises(argparse.ArgumentTypeError, match=f"'{text}' is not a bit width: expected .* 2 to 16"):
        bit_width(text)


def test_a_count_is_at_least_1():
    assert (positive("1"), positive("10000")) == (1, 10000)
    for text in ("0", "-1", "1.5", "many", ""):
        with pytest.raises(argparse.ArgumentTypeError, match=f"'{text}' is not a whole number of at least 1"):
            positive(text)


def test_a_message_that_ends_in_a_period_keeps_one(capsys):
    with pytest.raises(SystemExit):
        Parser(prog="zsq").error("the table is of another kind. Name another file.")
    assert capsys.readouterr().err == "zsq_lab: the table is of another kind. Name another file. See `zsq --help`.\n"


@pytest.mark.parametrize("arguments, named", [([], "--bits"), (["--bits", "1"], "2 to 16"),
                                              (["--bits", "4", "more"], "more")])
def test_a_wrong_argument_is_one_line_and_status_2(capsys, arguments, named):
    parser = Parser(prog="lab")
    parser.add_argument("--bits", type=bit_width, required=True)
    with pytest.raises(SystemExit) as stop:
        parser.parse_args(arguments)
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and out == ""
    assert len(err.splitlines()) == 1 and err.startswith("zsq_lab: ") and named in err and "`lab --help`" in err


def test_what_the_arguments_are_not_to_blame_for_is_one_line_and_status_1(capsys):
    with pytest.raises(SystemExit) as stop:
        Parser(prog="lab").fail(RuntimeError("no memory\n  left"))
    assert stop.value.code == 1 and capsys.readouterr().err == "zsq_lab: no memory left\n"


def test_an_answer_is_text_or_one_json_object(capsys):
    fields = {"accuracy": 91.5, "seconds_left": None}
    answer(argparse.Namespace(json=False), fields, "91.5 %")
    assert capsys.readouterr().out == "91.5 %\n"
    answer(argparse.Namespace(json=True), fields, "91.5 %")
    assert json.loads(capsys.readouterr().out) == fields


@pytest.mark.parametrize("kind, good, bad, named", [
    (seed, {"0": 0, "4294967295": 2**32 - 1}, ("-1", "4294967296", "1.5", "first", ""), "not a seed"),
    (rate, {"0.1": 0.1, "1e-9": 1e-9, "3": 3.0}, ("0", "-1", "nan", "inf", "fast", ""), "not a rate"),
    (share, {"0.15": 0.15, "1": 1.0}, ("0", "1.01", "-0.5", "nan", "half", ""), "no share of the float size")])
def test_seeds_rates_and_shares_are_checked_as_they_are_read(kind, good, bad, named):
    assert {text: kind(text) for text in good} == good
    for text in bad:
        with pytest.raises(argparse.ArgumentTypeError, match=f"'{text}' is {named}"):
            kind(text)


def test_a_name_that_is_not_known_lists_those_that_are():
    known("recipe", "a", ["a", "b"])
    with pytest.raises(WrongArgument, match="unknown recipe 'c': expected one of a, b"):
        known("recipe", "c", {"a": 1, "b": 2})


def test_a_file_to_be_written_has_a_folder_before_the_work(tmp_path):
    writable(None)
    writable(tmp_path / "new" / "deep" / "file.csv")
    assert [path.name for path in tmp_path.rglob("*")] == ["new", "deep"], "the folder, not the file"
    (tmp_path / "file").touch()
    writable(tmp_path / "file")  # may be overwritten
    with pytest.raises(WrongArgument, match="--csv .*new is a folder: name a file"):
        writable(tmp_path / "new", "--csv")
    for inside in ("file/x", "file/deep/x"):
        with pytest.raises(WrongArgument, match="--out .*x is inside of a file"):
            writable(tmp_path / inside)


def test_a_folder_that_takes_no_files_is_named_before_the_work(tmp_path):
    folder = tmp_path / "locked"
    folder.mkdir()
    root = hasattr(os, "geteuid") and os.geteuid() == 0  # to whom permissions mean nothing, but a read-only disk does
    if root and (not shutil.which("mount") or subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(folder)],
                                                             capture_output=True).returncode):
        pytest.skip("root needs a read-only disk, and cannot mount one")
    folder.chmod(0o555) if not root else None
    try:
        with pytest.raises(WrongArgument, match="--csv .*x.csv: no permission to write to .*locked: name another folder"):
            writable(folder / "x.csv", "--csv")
        with pytest.raises(WrongArgument, match="--out .*: .*new cannot be made .*: name another folder"):
            writable(folder / "new" / "x")
    finally:
        subprocess.run(["umount", str(folder)], check=True) if root else folder.chmod(0o755)

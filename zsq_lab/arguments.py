"""What the commands share: one-line errors, checked numbers, and an answer in text or JSON."""
import argparse
import json
import math
import os
from collections.abc import Iterable
from pathlib import Path


class Parser(argparse.ArgumentParser):
    """Reports a wrong argument in one line instead of a page of usage."""

    def error(self, message: str):
        self.exit(2, f"zsq_lab: {message.rstrip('.')}. See `{self.prog} --help`.\n")

    def fail(self, error: Exception):
        """End with exit status 1 and the error as one line: the arguments are not to blame."""
        self.exit(1, f"zsq_lab: {' '.join(str(error).split())}\n")


class WrongArgument(ValueError):
    """An argument that argparse could not check: exit status 2."""


def bit_width(text: str) -> int:
    if not text.isdigit() or not 2 <= int(text) <= 16:
        raise argparse.ArgumentTypeError(f"'{text}' is not a bit width: expected a whole number from 2 to 16")
    return int(text)


def positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of at least 1")
    return int(text)


def seed(text: str) -> int:
    if not text.isdigit() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"'{text}' is not a seed: expected a whole number from 0 to 2**32 - 1")
    return int(text)


def rate(text: str) -> float:
    if not 0 < (value := _number(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"'{text}' is not a rate: expected a number above 0")
    return value


def share(text: str) -> float:
    if not 0 < (value := _number(text)) <= 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no share of the float size: expected a number above 0, at most 1")
    return value


def _number(text: str) -> float:
    """NaN, which no range has, for what is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def known(kind: str, value: str, names: Iterable[str]) -> None:
    """Raises WrongArgument, listing the names, for a value that is none of them."""
    if value not in names:
        raise WrongArgument(f"unknown {kind} '{value}': expected one of {', '.join(names)}")


def writable(path: Path | None, option: str = "--out") -> None:
    """Make the folder of a file that is to be written: a run of minutes must not end at one that does not exist, or that
    takes no files."""
    if path is not None and path.is_dir():
        raise WrongArgument(f"{option} {path} is a folder: name a file")
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise WrongArgument(f"{option} {path} is inside of a file: name a file in a folder") from None
    except OSError as error:
        raise WrongArgument(f"{option} {path}: {path.parent} cannot be made ({error.strerror}): name another folder") from None
    if not os.access(path.parent, os.W_OK):
        raise WrongArgument(f"{option} {path}: no permission to write to {path.parent}: name another folder") from None


def answer(args, fields: dict, text: str) -> None:
    """Print the fields as one JSON object with `--json`, the text without."""
    print(json.dumps(fields) if args.json else text)

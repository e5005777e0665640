"""What the commands share: one-line errors, checked numbers, and an answer in text or JSON."""
import argparse
import json


class Parser(argparse.ArgumentParser):
    """Reports a wrong argument in one line instead of a page of usage."""

    def error(self, message: str):
        self.exit(2, f"zsq_lab: {message}. See `{self.prog} --help`.\n")


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


def answer(args, fields: dict, text: str) -> None:
    """Print the fields as one JSON object with `--json`, the text without."""
    print(json.dumps(fields) if args.json else text)

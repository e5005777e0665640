"""The command line as a user meets it: exit status, standard output, standard error."""
from zsq_lab.__main__ import main


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    try:
        status = main(list(arguments))
    except SystemExit as stop:  # argparse's own way out
        status = stop.code
    out, err = capsys.readouterr()
    return status, out, err

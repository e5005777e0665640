"""The command line as a user meets it: exit status, standard output, standard error."""
from zsq_lab.__main__ import main

QUANTIZE = ["quantize", "--model", "embedded/resnet20", "--n-test", "200", "--budget", "quick"]
SWEEP = ["sweep", "--models", "embedded/resnet20", "--recipes", "rtn-bn", "--seeds", "0", "--n-test", "50"]
EXPORT = ["export", "--model", "embedded/resnet20", "--recipe", "rtn-bn", "--n-test", "200", "--threads", "1"]
# Fields that --json always has
PROMISED = {"model", "recipe", "weight_bits", "activation_bits", "convention", "seed", "fp_accuracy", "accuracy",
            "drop",
            "seconds", "profile", "n_test"}


def one_line(capsys, *arguments: str) -> tuple[int, str]:
    """Exit status and the one line of a command that cannot be carried out."""
    status, out, err = run(capsys, *arguments)
    assert out == "" and len(err.strip().splitlines()) == 1 and err.startswith("zsq_lab: "), (out, err)
    return status, err


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    try:
        status = main(list(arguments))
    except SystemExit as stop:  # argparse's own way out
        status = stop.code
    out, err = capsys.readouterr()
    return status, out, err

"""The command line: `python -m zsq_lab COMMAND`. Each command is a thin layer over a function of the module.

The longer ones have files of their own, named for them. Standard output carries the answer (with `--json` one JSON
object and nothing else), standard error progress and problems. Exit status 0, or with one clear line on stderr 2 for a
wrong argument and 1 for anything else. `python -X dev -m zsq_lab` shows the traceback of what nobody expected.
"""
import os
import sys
import traceback
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from pathlib import Path

from . import (
    evaluate_command,
    export_command,
    named_model,
    quantize_command,
    sweep_command,
    synthesize_command,
    train_command,
)
from .arguments import Parser, WrongArgument, answer


def build_parser() -> Parser:
    parser = Parser(prog="python -m zsq_lab", description="Quantize neural networks without any training data.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)

    def command(name: str, summary: str, run, *add_arguments) -> None:
        sub = commands.add_parser(name, help=summary, description=summary)
        sub.set_defaults(run=run)
        for add in add_arguments:
            add(sub)
        sub.add_argument("--json", action="store_true", help="print one JSON object")

    model = named_model.add_arguments
    command("doctor", "check this computer and say what to do", _doctor)
    command("recipes", "list the recipes", _recipes)
    command("models", "list the networks that the lab ships", _models)
    command("download", "get a data set, verified, or say where a person gets it", _download, _download_arguments)
    command("quantize", "quantize a network by a recipe and measure it", quantize_command.run, model,
            quantize_command.add_arguments)
    command("evaluate", "measure a network, or a quantized one that was written", evaluate_command.run, model,
            evaluate_command.add_arguments)
    command("export", "write a quantized network for another runtime, compare and measure it", export_command.run, model,
            export_command.add_arguments)
    command("synthesize", "make images from a network's statistics", synthesize_command.run, model,
            synthesize_command.add_arguments)
    command("train", "train a full-precision network; the same command resumes", train_command.run, model,
            train_command.add_arguments)
    command("generator", "train a conditional generator from a network's statistics; the same command resumes",
            train_command.run_generator, model, train_command.add_generator_arguments)
    command("sweep", "measure many settings, on one machine or many; the same command resumes", sweep_command.run,
            sweep_command.add_arguments)
    return parser


def _doctor(args) -> int:
    from . import doctor
    return doctor.main(["--json"] if args.json else [])


def _recipes(args) -> None:
    from .recipes import RECIPES
    rows = [{"recipe": r.name, "summary": r.summary, "looks_at": r.looks_at} for r in RECIPES.values()]
    answer(args, {"recipes": rows}, "\n".join(f"{r['recipe']:14} {r['summary']} [{r['looks_at']}]" for r in rows))


def _models(args) -> None:
    from .checkpoints import MODELS, describe
    from .imagenet_models import PACKAGED
    rows = [describe(name) for name in (*MODELS, *PACKAGED)]
    lines = [f"{row['model']:26} {row['parameters']:>9,} parameters  " + (f"{row['accuracy']:.2f} %" if row["accuracy"]
             is not None else row.get("weights", "no checkpoint")) for row in rows]
    lines += ["imagenet/NAME              any classifier of torchvision: resnet18, resnet50, mobilenet_v2, ..."]
    answer(args, {"models": rows}, "\n".join(lines))


def _download_arguments(sub: Parser) -> None:
    sub.add_argument("name", choices=["cifar10", "camvid", "bccd", "imagenet"])
    sub.add_argument("--out", type=Path, metavar="FOLDER", help="default data/cache")


def _download(args) -> None:
    from .data import cache_folder
    from .download import download
    folder = args.out or cache_folder()
    download(args.name, folder)
    answer(args, {"data": args.name, "folder": str(folder)}, f"{args.name} is in {folder}")


def _one_of_several(args) -> int:
    """The command in one of several processes that train together: the first writes and answers, the others help."""
    from .distributed import is_first, joined
    with joined(), ExitStack() as silenced:
        if not is_first():
            silenced.enter_context(redirect_stdout(silenced.enter_context(open(os.devnull, "w"))))
            silenced.enter_context(redirect_stderr(silenced.enter_context(open(os.devnull, "w"))))
            if getattr(args, "out", None):
                args.out = args.out.with_name(f".{os.getpid()}.{args.out.name}")
                silenced.callback(args.out.unlink, missing_ok=True)
        return args.run(args) or 0


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    try:
        if os.environ.get("WORLD_SIZE", "1") != "1":  # started by torchrun
            return _one_of_several(args)
        return args.run(args) or 0
    except WrongArgument as error:
        print(f"zsq_lab: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("zsq_lab: interrupted", file=sys.stderr)
        return 130
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        print(f"zsq_lab: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except Exception as error:  # a mistake of the lab's own
        if sys.flags.dev_mode:
            raise
        named = " ".join(traceback.format_exception_only(error)[-1].split())
        print(f"zsq_lab: unexpected {named}. To see where, and to report it, run the same with `python -X dev -m zsq_lab`",
              file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())

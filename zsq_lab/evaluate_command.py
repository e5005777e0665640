"""The command `evaluate`: a network of the lab, or a quantized one that `quantize --out` wrote, on the test images."""
from pathlib import Path

from .arguments import Parser, WrongArgument, answer, positive
from .named_model import named


def add_arguments(sub: Parser) -> None:
    sub.add_argument("--quantized", type=Path, metavar="FILE",
                     help="written by `quantize --out`; default: full precision")
    sub.add_argument("--n-test", type=positive, metavar="N", help="measure on the first N test images; default all")


def run(args) -> None:
    if args.model.startswith("imagenet/"):
        from .imagenet_command import run_evaluate
        return run_evaluate(args)
    from .tasks import task_of
    name, dataset, network = named(args)
    facts, task = {}, task_of(name)
    if args.quantized:
        network, facts = read_quantized(args.quantized, name)
    test = dataset.test()
    values = task.measure(network, test, dataset, args.n_test, progress=True)
    measured = values[task.metric]
    n_test = min(args.n_test or len(test), len(test))
    kept, described = how_quantized(facts)
    answer(args, {"model": name, **kept, "accuracy": round(measured, 4), "profile": dataset.name, "n_test": n_test,
                   "metric": task.metric, **details(values)},
            f"{name}, {described}: {task.metric} {measured:.2f} % ({n_test} test images)")


def read_quantized(path: Path, name: str) -> tuple:
    """The network that `quantize --out` wrote, and its facts. Raises WrongArgument where it was made from another one."""
    from .checkpoints import load_quantized
    network, facts = load_quantized(path)
    if facts["model"] != name:
        raise WrongArgument(f"{path} holds {facts['model']}, not {name}: name its network with --model")
    return network, facts


def how_quantized(facts: dict) -> tuple[dict, str]:
    """The facts of a quantized network that an answer repeats, and the same in words; "full precision" without facts."""
    kept = {key: facts[key] for key in ("recipe", "weight_bits", "activation_bits", "convention") if key in facts}
    words = [f"{key} {'mixed' if value is None else value}" for key, value in kept.items()]
    return kept, " ".join(words) or "full precision"


def details(measured: dict) -> dict:
    """The measured numbers beyond the one that counts, rounded: mAP beside mAP50, the classes."""
    return {key: {name: round(part, 2) for name, part in value.items()} if isinstance(value, dict) else round(value, 4)
            for key, value in measured.items() if key != "accuracy"}

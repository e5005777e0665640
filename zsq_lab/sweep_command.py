"""The command `sweep`: its arguments, the items that they name, the engine that they choose."""
from dataclasses import replace
from pathlib import Path

from .arguments import Parser, WrongArgument, answer, bit_width, known, positive, seed, share, writable


def add_arguments(sub: Parser) -> None:
    sub.add_argument("--plan", metavar="NAME", help="a recorded table: foundation, cifar10, widths, dense, imagenet; "
                     "--models, --recipes, --seeds, --budget and --n-test narrow it, widths are its own")
    sub.add_argument("--models", nargs="+", metavar="NAME", help="default: resnet20, or all of the plan")
    sub.add_argument("--recipes", nargs="+", metavar="NAME",
                     help="default: rtn-bn dfq squant zeroq, or all of the plan")
    sub.add_argument("--bits", nargs="+", type=bit_width, metavar="BITS",
                     help="of the weights; default 2 3 4 5 6 8")
    sub.add_argument("--acts", nargs="+", type=bit_width, metavar="BITS",
                     help="of the activations; default: as the weights")
    sub.add_argument("--edge-bits", type=bit_width, metavar="BITS",
                     help="of the first and last layer; default: as the others")
    sub.add_argument("--size-budgets", nargs="+", type=share, metavar="SHARE",
                     help="mixed precision instead of --bits: weights in these shares of their float size; --acts default 8")
    sub.add_argument("--convention", metavar="NAME", help="deployable (default) or literature")
    sub.add_argument("--seeds", nargs="+", type=seed, default=[0, 1, 2], metavar="SEED", help="default 0 1 2")
    sub.add_argument("--budget", metavar="NAME",
                     help="quick, standard or long; default: standard, or all of the plan's")
    sub.add_argument("--n-test", type=positive, metavar="N", help="measure on the first N test images; default all")
    sub.add_argument("--out", type=Path, metavar="FOLDER", help="of the results; default data/cache/results")
    sub.add_argument("--csv", type=Path, metavar="FILE", help="write all results of the folder to this table as well")
    sub.add_argument("--workers", type=positive, metavar="N", help="processes on this machine; default: this process")
    sub.add_argument("--threads", type=positive, metavar="N",
                     help="of each item, and the cores that its SLURM job asks for; default: cores / workers")
    sub.add_argument("--cluster", metavar="ADDRESS", help="a Dask scheduler, tcp://host:8786")
    sub.add_argument("--slurm", action="store_true", help="one SLURM job for each item, through submitit")
    sub.add_argument("--status", action="store_true", help="only say how far the sweep in --out is")
    sub.add_argument("--profile", metavar="NAME",
                     help="cifar10 (scenes: camvid, bccd) or embedded, for bare model names; default: the first that is there")


def run(args) -> int:
    """Sweep, or say how far a sweep is; exit status 1 when an item failed."""
    from .data import cache_folder
    from .results import save_csv, summary
    from .sweeps import status, sweep
    out = args.out or cache_folder() / "results"
    if out.is_file():
        raise WrongArgument(f"--out {out} is a file: name a folder")
    if args.status:
        now = status(out)
        hours = "unknown" if now["seconds_left"] is None else f"{now['seconds_left'] / 3600:.1f} hours"
        answer(args, now, f"{now['done']} done, {now['running']} running, {now['failed']} failed, {now['left']} left; "
                f"estimated time left: {hours}")
        return 0
    writable(args.csv, "--csv")
    outcome = sweep(_items(args), out, engine=_engine(args, out), threads=_threads(args))
    if args.csv:
        save_csv(outcome.table, args.csv)
    counts = {"present": outcome.present, "measured": outcome.measured, "elsewhere": outcome.elsewhere,
              "failed": outcome.failed, "out": str(out)}
    lines = [summary(outcome.table).to_string(index=False)] if len(outcome.table) else []
    lines += [f"{outcome.measured} measured, {outcome.present} were there, {outcome.elsewhere} run elsewhere, "
              f"{len(outcome.failed)} failed; results in {out}",
              *(f"failed: {i}: {e}" for i, e in outcome.failed.items())]
    answer(args, counts, "\n".join(lines))
    return 1 if outcome.failed else 0


def _items(args) -> list:
    """The items that the arguments of `sweep` name; unknown names are wrong arguments."""
    from .checkpoints import full_name
    from .data import DataError
    from .job import BUDGETS
    from .layers import QuantConfig
    from .plans import PLANS
    from .recipes import RECIPES
    from .results import Item
    from .tasks import task_of
    known("budget", args.budget or "standard", BUDGETS)
    for recipe in args.recipes or ():
        known("recipe", recipe, RECIPES)
    if args.plan:
        known("plan", args.plan, PLANS)
        for option in ("bits", "acts", "edge_bits", "size_budgets", "convention", "profile"):
            if getattr(args, option):
                raise WrongArgument(f"--{option.replace('_', '-')} is settled by the plan '{args.plan}': leave it out, "
                                    "or sweep without --plan")
        planned = list(PLANS[args.plan]())
        chosen = [replace(item, n_test=args.n_test) for item in planned
                  if item.seed in args.seeds and item.recipe in (args.recipes or [item.recipe])
                  and item.budget == (args.budget or item.budget)
                  and (not args.models or {item.model, item.model.split("/")[1]} & set(args.models))]
        if not chosen:
            raise WrongArgument(f"plan '{args.plan}' has nothing with these --models, --recipes, --seeds and --budget; its "
                                f"models are {', '.join(dict.fromkeys(item.model for item in planned))}")
        return chosen
    try:
        models = [full_name(name, name.split("/")[0] if "/" in name else task_of(name).dataset(args.profile).name)
                  for name in args.models or ["resnet20"]]
        common = dict(edge_bits=args.edge_bits, convention=args.convention or "deployable",
                      budget=args.budget or "standard", n_test=args.n_test)
        QuantConfig(edge_bits=args.edge_bits, convention=common["convention"])
    except DataError:
        raise
    except ValueError as error:
        raise WrongArgument(error) from None
    runs = [(model, recipe, seed) for seed in args.seeds for model in models
            for recipe in args.recipes or ["rtn-bn", "dfq", "squant", "zeroq"]]
    if args.size_budgets:
        return [Item.mixed(model, recipe, size, acts, seed=seed, **common) for model, recipe, seed in runs
                for size in args.size_budgets for acts in args.acts or [8]]
    return [Item(model, recipe, bits, acts, seed=seed, **common) for model, recipe, seed in runs
            for bits in args.bits or [2, 3, 4, 5, 6, 8] for acts in args.acts or [bits]]


def _engine(args, out: Path):
    from .engines import DaskExecutor, InProcess, SlurmExecutor, processes
    chosen = [bool(args.workers), bool(args.cluster), args.slurm]
    if sum(chosen) > 1:
        raise WrongArgument("--workers, --cluster and --slurm exclude each other: choose one engine")
    if args.cluster:
        return lambda: DaskExecutor(args.cluster)
    if args.slurm:
        asked = {"cpus_per_task": args.threads} if args.threads else {}
        return lambda: SlurmExecutor(out / "slurm", **asked)
    return processes(args.workers) if args.workers else InProcess


def _threads(args) -> int | None:
    from .engines import cores
    return args.threads or (max(1, cores() // args.workers) if args.workers else None)

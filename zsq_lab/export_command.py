"""The command `export`: a recipe's model becomes a file for another runtime, compared with its simulation and measured."""
from pathlib import Path

import torch
from torch import Tensor, nn

from .arguments import Parser, WrongArgument, answer, bit_width, positive
from .calibration_set import read_calibration_set

SUFFIXES = (".onnx", ".safetensors")


def add_arguments(sub: Parser) -> None:
    sub.add_argument("--recipe", default="distilled")
    sub.add_argument("-w", "--weight-bits", type=bit_width, default=8, metavar="BITS")
    sub.add_argument("-a", "--activation-bits", type=bit_width, default=8, metavar="BITS")
    sub.add_argument("--edge-bits", type=bit_width, metavar="BITS", help="bits of the first and last layer")
    sub.add_argument("--budget", default="standard")
    sub.add_argument("--quantized", type=Path, help="export this model, written by `quantize --out`, instead of running a recipe")
    sub.add_argument("--images", type=Path, help="calibration images for the added ranges, from `synthesize`; default: made now")
    sub.add_argument("--n-test", type=positive, help="compare on the first N test images; default all")
    sub.add_argument("--threads", type=positive, help="of the measurement; default as PyTorch")
    sub.add_argument("--out", type=Path, required=True, help=".onnx: for ONNX Runtime; .safetensors: packed, any width")


def run(args, load) -> None:
    """load: the arguments -> (name, data set, network)."""
    from .checkpoints import load_quantized
    from .job import BUDGETS
    from .layers import QuantConfig
    from .recipes import RECIPES, quantize
    for value, known, kind in ((args.recipe, RECIPES, "recipe"), (args.budget, BUDGETS, "budget")):
        if value not in known:
            raise WrongArgument(f"unknown {kind} '{value}': expected one of {', '.join(known)}")
    if args.out.suffix not in SUFFIXES or args.out.is_dir():
        raise WrongArgument(f"--out {args.out}: expected a file that ends in {' or '.join(SUFFIXES)}")
    if args.out.suffix == ".onnx" and max(args.weight_bits, args.activation_bits, args.edge_bits or 0) > 8:
        raise WrongArgument("integer runtimes take at most 8 bits: choose -w and -a up to 8, or --out with .safetensors")
    if RECIPES[args.recipe].needs_images:
        raise WrongArgument(f"recipe '{args.recipe}' needs real images: write its model with `quantize --out` and export that "
                            "with --quantized")
    if args.out.suffix == ".onnx":  # before minutes of work
        from .export import require_onnx
        from .onnx_runtime import require_runtime
        require_onnx(), require_runtime()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    name, dataset, network = load(args)
    if args.quantized:
        student, facts = load_quantized(args.quantized)
        if facts["model"] != name:
            raise WrongArgument(f"{args.quantized} holds {facts['model']}, not {name}")
    else:
        from .data import cache_folder
        config = QuantConfig(args.weight_bits, args.activation_bits, args.edge_bits)
        result = quantize(network, config, args.recipe, image_shape=dataset.image_shape, seed=args.seed, budget=args.budget,
                          progress=True, resume=cache_folder() / "runs")
        student, facts = result.model, result.report | {"model": name, "image_shape": list(dataset.image_shape)}
    kept = {key: facts[key] for key in ("model", "recipe", "config", "convention", "seed", "budget", "seconds", "image_shape")
            if key in facts}
    if args.out.suffix == ".onnx":
        _onnx(args, network, student, dataset, kept)
    else:
        _packed(args, network, student, dataset, kept)


def calibration_images(network: nn.Module, image_shape: tuple[int, ...], seed: int = 0, *, progress: bool = False) -> Tensor:
    """The quick budget's synthetic images; kept in data/cache/runs and reused by the recipes that make the same ones."""
    from .data import cache_folder
    from .images import optimise_images
    from .job import Job, named_budget
    from .layers import QuantConfig, convert
    from .resume import RunState
    from .tasks import CLASSIFICATION
    budget = named_budget("quick", image_shape, CLASSIFICATION)
    teacher, student = convert(network, QuantConfig(), image_shape)
    job = Job(teacher, student, QuantConfig(), image_shape, budget, seed, run=RunState(cache_folder() / "runs" / "export"))
    run = job.shared("images", budget.images, budget.image_iterations, budget.image_batch)
    return optimise_images(teacher, budget.images, image_shape, batch_size=budget.image_batch, seed=seed,
                           iterations=budget.image_iterations, progress=progress, run=run)[0]


def _onnx(args, network: nn.Module, student: nn.Module, dataset, facts: dict) -> None:
    import tempfile

    from . import onnx_runtime
    from .deploy import deploy
    from .evaluate import predict
    from .export import float_program, save_onnx
    from .integer_program import exact
    shape = dataset.image_shape
    images = read_calibration_set(args.images) if args.images else calibration_images(network, shape, args.seed, progress=True)
    program = deploy(student, shape, images, seed=args.seed)
    written = save_onnx(program, args.out, facts)
    threads, test = args.threads or torch.get_num_threads(), dataset.test()
    labels, shown = test.labels[:args.n_test], {"limit": args.n_test, "progress": True}
    sessions = {mode: onnx_runtime.open_session(args.out, threads=threads, exact=mode == "exact") for mode in ("exact", "fast")}
    found = {"full precision": predict(network, test, dataset, **shown), "simulation": predict(exact(program), test, dataset, **shown)}
    found |= {mode: onnx_runtime.predict(session, test, dataset, **shown) for mode, session in sessions.items()}
    right = {who: round(100 * (p == labels).double().mean().item(), 4) for who, p in found.items()}
    agree = {mode: round(100 * (found[mode] == found["simulation"]).double().mean().item(), 4) for mode in sessions}
    with tempfile.TemporaryDirectory() as folder:
        kernels = onnx_runtime.operators(args.out, Path(folder), threads=threads)
        plain = Path(folder) / "float.onnx"
        save_onnx(float_program(network, shape), plain)
        rows = onnx_runtime.measure({"float": (plain, True), "exact": (args.out, True), "fast": (args.out, False)}, shape,
                                    threads=threads)
    config = facts["config"]
    fields = {key: facts.get(key) for key in ("model", "recipe", "convention", "seed", "budget", "seconds")} | {
        "weight_bits": config["weight_bits"], "activation_bits": config["activation_bits"], "edge_bits": config["edge_bits"],
        "fp_accuracy": right["full precision"], "accuracy": right["exact"], "drop": round(right["full precision"] - right["exact"], 4),
        "simulated_accuracy": right["simulation"], "fast_accuracy": right["fast"], "agreement": agree["exact"],
        "fast_agreement": agree["fast"], "profile": dataset.name, "n_test": len(labels), "out": str(args.out),
        "opset": written["opset"], "ir_version": written["ir_version"], "kernels": kernels, "measured": rows, "threads": threads,
        **onnx_runtime.processor()}
    answer(args, fields, _report(fields))


def _packed(args, network: nn.Module, student: nn.Module, dataset, facts: dict) -> None:
    from .evaluate import predict
    from .packed_file import load_packed, save_packed
    size = save_packed(student, args.out, facts)
    test, shown = dataset.test(), {"limit": args.n_test, "progress": True}
    labels = test.labels[:args.n_test]
    loaded = predict(load_packed(args.out)[0], test, dataset, **shown)
    same = torch.equal(loaded, predict(student, test, dataset, **shown))
    if not same:
        raise RuntimeError(f"{args.out} does not compute what was written into it: please report this")
    before = 100 * (predict(network, test, dataset, **shown) == labels).double().mean().item()
    after = 100 * (loaded == labels).double().mean().item()
    float_bytes, config = 4 * sum(p.numel() for p in network.state_dict().values()), facts["config"]
    fields = {key: facts.get(key) for key in ("model", "recipe", "convention", "seed", "budget", "seconds")} | {
        "weight_bits": config["weight_bits"], "activation_bits": config["activation_bits"], "edge_bits": config["edge_bits"],
        "fp_accuracy": round(before, 4), "accuracy": round(after, 4), "drop": round(before - after, 4), "profile": dataset.name,
        "n_test": len(labels), "out": str(args.out), "bytes": size, "float_bytes": float_bytes}
    answer(args, fields, f"{fields['model']}, {fields['recipe']}, W{config['weight_bits']}A{config['activation_bits']}: accuracy "
            f"{after:.2f} %, drop {before - after:.2f} points ({len(labels)} test images)\n{args.out}: {size / 1000:.0f} kB, "
            f"{size / float_bytes:.3f} of the {float_bytes / 1000:.0f} kB in floats; packed weights are unpacked to compute")


def _report(f: dict) -> str:
    rows = f["measured"]
    dot = {True: "with", False: "without", None: "perhaps without"}[f["int8_dot_product"]]
    lines = [f"{f['model']}, {f['recipe']}, W{f['weight_bits']}A{f['activation_bits']} {f['convention']}, seed {f['seed']}: "
             f"{f['out']} (opset {f['opset']})",
             f"accuracy {f['accuracy']:.2f} % in ONNX Runtime {f['onnxruntime']}, {f['simulated_accuracy']:.2f} % simulated, "
             f"{f['fp_accuracy']:.2f} % in full precision; {f['agreement']:.2f} % equal predictions ({f['n_test']} test images)",
             f"{'':8}{'kB':>8}{'ms, batch 1':>14}{'ms, batch 64':>14}{'images/s':>11}{'peak MB':>9}"]
    lines += [f"{r['file']:8}{r['bytes'] / 1000:8.0f}{r['ms_batch_1']:14.2f}{r['ms_batch_64']:14.1f}{r['images_per_second']:11.0f}"
              f"{r['peak_mb'] or float('nan'):9.1f}" for r in rows]
    lines.append(f"{f['threads']} threads, {f['machine']} {dot} 8-bit dot products. exact: every sum as promised; fast: the runtime's "
                 f"default, which on a CPU without them may cut sums off ({f['fast_agreement']:.2f} % equal predictions here)")
    return "\n".join(lines)

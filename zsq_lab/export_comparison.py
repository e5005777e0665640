"""A quantized model as a file for another runtime: written, run there, compared with its simulation, measured."""
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from . import onnx_runtime
from .arguments import answer
from .calibration_set import calibration_images
from .deploy import deploy
from .evaluate import predict
from .export import float_program, save_onnx
from .integer_program import exact
from .layers import QuantConfig
from .packed_file import load_packed, save_packed


def write_onnx(args, network: nn.Module, student: nn.Module, dataset, facts: dict, images: Tensor | None) -> None:
    """Write for ONNX Runtime and answer: agreement with the simulation, kernels, size, latency.

    images: [N, ...] to calibrate added ranges with; None: made now.
    """
    shape = dataset.image_shape
    if images is None:
        images = calibration_images(network, shape, args.seed, progress=True)
    program = deploy(student, shape, images, seed=args.seed)
    written = save_onnx(program, args.out, facts)
    threads, test = args.threads or torch.get_num_threads(), dataset.test()
    labels, shown = test.labels[:args.n_test], {"limit": args.n_test, "progress": True}
    sessions = {mode: onnx_runtime.open_session(args.out, threads=threads, exact=mode == "exact")
                for mode in ("exact", "fast")}
    found = {"full precision": predict(network, test, dataset, **shown),
             "simulation": predict(exact(program), test, dataset, **shown)}
    found |= {mode: onnx_runtime.predict(session, test, dataset, **shown) for mode, session in sessions.items()}
    right = {who: round(100 * (p == labels).double().mean().item(), 4) for who, p in found.items()}
    agree = {mode: round(100 * (found[mode] == found["simulation"]).double().mean().item(), 4) for mode in sessions}
    with tempfile.TemporaryDirectory() as folder:
        kernels = onnx_runtime.operators(args.out, Path(folder), threads=threads)
        plain = Path(folder) / "float.onnx"
        save_onnx(float_program(network, shape), plain)
        files = {"float": (plain, True), "exact": (args.out, True), "fast": (args.out, False)}
        rows = onnx_runtime.measure(files, shape, threads=threads)
    fields = _setting(facts) | {
        "fp_accuracy": right["full precision"], "accuracy": right["exact"],
        "drop": round(right["full precision"] - right["exact"], 4),
        "simulated_accuracy": right["simulation"], "fast_accuracy": right["fast"], "agreement": agree["exact"],
        "fast_agreement": agree["fast"], "profile": dataset.name, "n_test": len(labels), "out": str(args.out),
        "opset": written["opset"], "ir_version": written["ir_version"], "kernels": kernels, "measured": rows,
        "threads": threads, **onnx_runtime.processor()}
    answer(args, fields, _report(fields, QuantConfig(**facts["config"])))


def write_packed(args, network: nn.Module, student: nn.Module, dataset, facts: dict) -> None:
    """Write packed weights and answer: size, and that what is read back computes the same."""
    size = save_packed(student, args.out, facts)
    test, shown = dataset.test(), {"limit": args.n_test, "progress": True}
    labels = test.labels[:args.n_test]
    loaded = predict(load_packed(args.out)[0], test, dataset, **shown)
    same = torch.equal(loaded, predict(student, test, dataset, **shown))
    if not same:
        raise RuntimeError(f"{args.out} does not compute what was written into it: please report this")
    before = 100 * (predict(network, test, dataset, **shown) == labels).double().mean().item()
    after = 100 * (loaded == labels).double().mean().item()
    float_bytes = 4 * sum(p.numel() for p in network.state_dict().values())
    fields = _setting(facts) | {
        "fp_accuracy": round(before, 4), "accuracy": round(after, 4), "drop": round(before - after, 4),
        "profile": dataset.name, "n_test": len(labels), "out": str(args.out), "bytes": size, "float_bytes": float_bytes}
    answer(args, fields, f"{fields['model']}, {fields['recipe']}, {QuantConfig(**facts['config'])}: accuracy {after:.2f} %, "
           f"drop {before - after:.2f} points ({len(labels)} test images)\n{args.out}: {size / 1000:.0f} kB, "
           f"{size / float_bytes:.3f} of the {float_bytes / 1000:.0f} kB in floats; packed weights are unpacked to compute")


def _setting(facts: dict) -> dict:
    """How the model was made; weight_bits: None where each layer has its own."""
    config = facts["config"]
    return {key: facts.get(key) for key in ("model", "recipe", "convention", "seed", "budget", "seconds")} | {
        "weight_bits": None if config.get("layer_bits") else config["weight_bits"],
        "activation_bits": config["activation_bits"], "edge_bits": config["edge_bits"]}


def _report(f: dict, config: QuantConfig) -> str:
    rows = f["measured"]
    dot = {True: "with", False: "without", None: "perhaps without"}[f["int8_dot_product"]]
    lines = [f"{f['model']}, {f['recipe']}, {config}, seed {f['seed']}: {f['out']} (opset {f['opset']})",
             f"accuracy {f['accuracy']:.2f} % in ONNX Runtime {f['onnxruntime']}, {f['simulated_accuracy']:.2f} % "
             f"simulated, {f['fp_accuracy']:.2f} % in full precision; {f['agreement']:.2f} % equal predictions "
             f"({f['n_test']} test images)",
             f"{'':8}{'kB':>8}{'ms, batch 1':>14}{'ms, batch 64':>14}{'images/s':>11}{'peak MB':>9}"]
    lines += [f"{r['file']:8}{r['bytes'] / 1000:8.0f}{r['ms_batch_1']:14.2f}{r['ms_batch_64']:14.1f}"
              f"{r['images_per_second']:11.0f}{r['peak_mb'] or float('nan'):9.1f}" for r in rows]
    lines.append(f"{f['threads']} threads, {f['machine']} {dot} 8-bit dot products. exact: every sum as promised; "
                 f"fast: the runtime's default, which on a CPU without them may cut sums off "
                 f"({f['fast_agreement']:.2f} % equal predictions here)")
    return "\n".join(lines)

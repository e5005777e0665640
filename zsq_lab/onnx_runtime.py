"""Running ONNX files: a session that computes exactly, predictions, and how long it all takes.

On a CPU without VNNI, ONNX Runtime by default multiplies with an instruction that adds two products in 16 bits and cuts
off what does not fit. That is fast and sometimes wrong. `exact=True` asks for the way without it, so that the file
computes what the simulation promised; with VNNI both are the same. Notebook 09 measures both.
"""
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from .data import Dataset, Split, batches
from .evaluate import batch_size
from .export import EXTRA, load_onnx


def require_runtime():
    """The package onnxruntime. Raises ImportError that says how to get it."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError(f"running the exported file needs onnxruntime: {EXTRA}") from error
    return onnxruntime


def open_session(path: Path, *, threads: int | None = None, exact: bool = True, optimized: Path | None = None):
    """An InferenceSession of a file that `save_onnx` wrote, on the CPU; the file is checked first.

    threads: default as many as PyTorch uses. optimized: where to write the graph that the runtime made of it.
    """
    model = load_onnx(path)
    return session_of(model.SerializeToString(), threads=threads, exact=exact, optimized=optimized)


def session_of(content: bytes, *, threads: int | None = None, exact: bool = True, optimized: Path | None = None):
    """The same of a serialized model, from anywhere: data outside of it is never read."""
    runtime = require_runtime()
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.add_session_config_entry("session.x64quantprecision", "1" if exact else "0")
    if optimized:
        options.optimized_model_filepath = str(optimized)
    return runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def run(session, images: Tensor | np.ndarray) -> np.ndarray:
    """The (first) output for images [N, ...] as the model takes them."""
    images = images.detach().cpu().numpy() if isinstance(images, Tensor) else images
    return session.run(None, {session.get_inputs()[0].name: np.ascontiguousarray(images, np.float32)})[0]


def predict(session, split: Split, dataset: Dataset, *, limit: int | None = None, progress: bool = False) -> Tensor:
    """Predicted class [N] of the first `limit` images of a split, as `evaluate.predict` does for a PyTorch model."""
    split = Split(split.images[:limit], split.labels[:limit])
    size = batch_size(split.images.shape)
    bar = tqdm(batches(split, size), "ONNX Runtime", -(-len(split) // size), disable=not progress, leave=False)
    return torch.cat([torch.from_numpy(run(session, dataset.normalise(images)).argmax(1)) for images, _ in bar])


def operators(path: Path, folder: Path, **options) -> dict[str, int]:
    """How often each kernel occurs in what the runtime made of a file: QLinearConv where it computes in integers."""
    from onnx import load
    optimized = Path(folder) / "optimized.onnx"
    open_session(path, optimized=optimized, **options)
    kinds = [node.op_type for node in load(optimized).graph.node]
    return {kind: kinds.count(kind) for kind in sorted(set(kinds))}


def latencies(sessions: dict, image_shape: Sequence[int], batch: int, *, rounds: int = 20) -> dict[str, list[float]]:
    """Milliseconds of `rounds` runs of each session on one batch, interleaved: what disturbs one disturbs them all."""
    x = np.random.default_rng(0).standard_normal((batch, *image_shape), np.float32)
    for session in sessions.values():
        run(session, x)
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(rounds):
        for name, session in sessions.items():
            started = time.perf_counter()
            run(session, x)
            times[name].append(1000 * (time.perf_counter() - started))
    return times


def peak_memory(path: Path, image_shape: Sequence[int], batch: int, *, threads: int = 1,
                exact: bool = True) -> float | None:
    """MB that loading a file and running one batch add to a process of its own, at their peak; None where unknown."""
    if not Path("/proc/self/status").exists():
        return None
    command = [sys.executable, "-c", _MEASURE, str(path), str(batch), ",".join(map(str, image_shape)), str(threads),
               "1" if exact else "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout)


_MEASURE = """
import sys
import numpy as np, onnxruntime
path, batch, shape, threads, exact = sys.argv[1:]
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
x = np.zeros((int(batch), *map(int, shape.split(","))), np.float32)
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = int(threads)
options.add_session_config_entry("session.x64quantprecision", exact)
before = peak()
session = onnxruntime.InferenceSession(open(path, "rb").read(), options, providers=["CPUExecutionProvider"])
session.run(None, {session.get_inputs()[0].name: x})
print((peak() - before) / 1024)
"""


def measure(files: dict[str, tuple[Path, bool]], image_shape: Sequence[int], *, threads: int | None = None,
            batch_sizes: Sequence[int] = (1, 64), rounds: int = 20) -> list[dict]:
    """One row a file: bytes, median latency in ms at each batch size, images/s at the largest, peak memory there (MB).

    files: name -> (path, exact).
    """
    threads = threads or torch.get_num_threads()
    sessions = {name: open_session(path, threads=threads, exact=exact) for name, (path, exact) in files.items()}
    rows = [{"file": name, "bytes": path.stat().st_size} for name, (path, _) in files.items()]
    for batch in batch_sizes:
        times = latencies(sessions, image_shape, batch, rounds=rounds)
        for row in rows:
            row[f"ms_batch_{batch}"] = round(median(times[row["file"]]), 3)
    for row in rows:
        path, exact = files[row["file"]]
        row["images_per_second"] = round(1000 * batch_sizes[-1] / row[f"ms_batch_{batch_sizes[-1]}"], 1)
        memory = peak_memory(path, image_shape, batch_sizes[-1], threads=threads, exact=exact)
        row["peak_mb"] = None if memory is None else round(memory, 1)
    return rows


def processor() -> dict:
    """What decides the speed of integers: the kind of CPU, whether it has 8-bit dot products, the versions."""
    flags = ""
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            flags = next((line for line in file if line.startswith(("flags", "Features"))), "")
    dot = any(flag in flags.split() for flag in ("avx512_vnni", "avx_vnni", "asimddp"))
    return {"machine": platform.machine(), "int8_dot_product": dot if flags else None,
            "onnxruntime": require_runtime().__version__}

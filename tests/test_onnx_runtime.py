"""ONNX Runtime: predictions as the model's own, sessions that say what they are, latencies side by side."""
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from exported import deployed
from networks import IMAGE, Residual, awaken, images, teach

from zsq_lab import onnx_runtime
from zsq_lab.data import Dataset, Split
from zsq_lab.evaluate import predict

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from zsq_lab.export import float_program, save_onnx  # noqa: E402


@pytest.fixture(scope="module")
def network():
    return teach(awaken(Residual()), images(32))


@pytest.fixture(scope="module")
def files(tmp_path_factory, network) -> dict[str, Path]:
    """The same network in floats and in 8 bits."""
    folder = tmp_path_factory.mktemp("files")
    made = {"float": folder / "float.onnx", "int8": folder / "int8.onnx"}
    save_onnx(float_program(network, IMAGE), made["float"])
    save_onnx(deployed("residual")[1], made["int8"])
    return made


def test_predictions_are_the_models_own(tmp_path):
    pixels = torch.randint(0, 256, (70, *IMAGE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    split = Split(pixels, torch.zeros(70, dtype=torch.int64))
    dataset = Dataset("embedded", tuple("abcde"), (0.5,) * 3, (0.25,) * 3, lambda name: split)
    network = awaken(Residual())
    with torch.no_grad():  # so that each class is somebody's
        network.fc.bias.sub_(network(dataset.normalise(pixels)).mean(0))
    save_onnx(float_program(network, IMAGE), tmp_path / "f.onnx")
    session = onnx_runtime.open_session(tmp_path / "f.onnx", threads=1)
    got = onnx_runtime.predict(session, split, dataset)
    assert got.dtype == torch.int64 and torch.equal(got, predict(network, split, dataset)) and len(got.unique()) > 2
    assert torch.equal(onnx_runtime.predict(session, split, dataset, limit=9), got[:9])


def test_images_are_tensors_or_arrays_of_any_layout(files, network):
    session, x = onnx_runtime.open_session(files["float"]), images(4)
    expected = onnx_runtime.run(session, x)
    torch.testing.assert_close(torch.from_numpy(expected), network(x).detach(), rtol=1e-4, atol=1e-5)
    for same in (x.numpy(), x.double().numpy(), x.to(memory_format=torch.channels_last), x.clone().requires_grad_()):
        assert np.array_equal(onnx_runtime.run(session, same), expected)


@pytest.mark.parametrize("threads", [1, 2, None])
@pytest.mark.parametrize("exact", [True, False])
def test_a_session_computes_on_as_many_threads_and_as_exactly_as_asked(files, monkeypatch, threads, exact):
    runtime = onnx_runtime.require_runtime()
    seen, make = [], runtime.InferenceSession
    monkeypatch.setattr(runtime, "InferenceSession", lambda content, options, **more: seen.append((options, more)) or
                        make(content, options, **more))
    onnx_runtime.open_session(files["int8"], threads=threads, exact=exact)
    (options, more), = seen
    assert options.intra_op_num_threads == (threads or torch.get_num_threads())
    assert options.get_session_config_entry("session.x64quantprecision") == str(int(exact))
    assert more == {"providers": ["CPUExecutionProvider"]}


def test_kernels_are_those_of_the_optimized_graph(files, tmp_path):
    quantized, plain = (onnx_runtime.operators(files[name], tmp_path, threads=1) for name in ("int8", "float"))
    assert quantized["QLinearConv"] == 3 and "Conv" not in quantized and list(quantized) == sorted(quantized)
    assert not any("QLinear" in kind for kind in plain) and sum(n for kind, n in plain.items() if "Conv" in kind) == 3


def test_latencies_are_taken_in_turns_after_a_first_run(monkeypatch):
    turns, clock = [], iter(range(1000))
    monkeypatch.setattr(onnx_runtime, "run", lambda session, x: turns.append((session, x.shape)))
    monkeypatch.setattr(onnx_runtime.time, "perf_counter", lambda: next(clock) / 1000)
    times = onnx_runtime.latencies({"a": 1, "b": 2}, (3, 4, 4), 5, rounds=3)
    assert [session for session, _ in turns] == [1, 2] * 4 and {shape for _, shape in turns} == {(5, 3, 4, 4)}
    assert {name: pytest.approx(t) for name, t in times.items()} == {"a": [1.0] * 3, "b": [1.0] * 3}, "in milliseconds"


def test_a_row_of_measurements_holds_medians_speed_and_memory(files, monkeypatch):
    monkeypatch.setattr(onnx_runtime, "latencies", lambda sessions, shape, batch, rounds: {
        name: [1.0 * batch, 3.0 * batch, 100.0] for name in sessions})
    row, other = onnx_runtime.measure({"float": (files["float"], True), "int8": (files["int8"], False)}, IMAGE,
                                      threads=1,
                                      batch_sizes=(1, 8))
    assert row["bytes"] == files["float"].stat().st_size and (row["file"], other["file"]) == ("float", "int8")
    assert (row["ms_batch_1"], row["ms_batch_8"], row["images_per_second"]) == (3.0, 24.0, 333.3)
    if Path("/proc/self/status").exists():
        assert 0 < row["peak_mb"] < 200 and 0 < other["peak_mb"] < 200


def test_memory_is_unknown_where_the_system_does_not_tell(monkeypatch):
    monkeypatch.setattr(onnx_runtime, "Path", lambda _: Path("/nowhere"))
    assert onnx_runtime.peak_memory(Path("any"), IMAGE, 1) is None


@pytest.mark.parametrize("line, dot", [("flags : fpu avx2 avx512_vnni", True), ("flags : avx_vnni", True),
                                       ("Features : asimddp", True), ("flags : avx2 avx512f", False),
                                       ("model : x", None)])
def test_dot_products_are_read_off_the_processors_flags(monkeypatch, tmp_path, line, dot):
    file = tmp_path / "cpuinfo"
    file.write_text(f"processor : 0\n{line}\n")
    monkeypatch.setattr(onnx_runtime.os.path, "exists", lambda path: True)
    monkeypatch.setattr(onnx_runtime, "open", lambda path, **how: file.open(**how), raising=False)
    assert onnx_runtime.processor()["int8_dot_product"] is dot


def test_a_missing_runtime_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"needs onnxruntime: install the extra: pip install .*\[export\]"):
        onnx_runtime.require_runtime()

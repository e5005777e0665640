"""Resuming: whatever ended a run, and wherever, the second attempt ends with the numbers of a run that nobody ended."""
import io
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from edited_sources import edit, fresh  # noqa: F401 (fixtures)
from networks import IMAGE, TINY, Residual, awaken, images, same_state, snapshot
from small_disk import full_disk  # noqa: F401 (a fixture)
from torch import Tensor

from zsq_lab import QuantConfig, gznq, quantize, resume, synthesize, zscgan
from zsq_lab import images as images_module
from zsq_lab.adversary import LAB, PAPER, play
from zsq_lab.distill import finetune
from zsq_lab.generators import Generator
from zsq_lab.gznq import prior_images
from zsq_lab.images import optimise_images
from zsq_lab.job import Budget
from zsq_lab.layers import convert
from zsq_lab.ranges import fit_input_ranges, fit_weight_ranges
from zsq_lab.resume import RunState, kept_until_written

STAGES = ["conv_a", "fc"]
State = dict[str, Tensor]


def pair():
    teacher, student = convert(awaken(Residual()), QuantConfig(3, 3), IMAGE)
    fit_weight_ranges(student, search=False)
    fit_input_ranges(student, [images(16)], search=False)
    return teacher, student


def generator() -> Generator:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Generator(IMAGE, 5)


def made(function: Callable, **options) -> State:
    """Ten images in batches of four, four and two."""
    x, labels = function(pair()[0], 10, IMAGE, iterations=3, batch_size=4, **options)
    return {"images": x, "labels": labels}


def trained(**options) -> State:
    own = generator()
    zscgan.train_generator(own, pair()[0], iterations=6, batch_size=8, **options)
    return snapshot(own)


def played(rules, **options) -> State:
    own, (teacher, student) = generator(), pair()
    play(own, student, teacher, STAGES, rules=rules, iterations=7, learning_rate=1e-3, batch_size=8, **options)
    return snapshot(own) | snapshot(student)


def finetuned(**options) -> State:
    teacher, student = pair()
    finetune(student, teacher, lambda random: torch.randn(8, *IMAGE, generator=random), STAGES, iterations=6,
             learning_rate=1e-3, **options)
    return snapshot(student)


PHASES: dict[str, tuple[str, int, Callable[..., State]]] = {  # name -> (file, steps, what runs it)
    "images": ("images", 9, lambda **options: made(optimise_images, **options)),
    "prior": ("prior", 9, lambda **options: made(prior_images, **options)),
    "generator": ("generator", 6, trained),
    "game, lab": ("game", 7, lambda **options: played(LAB, **options)),
    "game, paper": ("game", 7, lambda **options: played(PAPER, **options)),
    "finetune": ("finetune", 6, finetuned)}


def interrupt(*_) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("name", PHASES)
def test_interrupted_after_every_single_step(name, tmp_path):
    file, steps, phase = PHASES[name]
    for _ in range(steps):
        with pytest.raises(KeyboardInterrupt):
            phase(run=RunState(tmp_path, every=0), on_step=interrupt)
    assert [p.name for p in tmp_path.iterdir()] == [f"{file}.pt"]
    result = phase(run=RunState(tmp_path, every=0), on_step=interrupt)  # nothing is left to do: nothing interrupts
    assert same_state(result, phase())


@pytest.mark.parametrize("name", PHASES)
def test_what_came_after_the_last_writing_is_done_again(name, tmp_path):
    _, _, phase = PHASES[name]
    run, steps = RunState(tmp_path, every=0), []

    def stop_writing_then_stop(*_):
        steps.append(1)
        run.every = float("inf") if len(steps) >= 2 else 0
        if len(steps) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        phase(run=run, on_step=stop_writing_then_stop)
    again = []
    result = phase(run=RunState(tmp_path), on_step=lambda *_: again.append(1))
    assert len(again) == PHASES[name][1] - 2
    assert same_state(result, phase())


@pytest.mark.parametrize("name", PHASES)
def test_keeping_state_changes_nothing(name, tmp_path):
    _, steps, phase = PHASES[name]
    seen = []
    result = phase(run=RunState(tmp_path, every=0), on_step=lambda *_: seen.append(1))
    assert same_state(result, phase()) and len(seen) == steps


@pytest.mark.parametrize("name", PHASES)
def test_a_damaged_file_stops_the_phase(name, tmp_path):
    file, _, phase = PHASES[name]
    (tmp_path / f"{file}.pt").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=rf"{file}\.pt is damaged .*: delete it to start this phase anew"):
        phase(run=RunState(tmp_path))


def test_every_kind_of_damage_is_named(tmp_path):
    RunState(tmp_path).save("game", lambda: {"x": torch.arange(100)}, now=True)
    file = tmp_path / "game.pt"
    whole = file.read_bytes()
    torch.save([1, 2], file)
    foreign = file.read_bytes()
    for content in (b"", b"no state", foreign, *(whole[:len(whole) * part // 10] for part in range(1, 10))):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"game\.pt is damaged .*: delete it"):
            RunState(tmp_path).load("game")
    file.write_bytes(whole)
    assert RunState(tmp_path).load("game")["x"].equal(torch.arange(100))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a computer without a GPU")
def test_a_state_that_was_saved_on_a_gpu_goes_on_without_one(tmp_path):
    """The file of a CPU, its tensors' place renamed."""
    RunState(tmp_path).save("game", lambda: {"x": torch.arange(100)}, now=True)
    file, renamed = tmp_path / "game.pt", io.BytesIO()
    with zipfile.ZipFile(file) as own, zipfile.ZipFile(renamed, "w") as other:
        for name in own.namelist():
            content = own.read(name)
            if name.endswith("data.pkl"):
                assert b"\x03\x00\x00\x00cpu" in content
                content = content.replace(b"\x03\x00\x00\x00cpu", b"\x06\x00\x00\x00cuda:0")
            other.writestr(name, content)
    file.write_bytes(renamed.getvalue())
    with pytest.raises(RuntimeError, match="CUDA"):
        torch.load(file, weights_only=True)
    assert RunState(tmp_path).load("game")["x"].equal(torch.arange(100))


def test_a_folder_that_cannot_be_written_costs_one_warning(tmp_path):
    (tmp_path / "file").touch()
    run, asked = RunState(tmp_path / "file" / "run", every=0), []
    with pytest.warns(UserWarning, match=r"run cannot keep this run's state \(.*\); an interruption starts it anew") as told:
        for _ in range(3):
            run.save("game", lambda: asked.append(1) or {}, now=True)
    assert len(told) == len(asked) == 1, "and nothing more is tried"
    assert run.load("game") is None and run.where() == ""
    run.clear()


def test_a_full_disk_ends_no_run_and_keeps_the_state_before(full_disk):
    folder, fill = full_disk
    run = RunState(folder / "run", every=0)
    run.save("game", lambda: {"x": torch.arange(3)})
    fill()
    with pytest.warns(UserWarning, match="cannot keep this run's state"):
        run.save("game", lambda: {"x": torch.zeros(100_000)})
    assert [file.name for file in (folder / "run").iterdir()] == ["game.pt"], "no piece is left"
    assert RunState(folder / "run").load("game")["x"].tolist() == [0, 1, 2]
    run.clear()
    assert not (folder / "run").exists()


def test_nothing_is_kept_without_a_folder():
    run = RunState()
    run.save("game", lambda: pytest.fail("nobody needs this state"), now=True)
    assert run.load("game") is None and run.where() == ""
    run.clear()


def test_a_state_is_written_when_its_time_has_come(tmp_path, monkeypatch):
    clock = SimpleNamespace(now=100.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(resume, "time", clock)
    run, written = RunState(tmp_path, every=30), []
    for clock.now in (100, 129, 130, 131, 159, 161, 200):
        run.save("game", lambda: written.append(clock.now) or {})
    run.save("game", lambda: written.append("now") or {}, now=True)
    assert written == [130, 161, 200, "now"]
    assert RunState().every <= 60, "an interruption may cost a minute"


def test_the_seconds_that_a_state_has_cost_are_remembered(tmp_path, monkeypatch):
    """Written after 15 s, lost after 20; written after 7 more: the third run reuses 22."""
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(resume, "time", clock)
    for reused, worked in ((0, 15), (15, 7), (22, 1)):
        run = RunState(tmp_path, every=0)
        assert (run.load("game") is None) == (reused == 0) and run.reused_seconds == reused
        clock.now += worked
        run.save("game", lambda: {"x": torch.ones(2)})
        clock.now += 1000  # lost, and nobody's work


def test_an_interruption_while_writing_leaves_the_state_before(tmp_path, monkeypatch):
    run, write = RunState(tmp_path, every=0), torch.save
    run.save("game", lambda: {"x": torch.arange(3)})

    def cut_off(state, path):
        write(state, path)
        path.write_bytes(path.read_bytes()[:100])
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", cut_off)
    with pytest.raises(KeyboardInterrupt):
        run.save("game", lambda: {"x": torch.arange(9)})
    assert RunState(tmp_path).load("game")["x"].tolist() == [0, 1, 2]
    run.clear()
    assert not tmp_path.exists(), "the half-written file goes as well"


def test_where_the_state_lies_is_said_only_where_there_is_one(tmp_path):
    run = RunState(tmp_path / "runs")
    assert run.where() == ""
    run.save("game", lambda: {}, now=True)
    assert str(tmp_path / "runs") in run.where()


def test_clear_leaves_the_files_of_others(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    run = RunState(tmp_path)
    run.save("game", lambda: {}, now=True)
    run.clear()
    run.clear()
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_what_is_still_to_be_written_keeps_its_state(tmp_path):
    run = RunState(tmp_path / "run")
    for error in (KeyboardInterrupt, ValueError, None):
        run.save("game", lambda: {}, now=True)
        with suppress(KeyboardInterrupt, ValueError), kept_until_written():
            run.clear()
            assert list(tmp_path.glob("run/game.pt"))
            if error:
                raise error
        assert (tmp_path / "run").exists() == (error is not None)
    run.save("game", lambda: {}, now=True)
    run.clear()
    assert not (tmp_path / "run").exists(), "outside it is cleared at once"


# Whole runs of quantize

RESUMABLE = ["zeroq", "distilled", "best", "gznq-finetuned", "zs-cgan", "zs-cgan-paper", "zaq", "zaq-paper",
             "real-finetune"]


def quantized(recipe: str, folder: Path | None, bits: int = 3, budget: Budget = TINY, **options):
    options |= {"images": images(8)} if recipe == "real-finetune" else {}
    return quantize(awaken(Residual()), QuantConfig(bits, bits), recipe, image_shape=IMAGE, budget=budget, resume=folder,
                    **options)


def write_always(monkeypatch) -> None:
    monkeypatch.setattr(RunState.__init__, "__defaults__", (None, 0.0))


@pytest.mark.parametrize("recipe", RESUMABLE)
def test_an_interrupted_quantization_goes_on(recipe, tmp_path, monkeypatch):
    expected = quantized(recipe, None).model.state_dict()
    write_always(monkeypatch)
    write = RunState.save
    for stop in (2, 5):
        folder, writings = tmp_path / str(stop), []

        def write_and_stop(run, phase, state, *, now=False, stop=stop, writings=writings):
            write(run, phase, state, now=now)
            if run.folder:
                writings.append(phase)
            if len(writings) == stop:
                raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(RunState, "save", write_and_stop)
            try:
                quantized(recipe, folder)
            except KeyboardInterrupt:
                assert list(folder.glob(f"*/{writings[-1]}.pt"))
            else:
                assert len(writings) < stop, "the run was shorter than that"
        assert same_state(quantized(recipe, folder).model.state_dict(), expected)
        assert not list(folder.glob(f"{recipe}_*")), "the state is gone after success"
        assert not list(folder.glob("**/*.partial"))


@pytest.mark.parametrize("recipe, work", [("distilled", (images_module, "_jitter")), ("gznq-finetuned", (gznq, "cos")),
                                          ("zs-cgan", (zscgan, "one_cycle")), ("zaq", (zscgan, "one_cycle"))])
def test_images_and_generators_serve_other_widths(recipe, work, tmp_path, monkeypatch):
    first = quantized(recipe, tmp_path)
    expected = quantized(recipe, None, bits=5)
    monkeypatch.setattr(*work, lambda *_: pytest.fail("this was made already"))
    again = quantized(recipe, tmp_path, bits=5)
    assert same_state(again.model.state_dict(), expected.model.state_dict())
    assert again.report["seconds"] > 0 and first.report["iterations"] == again.report["iterations"]


def test_other_runs_in_the_folder_are_not_mixed_up(tmp_path, monkeypatch):
    """Interrupted runs that differ in one thing each: every one goes on from its own state."""
    write_always(monkeypatch)
    variants = [{}, {"bits": 4}, {"seed": 1}, {"stages": ["conv_a"]}]
    write = RunState.save

    def write_and_stop(run, phase, state, *, now=False):
        write(run, phase, state, now=now)
        if phase == "finetune":
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(RunState, "save", write_and_stop)
        for options in variants:
            with pytest.raises(KeyboardInterrupt):
                quantized("distilled", tmp_path, **options)
    assert len(list(tmp_path.glob("distilled_*"))) == len(variants)
    for options in variants:
        resumed, expected = quantized("distilled", tmp_path, **options), quantized("distilled", None, **options)
        assert same_state(resumed.model.state_dict(), expected.model.state_dict())
    assert not list(tmp_path.glob("distilled_*"))


def test_a_damaged_state_of_a_whole_run_is_named(tmp_path):
    quantized("distilled", tmp_path)
    file, = tmp_path.glob("images_*/images.pt")
    file.write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"images\.pt is damaged .*: delete it"):
        quantized("distilled", tmp_path)


def test_a_run_in_a_checkout_that_cannot_be_written_ends_with_the_same_numbers(tmp_path):
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match="cannot keep this run's state"):
        result = quantized("distilled", tmp_path / "file" / "runs")
    assert same_state(result.model.state_dict(), quantized("distilled", None).model.state_dict())


def test_images_of_older_code_do_not_serve_the_present_one(tmp_path, monkeypatch, edit):
    quantized("zeroq", tmp_path / "runs")
    steps, jitter = [], images_module._jitter
    monkeypatch.setattr(images_module, "_jitter", lambda *args: steps.append(1) or jitter(*args))
    edit("plots.py", "import seaborn as sns\n", "")
    quantized("zeroq", tmp_path / "runs", bits=4)
    assert not steps, "what makes no images decides nothing about them"
    edit("images.py", "SHIFT = 2", "SHIFT = 1")
    quantized("zeroq", tmp_path / "runs", bits=4)
    assert len(steps) == TINY.image_iterations and len(list((tmp_path / "runs").glob("images_*"))) == 2


def test_a_half_finished_run_of_older_code_is_begun_anew(tmp_path, monkeypatch, edit):
    folders = []
    monkeypatch.setattr(RunState, "clear", lambda own: folders.append(own.folder))
    for file, old in (("plots.py", "import seaborn as sns\n"), ("distill.py", "import torch\n")):
        quantized("distilled", tmp_path / "runs")
        edit(file, old, old + "import math\n")
    quantized("distilled", tmp_path / "runs")
    assert folders[0] == folders[1] != folders[2]


def test_interrupted_images_for_other_toolkits_go_on(tmp_path, monkeypatch):
    """synthesize(); and what it has made serves the recipes that would make the same."""
    def made(folder: Path | None) -> Tensor:
        return synthesize(awaken(Residual()), TINY.images, image_shape=IMAGE, budget=TINY, resume=folder)

    write_always(monkeypatch)
    expected, write, steps, jitter = made(None), RunState.save, [], images_module._jitter

    def write_and_stop(run, phase, state, *, now=False):
        write(run, phase, state, now=now)
        raise KeyboardInterrupt
    with monkeypatch.context() as patched:
        patched.setattr(RunState, "save", write_and_stop)
        with pytest.raises(KeyboardInterrupt):
            made(tmp_path)
    monkeypatch.setattr(images_module, "_jitter", lambda *args: steps.append(1) or jitter(*args))
    assert made(tmp_path).equal(expected) and len(steps) == TINY.image_iterations - 1
    result = quantized("zeroq", tmp_path)
    assert len(steps) == TINY.image_iterations - 1
    assert same_state(result.model.state_dict(), quantized("zeroq", None).model.state_dict())


# Processes that are really killed

KILLED = Budget("killed", images=8, image_iterations=30, finetune_iterations=30, generator_iterations=0, image_batch=8,
                batch_size=4)


def run_until_killed(folder: str, phase: str) -> None:
    """In a process of its own: names every phase that it writes, and waits for its end in the middle of one."""
    write, written = RunState.save, []
    RunState.__init__.__defaults__ = (None, 0.0)

    def write_and_tell(run, name, state, **options):
        write(run, name, state, **options)
        written.append(name)
        print(name, flush=True)
        if written.count(phase) == 20:  # the kill comes at the fifth; should it come late, it still comes in the middle
            time.sleep(300)

    RunState.save = write_and_tell
    quantized("distilled", Path(folder), budget=KILLED)


def kill(sent: str, phase: str, folder: Path) -> None:
    """Start the run in a process of its own, and send it the signal when it has written its fifth state of the phase."""
    here = Path(__file__).parent
    script = "import sys; sys.path[:0] = sys.argv[1:3]; import test_resume; test_resume.run_until_killed(*sys.argv[3:])"
    process = subprocess.Popen([sys.executable, "-c", script, str(here), str(here.parent), str(folder), phase],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())})
    try:
        written = 0
        for line in process.stdout:
            written += line.strip() == phase
            if written == 5:
                break
        process.send_signal(getattr(signal, sent))
        _, problem = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == -getattr(signal, sent), problem


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system kills in other ways")
def test_a_run_that_is_killed_twice_ends_with_the_same_numbers(tmp_path):
    """kill -9 while the images are made, SIGTERM during fine-tuning, then in peace."""
    for sent, phase in (("SIGKILL", "images"), ("SIGTERM", "finetune")):
        kill(sent, phase, tmp_path)
        file, = tmp_path.glob(f"*/{phase}.pt")
        assert 5 <= torch.load(file, weights_only=True)["iteration"] <= 20
    resumed, expected = (quantized("distilled", folder, budget=KILLED) for folder in (tmp_path, None))
    assert same_state(resumed.model.state_dict(), expected.model.state_dict())
    assert not list(tmp_path.glob("distilled_*"))

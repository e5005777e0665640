"""Two processes are one: the generator, the student and the blocks take the steps that a single process takes."""
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from networks import IMAGE, Residual, awaken, images, teach

from zsq_lab.blocks import find_blocks
from zsq_lab.distill import finetune, stage_layers
from zsq_lab.distributed import joined, mean_over_processes, part, world
from zsq_lab.generators import Generator
from zsq_lab.graph import trace
from zsq_lab.job import pool_sampler
from zsq_lab.layers import QuantConfig, convert
from zsq_lab.ranges import fit_input_ranges, fit_weight_ranges
from zsq_lab.reconstruct import reconstruct
from zsq_lab.zscgan import Settings, train_generator

STEPS, BATCH = 3, 8


def train_all() -> dict[str, torch.Tensor]:
    """A generator, a student and a block-wise student after a few steps, from fixed seeds."""
    x = images(16, IMAGE)
    teacher, student = convert(teach(awaken(Residual()), x), QuantConfig(4, 4), IMAGE)
    fit_weight_ranges(student, search=True)
    fit_input_ranges(student, [x], search=True)
    start = {key: value.clone() for key, value in student.state_dict().items()}
    torch.manual_seed(0)
    generator = Generator(IMAGE, 5, condition="batchnorm")
    train_generator(generator, teacher, iterations=STEPS, batch_size=BATCH,
                    settings=Settings(1e-3, (0.5, 0.99), 0.1, False))
    with torch.no_grad():  # what it draws: a bias before a BatchNorm has no gradient but noise, which Adam makes steps of
        result = {"images": generator.sample(BATCH, torch.Generator().manual_seed(1))[0]}
    finetune(student, teacher, pool_sampler(x, BATCH), stage_layers(trace(teacher, IMAGE)), iterations=STEPS,
             learning_rate=1e-3)
    result |= {f"student.{key}": value.clone() for key, value in student.state_dict().items()}
    student.load_state_dict(start)
    reconstruct(student, teacher, x, find_blocks(student, IMAGE), iterations=STEPS, learning_rate=1e-3,
                batch_size=BATCH)
    return result | {f"blocks.{key}": value for key, value in student.state_dict().items()}


def main(file: str) -> None:
    """What each of the two processes runs."""
    with joined():
        rank, size = world()
        assert size == 2 and part(torch.arange(6)).tolist() == [rank, rank + 2, rank + 4]
        assert mean_over_processes(torch.tensor(float(rank))).item() == 0.5
        torch.save(train_all(), f"{file}{rank}")


def test_two_gloo_processes_equal_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    tests = Path(__file__).resolve().parent
    own = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1",
           "PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)])}
    code = f"import test_distributed; test_distributed.main({str(tmp_path / 'rank')!r})"
    running = [subprocess.Popen([sys.executable, "-c", code],
                                env={**os.environ, **own, "RANK": rank, "LOCAL_RANK": rank},
                                stderr=subprocess.PIPE, text=True) for rank in ("0", "1")]
    for process in running:
        assert process.wait(120) == 0, process.communicate()[1]
        process.stderr.close()
    one = train_all()
    for rank in (0, 1):
        several = torch.load(tmp_path / f"rank{rank}", weights_only=True)
        assert several.keys() == one.keys()
        for key, value in one.items():
            torch.testing.assert_close(several[key], value, rtol=1e-3, atol=2e-5, msg=lambda text,
                                       key=key: f"{key}: {text}")


def test_alone_nothing_changes(monkeypatch):
    x = torch.ones(3)
    with joined() as device:
        assert world() == (0, 1) and part(x) is x and mean_over_processes(x) is x and device.type in ("cpu", "cuda")


@pytest.mark.parametrize("gpus, rank, device, backend", [
    (0, 1, "cpu", "gloo"), (2, 1, "cuda:1", "cpu:gloo,cuda:nccl"), (1, 1, "cpu", "gloo")])
def test_tensors_of_either_device_can_be_averaged(monkeypatch, gpus, rank, device, backend):
    """The commands keep networks on the CPU also where there is a GPU; a process beyond the last GPU has none. Which calls are
    made, for computers without a GPU; with one, `test_two_gloo_processes_equal_one` averages CPU tensors for real."""
    calls = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", lambda own: calls.append(str(own)))
    monkeypatch.setattr(torch.distributed, "init_process_group", calls.append)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: None)
    for name, value in {"WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    with joined() as own:
        assert str(own) == device
    assert calls == [device, backend][device == "cpu":]


def test_a_batch_that_cannot_be_shared_is_named(monkeypatch):
    monkeypatch.setattr("zsq_lab.distributed.world", lambda: (0, 2))
    with pytest.raises(ValueError, match="a batch of 3 cannot be shared evenly by 2 processes"):
        part(torch.ones(3))

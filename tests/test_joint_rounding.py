"""All roundings at once: they stay on their grids, answer better than the blocks left them, and resume."""
from functools import partial

import pytest
import torch
from networks import IMAGE, Residual, same_state, snapshot
from test_reconstruct import pair

from zsq_lab.blocks import find_blocks
from zsq_lab.distill import stage_layers
from zsq_lab.graph import trace
from zsq_lab.health import Stopped
from zsq_lab.job import pool_sampler
from zsq_lab.joint_rounding import exact_weights, round_together
from zsq_lab.layers import quant_layers
from zsq_lab.reconstruct import reconstruct
from zsq_lab.resume import RunState
from zsq_lab.tasks import output_loss


def after_blocks(n=64):
    teacher, student, x = pair(Residual(), bits=3, activation_bits=8, n=n)
    exact = exact_weights(student)
    reconstruct(student, teacher, x, find_blocks(student, IMAGE), iterations=5)
    stages = stage_layers(trace(teacher, IMAGE))
    return teacher, student, x, exact, partial(round_together, student, teacher, exact, pool_sampler(x, 16), stages)


def test_the_answer_comes_closer_and_the_teacher_stays():
    teacher, student, x, _, together = after_blocks()
    kept = snapshot(teacher)

    def distance():
        with torch.inference_mode():
            return output_loss(student(x), teacher(x)).item()
    before = distance()
    together(iterations=80, learning_rate=0.05, loss=lambda own, wanted, *_: output_loss(own, wanted))
    assert distance() < 0.8 * before
    assert same_state(kept, teacher.state_dict()) and not any(p.requires_grad for p in student.parameters())


def test_every_weight_goes_to_one_of_two_grid_points_around_it():
    _, student, _, exact, together = after_blocks()
    blocks = [w.clone() for w in exact_weights(student)]
    together(iterations=40, learning_rate=0.02)
    moved = 0
    for layer, weight, before in zip(quant_layers(student).values(), exact, blocks, strict=True):
        own, quantizer = layer.layer.weight, layer.weight_quantizer
        assert torch.allclose(quantizer(own), own, atol=1e-6)  # on the grid
        inside = (weight / quantizer.scale).abs() < quantizer.quant_max
        assert ((own - weight).abs() <= 1.001 * quantizer.scale.expand_as(own))[inside].float().mean() > 0.95
        moved += ((own / quantizer.scale).round() != (before / quantizer.scale).round()).sum().item()
    assert moved > 0


def test_the_ranges_of_narrow_inputs_move_with_the_roundings():
    _, student, _, _, together = after_blocks()
    inner = [layer.input_quantizer for layer in quant_layers(student).values()][1:]
    for quantizer in inner:
        quantizer.bits, quantizer.quant_max = 3, 7
    before = [quantizer.scale.item() for quantizer in inner]
    together(iterations=60, scale_rate=1.0)
    assert all(abs(quantizer.scale.item() / old - 1) > 0.05 for quantizer, old in zip(inner, before, strict=True))


def test_an_interrupted_run_ends_with_the_same_numbers(tmp_path):
    class Stop(Exception):
        pass

    results, draws = [], []
    for broken in (False, True):
        teacher, student, x, exact, together = after_blocks()
        start = {name: value.clone() for name, value in student.state_dict().items()}
        run, draw = RunState(tmp_path / str(broken), every=0), pool_sampler(x, 16)

        def counted(random, broken=broken, draw=draw):
            draws.append(1)
            if broken and len(draws) == 4:
                raise Stop
            return draw(random)
        if broken:
            draws.clear()
            with pytest.raises(Stop):
                round_together(student, teacher, exact, counted, together.args[4], iterations=6, run=run)
            student.load_state_dict(start)  # as a new process would find it
        round_together(student, teacher, exact, counted, together.args[4], iterations=6, run=run)
        results.append(student.state_dict())
    assert same_state(*results) and len(draws) == 4 + 3, "the second call goes on with the fourth step"


def test_divergence_is_named():
    *_, together = after_blocks(16)
    with pytest.raises(Stopped, match="lower the learning rate"):
        together(iterations=3, loss=lambda *_: torch.tensor(float("nan"), requires_grad=True))

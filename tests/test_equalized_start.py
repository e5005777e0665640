"""Equalization at the start: kept where it costs nothing, taken back where it does, never a change of the function."""
import pytest
import torch
from networks import TINY

from zsq_lab import equalized_start
from zsq_lab.checkpoints import load_model
from zsq_lab.equalized_start import MAY_COST, equalize_where_it_serves
from zsq_lab.images import optimise_images
from zsq_lab.job import Job
from zsq_lab.layers import QuantConfig, convert


def shipped(name: str, config: QuantConfig) -> Job:
    shape = (3, 32, 32)
    teacher, student = convert(load_model(name)[0], config, shape)
    return Job(teacher, student, config, shape, TINY, 0)


@pytest.mark.parametrize("name, kept", [("cifar10/resnet20", True), ("cifar10/mobilenetv2", False)])
def test_weights_are_equalized_where_that_does_not_cost(name, kept):
    work = shipped(name, QuantConfig(4, 4))
    made, _ = optimise_images(work.teacher, 32, work.image_shape, iterations=15)
    teacher, before, plain = work.teacher, work.teacher(made), equalized_start._layers_error(work, made)
    equalize_where_it_serves(work, made)
    assert work.notes["equalized"] == kept
    assert (work.teacher is teacher) != kept
    torch.testing.assert_close(work.teacher(made), before, rtol=1e-3, atol=1e-3)  # the same function either way
    assert equalized_start._layers_error(work, made) <= MAY_COST * plain


def test_kept_batchnorms_leave_nothing_to_equalize():
    work = shipped("cifar10/resnet20", QuantConfig(4, 4, convention="literature"))
    teacher, student = work.teacher, work.student
    equalize_where_it_serves(work, torch.zeros(2, *work.image_shape))
    assert work.teacher is teacher and work.student is student

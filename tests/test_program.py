"""Programs as lists of steps: what runs, what is read by whom, what can be left out; by hand, without a model."""
import torch
from torch import nn

from zsq_lab.program import INPUT, QUANTIZE, Program, Step, Value, renamed, run_step, values, without_unused
from zsq_lab.quantizer import Quantizer

ATEN = torch.ops.aten


def step(name: str, *args, shape=(-1, 2), **more) -> Step:
    return Step(name, args, shape, getattr(getattr(ATEN, name, None), more.pop("overload", "default"), None), **more)


def program(outputs=None) -> Program:
    """((|x| + x) and a sine that nobody reads) split in two; the second part times two."""
    steps = [step("abs", INPUT), step("sin", Value(0)), step("add", Value(0), INPUT, overload="Tensor"),
             step("split", Value(2), 1, 1, overload="Tensor", shape=(-1, 1)),
             step("mul", Value(3, 1), 2.0, overload="Scalar", shape=(-1, 1))]
    return Program(steps, outputs or [Value(4)], (2,))


X = torch.tensor([[1.0, -2], [3, 4]])


def test_steps_run_in_order_and_parts_are_taken():
    assert program()(X).tolist() == [[0], [16]]
    first, second = program([Value(3), Value(3, 1)])(X)
    assert first.tolist() == [[2], [6]] and second.tolist() == [[0], [8]], "several outputs, several parts"


def test_what_was_read_for_the_last_time_is_let_go_and_outputs_are_kept():
    own = program([Value(4), Value(0)])
    assert [out.tolist() for out in own(X)] == [[[0], [16]], [[1, 2], [3, 4]]]
    seen = []
    own(X, observe=lambda index, result: seen.append(index))
    assert seen == [0, 1, 2, 3, 4]


def test_parts_are_kept_until_the_last_of_them_was_read_and_the_first_is_seen():
    own = Program([step("split", INPUT, 1, 1, overload="Tensor"), step("abs", Value(0)),
                   step("add", Value(0, 1), Value(1), overload="Tensor")], [Value(2)], (2,))
    seen = []
    assert own(X, observe=lambda index, result: seen.append(result.tolist())).tolist() == [[-1], [7]]
    assert seen == [[[1], [3]], [[1], [3]], [[-1], [7]]]


def test_users_are_named_once_for_each_step():
    twice = Program([step("mul", INPUT, INPUT, overload="Tensor"), step("abs", Value(0))], [Value(1)], (2,))
    assert twice.users() == {INPUT: [0], Value(0): [1]}
    assert program().users() == {INPUT: [0, 2], Value(0): [1, 2], Value(2): [3], Value(3, 1): [4]}


def test_a_program_reads_like_a_list_of_formulas():
    assert str(program()).splitlines() == ["%0 = abs(image)", "%1 = sin(%0)", "%2 = add(%0, image)",
                                           "%3 = split(%2, 1, 1)",
                                           "%4 = mul(%3.1, 2.0)"]
    assert "tensor[2, 3]" in str(Program([step("add", INPUT, torch.ones(2, 3), overload="Tensor")], [Value(0)], (3,)))


def test_values_lie_in_nested_lists():
    assert list(values([1, (Value(2), [Value(0, 1)]), None, torch.ones(1)])) == [Value(2), Value(0, 1)]


def test_without_unused_steps_the_others_are_numbered_anew():
    left = without_unused(program())
    assert [s.name for s in left.steps] == ["abs", "add", "split", "mul"]
    assert left.steps[3].args[0] == Value(2, 1) and left.outputs == [Value(3)] and not left.training
    assert torch.equal(left(X), program()(X))
    moved = renamed(step("cat", [Value(5), Value(7, 1)], 1), {5: 0, 7: 2})
    assert moved.args == ([Value(0), Value(2, 1)], 1)


def test_shapes_are_made_for_any_batch():
    view = step("view", INPUT, [2, 4], shape=(-1, 4))  # recorded at a batch of two
    for batch in (1, 3):
        assert run_step(view, {-1: torch.zeros(batch, 2, 2)}).shape == (batch, 4)
    assert run_step(step("expand", INPUT, [2, 5], shape=(-1, 5)), {-1: torch.zeros(3, 1)}).shape == (3, 5)


def test_options_and_quantizers_take_part():
    doubled = step("add", INPUT, INPUT, overload="Tensor", options={"alpha": 2})
    assert torch.equal(run_step(doubled, {-1: X}), 3 * X)
    quantizer = Quantizer(2, symmetric=False)
    quantizer.set_range(torch.tensor(0.0), torch.tensor(3.0))
    rounded = Program([Step(QUANTIZE, (INPUT,), (-1, 2), quantizer=quantizer)], [Value(0)], (2,))
    assert rounded(X).tolist() == [[1, 0], [3, 3]] and list(rounded.quantizers) == [quantizer]
    assert isinstance(rounded, nn.Module) and len(list(rounded.modules())) == 3

"""The exercise check tells right from wrong, and says in words what is wrong."""
import pytest
import torch

from zsq_lab.check import check


def double(x):
    return 2 * x


CASES = [(torch.tensor([1.0, 2.0]),), (torch.zeros(3),)]


def test_a_right_answer_prints_one_line(capsys):
    def mine(x):
        return x + x

    check(mine, double, CASES, "add it to itself")
    assert capsys.readouterr().out == "mine: correct on all 2 cases\n"


@pytest.mark.parametrize("reference", [lambda x: (x, 2 * x), lambda x: 3, lambda x: 0.5, lambda x: x > 1,
                                       lambda x: (x.mean(), 7)])
def test_tensors_numbers_and_tuples_are_compared(reference):
    check(reference, reference, CASES, "")


def test_small_differences_of_floats_are_allowed_and_larger_ones_not():
    check(lambda x: 2 * x * (1 + 1e-6), double, CASES, "")
    with pytest.raises(AssertionError):
        check(lambda x: 2 * x * (1 + 1e-3), double, CASES, "")
    check(lambda x: 2 * x * (1 + 1e-3), double, CASES, "", tolerance=1e-2)


def answer(result):
    return lambda x: result


@pytest.mark.parametrize("yours, problem", [
    (lambda x: x, r"case 1 of 2: expected 4, got 2 \(largest difference\)"),
    (lambda x: 2 * x + (x == 0), r"case 2 of 2: expected 0, got 1"),
    (lambda x: None, "it returned None: is a return missing"),
    (lambda x: 2 * x[:1], r"expected shape \[2\], got \[1\]"),
    (lambda x: x.sum(), r"expected shape \[2\], got \[\]"),
    (lambda x: 2 * x * torch.nan, "expected 2, got nan"),
    (lambda x: (2 * x, x), "expected one result, got a tuple of 2"),
    (lambda x: "four", "expected a tensor or a number, got 'four'"),
])
def test_a_wrong_answer_is_explained(yours, problem):
    with pytest.raises(AssertionError, match=problem):
        check(yours, double, CASES, "")


def test_the_number_of_results_counts():
    with pytest.raises(AssertionError, match="expected 2 results"):
        check(double, lambda x: (x, x), CASES, "")
    with pytest.raises(AssertionError, match="expected 4, got 2"):
        check(lambda x: (x, x), lambda x: (x, 2 * x), CASES, "")


def test_the_function_and_the_hint_are_named():
    def mine(x):
        return x

    with pytest.raises(AssertionError, match="^mine, case 1 of 2: .* Hint: try harder$"):
        check(mine, double, CASES, "try harder")


def test_an_empty_exercise_says_so():
    def mine(x):
        raise NotImplementedError

    with pytest.raises(AssertionError, match="mine is still empty: replace the line that raises. Hint: try"):
        check(mine, double, CASES, "try")


def test_an_answer_that_changes_its_argument_is_not_mistaken_for_a_right_one():
    def in_place(x):
        return x.mul_(3)

    with pytest.raises(AssertionError):
        check(in_place, lambda x: x, [(torch.ones(2),)], "")


def test_several_results_may_come_as_a_list(capsys):
    check(lambda x: [x, 2 * x], lambda x: (x, 2 * x), [(3.0,)], "double it")
    assert "correct" in capsys.readouterr().out
    with pytest.raises(AssertionError, match="expected 6, got 7"):
        check(lambda x: [x, 7.0], lambda x: (x, 2 * x), [(3.0,)], "double it")

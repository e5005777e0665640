"""Exercise checks: they take your function, compare it with the lab's own, and say what is wrong."""
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def check(yours: Callable, reference: Callable, cases: Sequence[tuple], hint: str, *, tolerance: float = 1e-5) -> None:
    """Run both functions on each case (a tuple of arguments) and compare the results.

    Prints one line when all agree; raises AssertionError that names the first case that differs, both results and the
    hint. Results may be tensors or numbers, several of them a tuple or a list.
    """
    name = getattr(yours, "__name__", "your function")
    for number, case in enumerate(cases, 1):
        expected = reference(*case)
        try:
            # Copies: an answer that works in place must not change what it is compared with.
            got = yours(*(v.detach().clone().requires_grad_(v.requires_grad) if isinstance(v, Tensor) else v for v in case))
        except NotImplementedError:
            raise AssertionError(f"{name} is still empty: replace the line that raises. Hint: {hint}") from None
        problem = _difference(got, expected, tolerance)
        assert problem is None, f"{name}, case {number} of {len(cases)}: {problem}. Hint: {hint}"
    print(f"{name}: correct" + (f" on all {len(cases)} cases" if len(cases) > 1 else ""))


def _difference(got, expected, tolerance: float) -> str | None:
    if isinstance(expected, tuple):
        if not isinstance(got, (tuple, list)) or len(got) != len(expected):
            return f"expected {len(expected)} results, got {got!r}"
        return next((p for g, e in zip(got, expected, strict=True) if (p := _difference(g, e, tolerance))), None)
    if got is None:
        return "it returned None: is a return missing?"
    if isinstance(got, tuple):
        return f"expected one result, got a tuple of {len(got)}"
    try:
        got, expected = (v if isinstance(v, Tensor) else torch.as_tensor(v) for v in (got, expected))
    except (TypeError, ValueError, RuntimeError):
        return f"expected a tensor or a number, got {got!r}"
    if got.shape != expected.shape:
        return f"expected shape {list(expected.shape)}, got {list(got.shape)}"
    got, expected = got.double(), expected.double()
    if not torch.allclose(got, expected, rtol=tolerance, atol=tolerance):
        worst = (got - expected).abs().flatten().argmax()
        return f"expected {expected.flatten()[worst]:.6g}, got {got.flatten()[worst]:.6g} (largest difference)"
    return None

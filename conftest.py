"""Settings of the whole test run: how notebooks are compared, and what happens where CIFAR-10 is absent.

`pytest --nbval` executes the notebooks too. Their outputs are compared only where the data is there that the committed
outputs were made with; elsewhere, on the embedded images, they must run without an error (nbval's lax mode).
"""
import os
from functools import cache

import hypothesis
import matplotlib
import pytest

matplotlib.use("Agg")  # no windows; an environment variable would reach the notebooks' kernels and hide their figures
hypothesis.settings.register_profile("lab", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("lab")  # the same examples in each run, and no complaint about a busy computer

CELL_TIMEOUT = 300.0  # seconds
NOT_COMPARED = ("stderr", "text/html", "image/png", "image/jpeg", "image/svg+xml",
                "application/vnd.jupyter.widget-view+json")  # warnings, tables twice, pixels, random widget ids


@cache
def cifar10_found() -> bool:
    """Whether the lab would run on CIFAR-10 here."""
    if os.environ.get("ZSQ_PROFILE", "cifar10") != "cifar10":
        return False
    from zsq_lab.data import DataError, find_dataset
    try:
        return find_dataset("cifar10").name == "cifar10"
    except DataError:
        return False


def pytest_configure(config: pytest.Config) -> None:
    if not (getattr(config.option, "nbval", False) or getattr(config.option, "nbval_lax", False)):
        return
    config.option.nbval_current_env = True  # the kernel of this environment, whatever else is installed
    if "--nbval-cell-timeout" not in " ".join(config.invocation_params.args):
        config.option.nbval_cell_timeout = CELL_TIMEOUT
    if not cifar10_found():
        config.option.nbval_lax = True


def pytest_report_header(config: pytest.Config) -> str:
    found = "found" if cifar10_found() else "not found, tests on real data are skipped (make data, or set ZSQ_DATA)"
    option = config.option
    lax, strict = getattr(option, "nbval_lax", False), getattr(option, "nbval", False)
    mode = "executed" if lax else "executed and compared" if strict else "left out (--nbval)"
    return f"CIFAR-10: {found}; notebooks: {mode}"


def pytest_collectstart(collector: pytest.Collector) -> None:
    if hasattr(collector, "skip_compare"):  # a notebook
        collector.skip_compare += NOT_COMPARED


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("real_data") and not cifar10_found():
            item.add_marker(pytest.mark.skip(reason="CIFAR-10 is not here: make data, or set ZSQ_DATA"))

"""Settings of the whole test run: how notebooks are compared, and what happens where CIFAR-10 is absent.

`pytest --nbval` executes the notebooks too. Their outputs are compared only where the data is there that the committed
outputs were made with; elsewhere, on the embedded images, they must run without an error (nbval's lax mode).

`pytest -n 2` is the same in two worker processes (pytest-xdist): a file stays in one of them, its notebook's cells in
order, and each worker computes on one thread, which on two cores is faster than one process on two.
"""
import os
from functools import cache

import hypothesis
import matplotlib
import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is imported; kernels and other child processes inherit it
    os.environ.setdefault("OMP_NUM_THREADS", "1")

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


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):  # a worker of pytest-xdist gets the options as they are settled below
        return
    if getattr(config.option, "dist", "no") == "load":  # -n without --dist
        config.option.dist = "loadfile"
        config.option.loadscopereorder = False  # the order is `pytest_collection_modifyitems`'
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


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):  # notebooks take longest: no worker should be left alone with one at the end
        items.sort(key=lambda item: item.path.suffix != ".ipynb")
    for item in items:
        if item.get_closest_marker("real_data") and not cifar10_found():
            item.add_marker(pytest.mark.skip(reason="CIFAR-10 is not here: make data, or set ZSQ_DATA"))

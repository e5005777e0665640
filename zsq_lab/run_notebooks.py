"""Executes the notebooks in order and writes executed copies and HTML under build/: what `make run` does.

Each notebook runs in a fresh kernel of this Python, in its own folder. A line `Headline: ...` printed by its last code
cell is its result in the closing table. A notebook that fails stops the run, and its copy so far is kept.
"""
import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from tqdm import tqdm

from .pages import printed_lines, to_html

ROOT = Path(__file__).resolve().parent.parent
HEADLINE = "Headline: "
CELL_TIMEOUT = 600  # seconds; the slowest cell of the lab takes about one minute on two cores


class NotebookError(RuntimeError):
    """A notebook failed; the message names the notebook, the cell and the reason in one line."""


class ThisPython(AsyncKernelManager):
    """Starts the kernel of the very Python that runs this file, whatever kernels are installed."""

    def __init__(self, **settings):
        super().__init__(**{"kernel_spec_manager": KernelSpecManager(kernel_dirs=[]), **settings})


@dataclass(frozen=True)
class Result:
    """One line of the closing table."""

    name: str
    seconds: float
    headline: str


def run(paths: list[Path], build: Path, save: bool = False) -> list[Result]:
    """Execute the notebooks; returns a Result each. Raises NotebookError at the first that fails.

    build: gets notebooks/NAME.ipynb and html/NAME.html. save: also replace each notebook by its executed copy.
    """
    results = []
    for number, path in enumerate(paths, 1):
        notebook, started = nbformat.read(path, as_version=4), time.perf_counter()
        copy = build / "notebooks" / path.name
        try:
            execute(notebook, path, f"[{number}/{len(paths)}] {path.stem}")
        finally:
            state = notebook.metadata.pop("widgets", None)
            write(copy, nbformat.writes(clean(notebook)))
        seconds = time.perf_counter() - started
        if save:
            write(path, nbformat.writes(notebook))
        write(build / "html" / f"{path.stem}.html", to_html(notebook, state))
        results.append(Result(path.stem, seconds, headline(notebook)))
        print(f"[{number}/{len(paths)}] {path.stem}: {seconds:.0f} s. {results[-1].headline}", flush=True)
    return results


def execute(notebook: NotebookNode, path: Path, label: str) -> None:
    """Run all code cells in place, in the notebook's folder, with a progress bar over the cells on a terminal."""
    current = 0

    with tqdm(total=len(notebook.cells), desc=label, unit="cell", leave=False, disable=None) as bar:
        def started(cell: NotebookNode, cell_index: int) -> None:
            nonlocal current
            current = cell_index
            bar.update(cell_index - bar.n)

        client = NotebookClient(notebook, kernel_name="python3", kernel_manager_class=ThisPython, record_timing=False,
                                extra_arguments=["--log-level=ERROR"], timeout=CELL_TIMEOUT, on_cell_start=started,
                                resources={"metadata": {"path": str(path.parent)}})
        try:
            client.execute()
            return
        except CellExecutionError as error:
            reason = f"{error.ename}: {error.evalue}"
        except CellTimeoutError:
            reason = f"still running after {CELL_TIMEOUT} seconds"
        except DeadKernelError:
            reason = "the kernel died (often: not enough memory)"
    code_cells = sum(cell.cell_type == "code" for cell in notebook.cells[:current + 1])
    first_line = (reason.splitlines() or [""])[0]
    raise NotebookError(f"{path.name}: code cell {code_cells} failed, {first_line}")


def headline(notebook: NotebookNode) -> str:
    """What follows "Headline: " in the output of the last code cell that is not empty; "" where nothing does."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    lines = [line for cell in cells[-1:] for line in printed_lines(cell) if line.startswith(HEADLINE)]
    return lines[-1].removeprefix(HEADLINE) if lines else ""


def clean(notebook: NotebookNode) -> NotebookNode:
    """Drop, in place, the text of progress bars: it differs in each run and says nothing afterwards."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs
                            if not (output.get("name") == "stderr" and ("\r" in output.text or not output.text.strip()))]
    return notebook


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def table(results: list[Result]) -> str:
    """The closing table as text."""
    width = max(len(result.name) for result in results)
    rows = [f"{result.name:<{width}}  {result.seconds:7.0f}  {result.headline}" for result in results]
    return "\n".join([f"{'notebook':<{width}}  seconds  result", *rows])


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status: 1 where a notebook failed, 2 for notebooks that are not there."""
    parser = argparse.ArgumentParser(prog="python -m zsq_lab.run_notebooks", description="Execute the notebooks.")
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: notebooks/0*.ipynb")
    parser.add_argument("--build", type=Path, default=ROOT / "build", help="where the copies and the HTML go")
    parser.add_argument("--save", action="store_true", help="also replace each notebook by its executed copy")
    args = parser.parse_args(argv)
    paths = args.notebooks or sorted((ROOT / "notebooks").glob("0*.ipynb"))
    absent = [str(path) for path in paths if not path.is_file()]
    if absent or not paths:
        print(f"no such notebook: {', '.join(absent) or 'notebooks/0*.ipynb'}", file=sys.stderr)
        return 2
    try:
        results = run(paths, args.build, args.save)
    except NotebookError as error:
        print(f"FAILED {error}. The copy up to there is in {args.build / 'notebooks'}.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"Stopped. The copies up to there are in {args.build / 'notebooks'}.", file=sys.stderr)
        return 1
    print(f"\n{table(results)}\n\nPages to read: {args.build / 'html'}. To open the lab: make lab (or: jupyter lab notebooks)")
    return 0


if __name__ == "__main__":
    sys.exit(main())

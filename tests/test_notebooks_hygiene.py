"""The rules that every committed notebook keeps, and a proof that each rule notices the notebook that breaks it."""
import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MAX_LINES, MAX_WIDTH = 30, 104  # of a cell; what a page shows without scrolling sideways
UNIX_ROOTS = r"home|Users|root|tmp|var|usr|opt|mnt|media|srv|private|Volumes|content|work\w*"
ABSOLUTE_PATH = re.compile(rf"(?<![\w.:/~<-])/(?:{UNIX_ROOTS})/[\w.]|\b[A-Z]:\\\w|file:///")
PROGRESS = re.compile(r"\d+%\|| \[\d+:\d\d(?::\d\d)?<|it/s\]|s/it\]|█")
WARNING = re.compile(r"\w*Warning\b: |warnings\.warn\(")
FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)


def problems(notebook: NotebookNode) -> Iterator[str]:
    """What breaks the rules, a line each; nothing for a clean notebook."""
    nbformat.validate(notebook)
    if "widgets" in notebook.metadata:
        yield "metadata.widgets is saved: it is large, and different in each run"
    if notebook.metadata.get("kernelspec", {}).get("name") != "python3":
        yield "the kernel is not 'python3', which is the one every installation has"
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    counts = [cell.execution_count for cell in code]
    if counts != list(range(1, len(code) + 1)):
        yield f"cells were not executed in order from 1: {counts}"
    for number, cell in enumerate(code, 1):
        yield from (f"code cell {number}: {problem}" for problem in code_problems(cell))
    yield from heading_problems([line for cell in notebook.cells if cell.cell_type == "markdown"
                                 for line in FENCE.sub("", cell.source).splitlines()])
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            yield from text_problems(cell.source)
    yield from solution_problems(notebook)


def code_problems(cell: NotebookNode) -> Iterator[str]:
    lines = cell.source.count("\n") + 1
    if lines > MAX_LINES:
        yield f"{lines} lines, at most {MAX_LINES} fit a reader's head"
    if (widest := max(map(len, cell.source.splitlines()))) > MAX_WIDTH:
        yield f"a line of {widest} characters, at most {MAX_WIDTH} are seen at once"
    if ABSOLUTE_PATH.search(cell.source):
        yield "an absolute path in the source"
    pictures, printed = 0, ""
    for output in cell.outputs:
        data = output.get("data", {})
        pictures += any(kind.startswith("image/") for kind in data)
        text = output.get("text", "") + "".join(data.get(kind, "") for kind in ("text/plain", "text/html"))
        printed += f"{text}\n"
        if output.output_type == "error":
            yield f"an error in the output: {output.ename}"
        if output.get("name") == "stderr":
            yield f"text on standard error: {text.strip()[:60]!r}"
        if PROGRESS.search(text):
            yield "the text of a progress bar in the output"
        if WARNING.search(text):
            yield "a warning in the output"
        if ABSOLUTE_PATH.search(text) or str(ROOT) in text:
            yield "an absolute path in the output"
    if pictures > len(re.findall(r"^Figure: \S", printed, re.MULTILINE)):
        yield f"{pictures} pictures, not as many sentences 'Figure: ...' below them (use plots.show)"


def text_problems(source: str) -> Iterator[str]:
    for alt, target in re.findall(r"!\[(.*?)\]\((.*?)\)", source):
        if not alt.strip():
            yield f"image {target[:40]} has no alternative text"
    for tag in re.findall(r"<img\b[^>]*>", source):
        if not re.search(r"""\balt=(["'])\s*\S.*?\1""", tag):
            yield f"image {tag[:40]} has no alternative text"
    if ABSOLUTE_PATH.search(source):
        yield "an absolute path in the text"


def heading_problems(lines: list[str]) -> Iterator[str]:
    levels = [len(match[1]) for line in lines if (match := re.match(r"(#{1,6}) \S", line))]
    if levels.count(1) != 1 or levels[0] != 1:
        yield f"heading levels {levels}: the first, and only the first, is of level 1"
    for above, below in zip(levels, levels[1:]):
        if below > above + 1:
            yield f"a heading of level {below} follows one of level {above}"


def solution_problems(notebook: NotebookNode) -> Iterator[str]:
    for number, cell in enumerate(notebook.cells, 1):
        marks = re.findall(r"# (BEGIN|END) SOLUTION", cell.source)
        if marks and (cell.cell_type != "code" or marks != ["BEGIN", "END"] * (len(marks) // 2)):
            yield f"cell {number}: BEGIN SOLUTION and END SOLUTION do not pair up in a code cell: {marks}"


@pytest.mark.skipif(bool(NOTEBOOKS), reason="there are notebooks")
def test_there_are_notebooks():
    pytest.skip("no notebooks yet: nothing to look at")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_keeps_the_rules(path):
    found = list(problems(nbformat.read(path, as_version=4)))
    assert not found, f"{path.name}\n" + "\n".join(found)


def notebook_of(*cells: NotebookNode) -> NotebookNode:
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = new_notebook(metadata={"kernelspec": kernel}, cells=[new_markdown_cell("# Title"), *cells])
    for number, cell in enumerate((cell for cell in cells if cell.cell_type == "code"), 1):
        cell.execution_count = cell.execution_count or number
    return notebook


def output(kind: str, **fields) -> list[NotebookNode]:
    return [new_output(kind, **fields)]


PICTURE = new_output("display_data", data={"image/png": "aWNv", "text/plain": "<Figure size 64x48>"})
CLEAN = [
    new_code_cell("print(1)", outputs=output("stream", text="1\nratio 3/4, W4/A4, 50 % of it\n")),
    new_code_cell("plots.show(figure)", outputs=[PICTURE, new_output("stream", text="Figure: error falls.\n")]),
    new_markdown_cell("## Part\n```\n# a comment, no heading\n```\n![a grid](images/grid.png) <img alt='a' src='b'>"),
    new_code_cell("# BEGIN SOLUTION\nx = 1\n# END SOLUTION"),
    new_markdown_cell("### Detail\n## Next part\nSee https://example.org/home/page and `data/cache/`."),
]
BROKEN = {
    "executed in order": new_code_cell("1", execution_count=7),
    "30 fit": new_code_cell("\n".join(["x = 1"] * 31)),
    "104 are seen": new_code_cell("x = 1  # " + "o" * 100),
    "an error": new_code_cell("1", outputs=output("error", ename="ValueError", evalue="", traceback=[])),
    "standard error": new_code_cell("1", outputs=output("stream", name="stderr", text="hm\n")),
    "progress bar": new_code_cell("1", outputs=output("stream", text=" 40%|████      | 4/10 [00:02<00:03,  2.00it/s]\n")),
    "a warning": new_code_cell("1", outputs=output("stream", text="x.py:3: UserWarning: old\n")),
    "path in the output": new_code_cell("1", outputs=output("stream", text=f"saved to {ROOT}/x\n")),
    "path in the source": new_code_cell("open('/home/someone/x')"),
    "path in the text": new_markdown_cell(r"Open C:\Users\someone."),
    "Figure: ": new_code_cell("1", outputs=[PICTURE, PICTURE, new_output("stream", text="Figure: one of two.\n")]),
    "no alternative text": new_markdown_cell("![](grid.png)"),
    "<img src='grid.png' alt=''> has no": new_markdown_cell("<img src='grid.png' alt=''>"),
    "only the first": new_markdown_cell("# Second title"),
    "follows one of level 1": new_markdown_cell("### Too deep"),
    "pair up": new_code_cell("# BEGIN SOLUTION\nx = 1"),
    "pair up in": new_code_cell("# END SOLUTION\n# BEGIN SOLUTION"),
}


def test_a_clean_notebook_has_no_problem():
    assert list(problems(notebook_of(*CLEAN))) == []


@pytest.mark.parametrize("sign", BROKEN)
def test_each_rule_notices_what_breaks_it(sign):
    found = "\n".join(problems(notebook_of(BROKEN[sign])))
    assert sign in found, found


def test_rules_of_the_whole_file():
    notebook = notebook_of(*CLEAN)
    notebook.metadata["widgets"] = {}
    notebook.metadata["kernelspec"]["name"] = "my-env"
    assert len(list(problems(notebook))) == 2

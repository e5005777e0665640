"""run_notebooks: order, outputs, headline table, and what a failing notebook leaves behind."""
import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from zsq_lab import pages, run_notebooks

PICTURE = """from IPython.display import Image, display
import base64
pixel = ("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk"
         "+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==")
display(Image(base64.b64decode(pixel)))
print('Figure: one "grey" pixel.')"""


def save(folder, name, *sources):
    cells = [new_markdown_cell("# Title"), *map(new_code_cell, sources)]
    nbformat.write(new_notebook(cells=cells), folder / name)
    return folder / name


@pytest.mark.slow
def test_executes_in_order_and_ends_with_the_table(tmp_path, capsys):
    first = save(tmp_path, "00_first.ipynb", "open('made-here', 'w').close()", PICTURE, "print('Headline: 1 bit')")
    second = save(tmp_path, "01_second.ipynb", "import os, sys; print(os.path.exists('made-here'), sys.executable)")
    assert run_notebooks.main([str(first), str(second), "--build", str(tmp_path / "build")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("[1/2] 00_first: ") and lines[0].endswith("s. 1 bit")
    assert lines[1].startswith("[2/2] 01_second: ")
    assert lines[3].split() == ["notebook", "seconds", "result"]
    assert lines[4].split()[0] == "00_first" and lines[4].endswith("1 bit")
    assert "make lab" in lines[-1]
    copy = nbformat.read(tmp_path / "build" / "notebooks" / "01_second.ipynb", as_version=4)
    assert copy.cells[1].outputs[0].text == f"True {run_notebooks.sys.executable}\n"  # this Python, in its folder
    assert nbformat.read(first, as_version=4).cells[1].execution_count is None  # the original is left alone
    page = (tmp_path / "build" / "html" / "00_first.html").read_text(encoding="utf-8")
    assert 'alt="one &quot;grey&quot; pixel."' in page and pages.NO_ALT not in page


@pytest.mark.slow
def test_a_failing_cell_is_named_and_the_copy_kept(tmp_path, capsys):
    bad = save(tmp_path, "00_bad.ipynb", "print('before')", "1 / 0", "print('never')")
    never = save(tmp_path, "01_never.ipynb", "1")
    assert run_notebooks.main([str(bad), str(never), "--build", str(tmp_path / "build")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "00_bad.ipynb" in line and "code cell 2" in line and "ZeroDivisionError: division by zero" in line
    copy = nbformat.read(tmp_path / "build" / "notebooks" / "00_bad.ipynb", as_version=4)
    assert [cell.execution_count for cell in copy.cells[1:]] == [1, 2, None]
    assert not (tmp_path / "build" / "notebooks" / "01_never.ipynb").exists()


@pytest.mark.slow
def test_save_replaces_the_notebook_without_widget_state_or_progress(tmp_path):
    source = "import sys, ipywidgets\nprint('\\r 50%|█', file=sys.stderr)\nipywidgets.IntSlider()"
    path = save(tmp_path, "00_widget.ipynb", source)
    assert run_notebooks.main([str(path), "--build", str(tmp_path / "build"), "--save"]) == 0
    saved = nbformat.read(path, as_version=4)
    assert "widgets" not in saved.metadata
    assert [output.output_type for output in saved.cells[1].outputs] == ["execute_result"]
    assert "IntSlider" in (tmp_path / "build" / "html" / "00_widget.html").read_text(encoding="utf-8")


def test_headline_comes_from_the_last_code_cell_that_is_not_empty():
    def printed(text):
        return new_code_cell("x", outputs=[new_output("stream", text=text)])
    early, late = printed("Headline: early\n"), printed("done\nHeadline: late\n")
    assert run_notebooks.headline(new_notebook(cells=[early, late, new_code_cell("")])) == "late"
    assert run_notebooks.headline(new_notebook(cells=[early, printed("no number\n")])) == ""
    assert run_notebooks.headline(new_notebook()) == ""


def test_a_notebook_that_is_not_there_is_a_wrong_argument(tmp_path, capsys):
    assert run_notebooks.main([str(tmp_path / "absent.ipynb")]) == 2
    assert "absent.ipynb" in capsys.readouterr().err

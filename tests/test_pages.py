"""pages: words for pictures, formulas without a network."""
import re
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from zsq_lab import pages

NOTEBOOKS = sorted((Path(__file__).resolve().parent.parent / "notebooks").glob("*.ipynb"))
ICON = {"image/png": "aWNv"}


def page_of(*cells):
    return pages.to_html(new_notebook(cells=list(cells)), None)


def test_a_picture_has_the_sentence_printed_below_it():
    printed = new_output("stream", name="stdout", text='A number.\nFigure: one "grey" pixel.\n')
    page = page_of(new_code_cell("show()", outputs=[new_output("display_data", data=ICON), printed]))
    assert 'alt="one &quot;grey&quot; pixel."' in page and pages.NO_ALT not in page


def test_a_picture_with_words_of_its_own_keeps_them():
    """A sentence that goes on in a second line below the figure is whole in the alternative text."""
    picture = new_output("display_data", data=ICON, metadata={"image/png": {"alt": "one\nsentence"}})
    printed = new_output("stream", name="stdout", text="Figure: one\nsentence\n")
    assert 'alt="one\nsentence"' in page_of(new_code_cell("show()", outputs=[picture, printed]))


def test_formulas_need_no_script_and_code_keeps_its_dollars():
    page = page_of(new_markdown_cell("A scale $s>0$ and `$HOME`:\n\n$$q=\\frac{x}{s}$$\n\n```\na = '$b$'\n```"))
    inline, block = re.findall("<math.*?</math>", page)
    assert "<mi>s</mi><mo>&gt;</mo><mn>0</mn>" in inline and 'display="inline"' in inline
    assert "<mfrac><mrow><mi>x</mi></mrow><mrow><mi>s</mi></mrow></mfrac>" in block and 'display="block"' in block
    assert "<code>$HOME</code>" in page and "a = '$b$'" in page
    assert "mathjax" not in "".join(re.findall("<script[^>]*src=[^>]*>", page)).lower()


def test_an_environment_is_drawn_and_a_slip_stays_as_it_was_written():
    page = page_of(new_markdown_cell("\\begin{align}a&=b\\end{align}\n\nHalf written: $x^$, $a<\\left($ and\n\n$$}{$$"))
    (formula,) = re.findall("<math.*?</math>", page)
    assert "<mtable" in formula and "begin" not in formula
    assert "$x^$" in page and "$a&lt;\\left($" in page and "$$}{$$" in page


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_formula_of_the_notebooks_is_drawn(path):
    """Nothing of LaTeX is left over, as it is where a command is not known."""
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown"]
    page = page_of(*cells)
    formulas = re.findall("<math.*?</math>", page, re.DOTALL)
    left = [formula for formula in formulas if "\\" in formula or "$" in formula]
    assert not left, left[0]
    text = re.sub("<math.*?</math>|<code>.*?</code>|<pre>.*?</pre>|<script.*?</script>|<style.*?</style>", "", page,
                  flags=re.DOTALL)
    assert "$" not in text[text.index("<body"):]

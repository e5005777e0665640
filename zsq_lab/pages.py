"""An executed notebook as one page of HTML that can be read without a network and by a screen reader.

Formulas become MathML, which browsers draw themselves, and every picture says in words what it shows.
"""
from html import escape

import nbformat
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode

FIGURE = "Figure: "
NO_ALT = "No description has been provided for this image"  # what nbconvert writes where it finds no alternative text
NO_SCRIPT = "data:text/javascript,"  # in place of MathJax, which nbconvert would fetch each time the page is opened


class _Formulas(IPythonRenderer):
    """Markdown to HTML as nbconvert has it, formulas as MathML; one that is not understood stays as it was written."""

    def inline_math(self, body: str) -> str:
        return _drawn(body, "inline") or super().inline_math(body)

    def block_math(self, body: str) -> str:
        return _drawn(body, "block") or super().block_math(body)

    def latex_environment(self, name: str, body: str) -> str:
        return _drawn(f"\\begin{{{name}}}{body}\\end{{{name}}}", "block") or super().latex_environment(name, body)


def _drawn(formula: str, display: str) -> str | None:
    try:
        return convert(formula, display=display)
    except Exception:  # latex2mathml's errors have no base of their own; a reader's slip must not cost the page
        return None


def to_html(notebook: NotebookNode, widget_state: dict | None) -> str:
    """One page with the outputs; each image's alternative text is its own, or the sentence `Figure: ...` of its cell."""
    exporter = HTMLExporter(mathjax_url=NO_SCRIPT, filters={"markdown2html": _markdown})
    exporter.log.setLevel("ERROR")  # it warns of missing alternative texts, which are filled in below
    widgets = {"widgets": widget_state} if widget_state else {}
    shown = nbformat.from_dict({**notebook, "metadata": {**notebook.metadata, **widgets}})
    page, _ = exporter.from_notebook_node(shown)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            printed = iter([line.removeprefix(FIGURE) for line in printed_lines(cell) if line.startswith(FIGURE)])
            for output in cell.outputs:
                if "image/png" in output.get("data", {}):
                    own, below = output.metadata.get("image/png", {}).get("alt"), next(printed, "figure")
                    page = page.replace(f'alt="{NO_ALT}"', f'alt="{escape(own or below)}"', 1)
    return page


def printed_lines(cell: NotebookNode) -> list[str]:
    """The lines that a code cell printed to standard output."""
    texts = [output.text for output in cell.outputs if output.output_type == "stream" and output.name == "stdout"]
    return "".join(texts).splitlines()


def _markdown(source: str) -> str:
    return MarkdownWithMath(renderer=_Formulas(escape=False)).render(source)

"""The digest of code: of a file and of all that it imports, of syntax only, the same in every version of Python."""
import ast

from edited_sources import edit, fresh  # noqa: F401 (fixtures)

from zsq_lab import code_version as module
from zsq_lab.code_version import code_version, files_version

SOURCE = '''
class Sum(list, metaclass=type):
    """Not counted."""
    async def of(self, x: int | None = None, /, *more, deep: float = 1e-5, **rest) -> "Sum":
        return [f"{{{x:<{deep}}}} {x!r:>3}" "\\U0001fae8" f"{x=}", b"\\0", {**rest}, {1: x[1:, ...]}, lambda: -1j]
'''


def test_a_file_counts_with_all_that_it_imports(edit):
    before = {name: files_version(name) for name in ("images", "zscgan", "plots")}
    edit("bn_stats.py", "import torch\n", "import torch\ntorch.set_flush_denormal(True)\n")
    assert files_version("images") != before["images"] and files_version("zscgan") != before["zscgan"]
    before = {name: files_version(name) for name in before}
    edit("zscgan.py", "import torch\n", "import torch\ntorch.set_flush_denormal(True)\n")
    assert files_version("zscgan") != before["zscgan"] and files_version("images") == before["images"]
    assert len(files_version("images")) == 16 and files_version("images", "zscgan") not in before.values()


def test_what_is_said_in_comments_does_not(edit):
    before = files_version("images"), code_version("zeroq")
    edit("images.py", "SHIFT = 2  #", "SHIFT = 2  # say,")
    edit("images.py", '"""Images from statistics', '"""Pictures from statistics')
    assert (files_version("images"), code_version("zeroq")) == before
    edit("images.py", "SHIFT = 2  #", "SHIFT = 1  #")
    assert files_version("images") != before[0] and code_version("zeroq") != before[1]


def test_no_file_of_the_module_is_no_code_of_it():
    assert files_version() == files_version("torch") != files_version("images")


def text_of(source: str) -> str:
    return module._syntax(source, frozenset())[1]


def test_the_text_of_a_syntax_is_the_same_in_every_version_of_python():
    """Compared with what 3.10, 3.11, 3.12 and 3.13 gave; fields that some of them do not have are empty."""
    assert module._digest(text_of(SOURCE)) == "6f498894d6c74b54"
    assert text_of("def f(): pass") == "Module(body=[FunctionDef(name='f', args=arguments(), body=[Pass()])])"


def test_an_empty_piece_of_a_format_is_no_syntax(monkeypatch):
    """Python 3.12.1 has one where others have none."""
    before, parse = text_of(SOURCE), ast.parse

    def with_empty_pieces(source):
        tree = parse(source)
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                node.values.append(ast.Constant(""))
        return tree
    module._syntax.cache_clear()
    with monkeypatch.context() as patched:
        patched.setattr(ast, "parse", with_empty_pieces)
        after = text_of(SOURCE)
    assert after == before


def test_values_and_their_places_are_syntax():
    sources = ("f(1)", "f(1.0)", "f('1')", "f(x=1)", "f(1, None)", "f([1])", "f(-1)", "g(1)", "f(1), 2", "f(f'1')",
               "f(f'{1}')")
    assert len({text_of(source) for source in sources}) == len(sources)

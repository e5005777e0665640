"""Which code made something: a digest of files of the module and of all of the module that they import.

Results, kept images and half-finished runs are named by it, so that each is found again exactly as long as it holds. What
counts is the syntax: no comment and no docstring decides a number, and no version of Python.
"""
import ast
import hashlib
import json
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


@cache
def files_version(*names: str) -> str:
    """Digest of these files of the module ("images" for images.py) and of what they import, each once."""
    return _digest(_reached(names))


@cache
def code_version(recipe: str, reads: tuple[str, ...] = ()) -> str:
    """Digest of every file that a recipe's code runs through.

    reads: further files, those that measure its result (`Task.reads`). Raises ValueError for an unknown recipe.
    """
    from .recipes import RECIPES  # it names its runs by this file
    if recipe not in RECIPES:
        raise ValueError(f"unknown recipe '{recipe}': expected one of {', '.join(RECIPES)}")
    homes = {name: known.run.__module__.rpartition(".")[2] for name, known in RECIPES.items()}
    lab = ["lab"] if RECIPES[recipe].needs_images else []  # it draws the images
    reached = _reached([homes[recipe], "recipes", "models", *reads, *lab], frozenset(homes.values()))
    return _digest([RECIPES[recipe].run.__name__, reached])


def _digest(content) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _reached(names, homes: frozenset[str] = frozenset()) -> dict[str, str]:
    """The syntax of these files and of all that they import, by name. homes: where the recipes of the table are."""
    reached, waiting = {}, list(names)
    while waiting:
        name = waiting.pop()
        if name not in reached and (PACKAGE / f"{name}.py").exists():
            source = (PACKAGE / f"{name}.py").read_text(encoding="utf-8")
            imported, reached[name] = _syntax(source, homes if name == "recipes" else frozenset())
            waiting += imported
    return reached


@cache
def _syntax(source: str, homes: frozenset[str]) -> tuple[set[str], str]:
    """The module's own files that a source imports, and its syntax; where the table of recipes is, less the table and
    the imports of their `homes`, or every new recipe would change all others."""
    tree = ast.parse(source)
    tree.body = [node for node in tree.body
                 if not homes or not _imported(node) & homes and not ast.unparse(node).startswith("RECIPES")]
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
            body[0].value.value = ""  # a docstring
        if isinstance(node, ast.JoinedStr):  # Python 3.12.1 ends the format in f"{x:<{width}}" with an empty string
            node.values = [part for part in node.values if not isinstance(part, ast.Constant) or part.value]
    return set().union(*map(_imported, tree.body)), _text(tree)


def _text(node) -> str:
    """As `ast.dump`, whose treatment of empty fields depends on the version of Python, and some versions have more of them."""
    if isinstance(node, list):
        return f"[{', '.join(map(_text, node))}]"
    if not isinstance(node, ast.AST):
        return ascii(node)  # which characters repr() would print depends on the version as well
    filled = [f"{name}={_text(value)}" for name, value in ast.iter_fields(node) if value is not None and value != []]
    return f"{type(node).__name__}({', '.join(filled)})"


def _imported(node: ast.stmt) -> set[str]:
    own = isinstance(node, ast.ImportFrom) and node.level == 1
    return ({node.module} if node.module else {alias.name for alias in node.names}) if own else set()

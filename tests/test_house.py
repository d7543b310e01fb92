"""Limits that keep the code readable, and a test file for each module.

Constructors of the callback and of records may have more parameters than other functions.
"""

from __future__ import annotations

import ast
import io
import re
import statistics
import tokenize
import tomllib
from collections.abc import Iterator
from pathlib import Path

import medfed
from medfed.registry import FOLDERS, kinds

PACKAGE = Path(medfed.__file__).parent
MODULES = {str(path.relative_to(PACKAGE)): path.read_text() for path in sorted(PACKAGE.rglob("*.py"))}

MAX_ENTRIES, MAX_MODULE_LINES, MAX_PARAMETERS = 20, 500, 8
MAX_MEDIAN_LINES, MAX_P90_LINES = 6, 20

TESTS = Path(__file__).parent

Function = ast.FunctionDef | ast.AsyncFunctionDef
_LAYOUT = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


def functions(source: str) -> Iterator[Function]:
    return (node for node in ast.walk(ast.parse(source)) if isinstance(node, Function))


def docstring_lines(tree: ast.Module) -> set[int]:
    lines: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, *Function.__args__)) and ast.get_docstring(
            node, False
        ):
            lines |= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return lines


def code_lines(source: str) -> set[int]:
    """Return the numbers of the lines with code, without blank lines, comments and docstrings."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in _LAYOUT:
            lines |= set(range(token.start[0], token.end[0] + 1))
    return lines - docstring_lines(ast.parse(source))


def body_sizes(source: str) -> list[int]:
    """Return the number of code lines in the body of each function."""
    code = code_lines(source)
    return [
        sum(f.body[0].lineno <= line <= (f.end_lineno or 0) for line in code) for f in functions(source)
    ]  # fmt: skip


def parameters(function: Function) -> int:
    """Return the number of a function's parameters, not counting self and cls."""
    a = function.args
    names = [arg.arg for arg in (*a.posonlyargs, *a.args, *a.kwonlyargs)]
    own = 1 if names[:1] in (["self"], ["cls"]) else 0
    return len(names) - own + (a.vararg is not None) + (a.kwarg is not None)


EXAMPLE = '''"""Module."""

class Record:
    """A record."""

    def method(self, a, *more, b=1, **rest):
        """Return a.

        Longer.
        """
        # a comment
        text = """two
        lines"""

        return a
'''


def test_the_measures_count_as_a_person_would() -> None:
    (method,) = functions(EXAMPLE)
    assert parameters(method) == 4
    assert body_sizes(EXAMPLE) == [3]
    assert code_lines(EXAMPLE) == {3, 6, 12, 13, 15}


def test_the_package_has_few_entries() -> None:
    entries = [path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"]
    assert len(entries) <= MAX_ENTRIES, sorted(entries)


def test_no_module_is_long() -> None:
    long = {name for name, source in MODULES.items() if source.count("\n") > MAX_MODULE_LINES}
    assert not long, "split it by subject"


def test_no_function_has_many_parameters() -> None:
    many = {
        f"{name}:{function.name}"
        for name, source in MODULES.items()
        for function in functions(source)
        if parameters(function) > MAX_PARAMETERS and function.name != "__init__"
    }
    assert not many, "make a record of what travels together"


def test_most_functions_are_short() -> None:
    sizes = sorted(size for source in MODULES.values() for size in body_sizes(source))
    assert statistics.median(sizes) <= MAX_MEDIAN_LINES
    assert sizes[int(0.9 * len(sizes))] <= MAX_P90_LINES


def is_public(module: str) -> bool:
    return not any(part.startswith("_") for part in Path(module).parts)


def kind_modules() -> set[str]:
    """Return the modules of medfed's kinds; the contract test of their registry holds each of them."""
    return {
        f"{folder.package.replace('.', '/')}/{name}.py"
        for registry, folder in FOLDERS.items()
        for name in kinds(registry)
    }


def test_whoever_decodes_json_catches_all_that_it_raises() -> None:
    """msgspec's own errors leave out texts that are no UTF-8 and lists nested too deep."""
    narrow = {
        where
        for where, source in MODULES.items()
        for handler in ast.walk(ast.parse(source))
        if isinstance(handler, ast.ExceptHandler)
        and handler.type is not None
        and any(
            isinstance(one, ast.Attribute) and one.attr in ("MsgspecError", "DecodeError")
            for one in ast.walk(handler.type)
        )
    }
    assert not narrow, "catch medfed.errors.DECODING_ERRORS"


def test_each_registry_has_a_contract_test() -> None:
    assert [name for name in FOLDERS if not (TESTS / "contracts" / f"test_{name}.py").exists()] == []


def test_each_public_module_has_a_test_file_of_its_name() -> None:
    """Not a kind, which its registry's contract covers, nor a module of names and records alone."""
    unmirrored = {
        module
        for module, source in MODULES.items()
        if is_public(module)
        and any(functions(source))
        and not (TESTS / Path(module).parent / f"test_{Path(module).name}").exists()
    }
    assert unmirrored - kind_modules() == set(), "write its test in a file of its name"


# Extras with an environment of their own: they want older packages than constraints.txt has (pyproject.toml).
APART = {"flower", "modules"}


def test_each_extra_that_an_operator_installs_is_pinned() -> None:
    described = tomllib.loads((TESTS.parent / "pyproject.toml").read_text())["project"]
    extras = {key: own for key, own in described["optional-dependencies"].items() if key not in APART}
    names = {re.split(r"[^\w.-]", one)[0].lower() for own in extras.values() for one in own}
    lines = (TESTS.parent / "constraints.txt").read_text().splitlines()
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in lines}
    assert {name.replace("_", "-") for name in names} - pinned == set()

"""The deprecation decorator works, and nothing deprecated outlives its removal version."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import medfed
from medfed import errors
from medfed.errors import deprecated

PACKAGE = Path(medfed.__file__).parent


@deprecated("new_name()", since="0.2", until="0.4")
def old_name(number: int) -> int:
    """Return the number plus one."""
    return number + 1


def test_a_deprecated_function_works_and_names_its_replacement_at_the_caller():
    words = "old_name is deprecated since medfed 0.2 and will be removed in 0.4; use new_name"
    with pytest.warns(DeprecationWarning, match=words) as caught:
        assert old_name(1) == 2
    assert caught[0].filename == __file__
    assert old_name.__doc__ == "Return the number plus one."


def expired(source: str, version: str) -> list[str]:
    """Return the deprecated functions that this version should no longer contain."""
    return [
        function.name
        for function in ast.walk(ast.parse(source))
        if isinstance(function, ast.FunctionDef)
        for decorator in function.decorator_list
        if isinstance(decorator, ast.Call) and getattr(decorator.func, "id", "") == "deprecated"
        for keyword in decorator.keywords
        if keyword.arg == "until" and release(ast.literal_eval(keyword.value)) <= release(version)
    ]


def release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


def test_expiry_is_found_by_number_and_not_by_text():
    source = '@deprecated("new()", since="0.2", until="0.10")\ndef old(): ...\n'
    assert expired(source, "0.9.5") == []
    assert expired(source, "0.10.0") == expired(source, "1.0.dev3+g12") == ["old"]


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_nothing_deprecated_outlives_its_date(path):
    assert expired(path.read_text(), medfed.__version__) == [], "remove these functions now"


def test_the_errors_of_decoding_import_msgspec_only_where_they_are_caught():
    code = (
        "import sys, medfed.errors; assert 'msgspec' not in sys.modules; "
        "from medfed.errors import DECODING_ERRORS; import msgspec; "
        "assert DECODING_ERRORS == (msgspec.MsgspecError, UnicodeDecodeError, RecursionError); "
        "assert medfed.errors.DECODING_ERRORS is DECODING_ERRORS"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match=r"module 'medfed\.errors' has no attribute 'DECODING'"):
        _ = errors.DECODING

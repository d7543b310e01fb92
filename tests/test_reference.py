"""Each public name has a section of the reference with a docstring, and so has each contract."""

from __future__ import annotations

import importlib.util
import inspect
import re
from pathlib import Path
from types import ModuleType

import pytest

import medfed
from medfed import testing
from medfed.registry import FOLDERS, kinds

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_hooks", DOCS / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def page(hooks: ModuleType, name: str) -> str:
    return hooks.on_page_markdown((DOCS / "reference" / name).read_text())


@pytest.mark.parametrize("name", medfed.__all__)
def test_a_public_name_has_a_section_and_its_docstring_says_what_it_is(hooks, name):
    value = getattr(medfed, name)
    path = value.__name__ if inspect.ismodule(value) else f"{value.__module__}.{value.__qualname__}"
    assert f"::: {path}\n" in page(hooks, "api.md") + "\n"
    first = (inspect.getdoc(value) or "").partition("\n")[0]
    assert len(first) > 15, f"{path}: expected a sentence, found {first!r}"
    # msgspec and dataclasses write a signature where a class has no docstring.
    assert not first.startswith(f"{name}("), path


def test_what_the_page_names_besides_exists(hooks):
    for path in re.findall(
        r"^::: ([\w.]+)$", page(hooks, "api.md") + page(hooks, "testing.md"), re.MULTILINE
    ):
        module, _, name = path.rpartition(".")
        if importlib.util.find_spec(path.partition(".")[0]) and name and name[0].isupper():
            assert inspect.getdoc(getattr(importlib.import_module(module), name)), path


@pytest.mark.parametrize("name", testing.__all__)
def test_a_name_of_medfed_testing_has_a_section(hooks, name):
    text, value = page(hooks, "testing.md"), getattr(testing, name)
    if isinstance(value, testing.Contract):
        section = text.partition(f"## {name}\n")[2].partition("\n## ")[0]
        assert section.count("\n- ") >= len(value.checks)
        return
    shown = isinstance(value, type) and f"::: {value.__module__}.{value.__qualname__}" in text
    assert shown or name in ("CONTRACTS", "PATIENT")


def test_each_kind_has_a_section(hooks):
    text = page(hooks, "kinds.md")
    for folder in FOLDERS:
        section = text.partition(f"## {folder}\n")[2].partition("\n## ")[0]
        assert re.findall(r"^### (\w+)$", section, re.MULTILINE) == list(kinds(folder))

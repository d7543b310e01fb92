"""Every refusal of a hospital's data has a case here, and `medfed check` says error in the words of training.

The refusals are taken from the code: a new `raise` in medfed/data fails `test_no_refusal_is_without_a_case`
until a broken folder or table raises it, or a line here says why none can.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest

import medfed.data
import medfed.errors
from medfed.data import refusals
from medfed.data.class_names import ClassNames
from medfed.data.datamodule import SiteDataModule
from medfed.data.layouts import CaseError
from medfed.data.own_data import OwnData
from medfed.data.preflight.preflight import Preflight, check
from medfed.data.preflight.study_checks import StudyRequirements
from medfed.data.preflight.table import TableRequirements, check_table
from medfed.data.settings import Unreadable
from medfed.errors import DataError, ImageError

from ..hospital_folder import MARK, SECRET
from .broken_images import BROKEN_IMAGES, BrokenImages
from .broken_tables import BROKEN_TABLES, BrokenTable
from .test_same_as_training import REFUSED, verdicts

ROOM = Path(medfed.data.__file__).parent

# Modules that refuse something else than a hospital's data as training opens them.
OTHER_ROOMS = {
    "settings.py": "a study's settings, as the study is read",
    "normalise/": "a study's settings, as the study is read",
    "layouts/_dicom_choice.py": "a study's settings, as the study is read",
    "splits.py": "a study's settings, as the study is read",
    "deidentify/": "medfed deidentify, which is no part of a study",
    "fingerprint.py": "planning, after the data were opened",
    "histogram.py": "planning, after the data were opened",
    "harmonise.py": "planning and predicting, after the data were opened",
    "describe/": "sums of other hospitals, after the data were opened (tests/data/describe)",
    "image_transforms/_chance.py": "a study's settings, as the study is read",
    "image_transforms/gamma.py": "a study's settings, as the study is read",
    "own_dataset.py": "data modules of one's own: tests/contracts/test_datamodules.py",
    "datamodules/": "prepared arrays, which are no images (tests/contracts/test_datamodules.py)",
    "cache.py": "the disk of the cache, as it is full or not there",
    "preflight/": "the preflight's own: no file at all",
}
if find_spec("openpyxl") is None:
    OTHER_ROOMS["xlsx.py"] = "openpyxl is not installed"
# Single refusals that no folder raises, by module, function and the beginning of their words.
NEVER_BY_A_FOLDER = {
    "case_table.py:with_table:{": "wraps a refusal with the keys of data.table",
    "class_names.py:__post_init__:task.classes": "a study's settings, as the study is read",
    "class_names.py:_check_words:classes: two words": "a site file's words, as its classes are built",
    "datamodule.py:__init__:data.kind is": "an index handed to the class; `open` reads what is asked for",
    "datamodule.py:_set_up_columns:": "an index handed to the class without its table",
    "datamodule.py:case:": "another token than a case's own",
    "samplers.py:collate:": "refused before by whole_images.check_extents",
    "datamodule.py:rows:": "asked for a table of images",
    "index.py:check_cases:case": "a plug-in layout that lists a case twice; those of medfed do not",
    "index.py:index_folder:the site's data folder is not": "no folder at all: check says it in its own words",
    "index.py:index_folder:the site's secret": "the site's secret",
    "layouts/__init__.py:layout_of:": "a study's or site file's layout, as it is read",
    "layouts/__init__.py:parse_layout:": "the command line's layout",
    "screening.py:usable_cases:the task needs a table": "a study whose task and data differ, as it is read",
    "table_file.py:read_cells:{": "a table above 2 GB is not written by a test",
    "training_order.py:check_processes:": "the number of processes, known as training starts",
    "transforms.py:restore:": "a prediction, after training",
    "xlsx.py:_sheet:{": "openpyxl is not installed, or a workbook above 1 GB",
}


class Refusal(NamedTuple):
    """A `raise` of the code: its module below medfed/data, its first and last line, and where it stands."""

    module: str
    first: int
    last: int
    name: str


def refusals_of(path: Path) -> Iterator[Refusal]:
    """Yield each `raise SomeError(...)` of a site's data; those of one image are held by their types."""
    module = path.relative_to(ROOM).as_posix()
    for function in ast.walk(ast.parse(path.read_text())):
        if not isinstance(function, ast.FunctionDef):
            continue
        for node in ast.walk(function):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and _is_of_site(node.exc):
                words = next((one.value for one in ast.walk(node.exc) if _is_text(one)), "")
                name = f"{module}:{function.name}:{'{' if _starts_with_value(node.exc) else ''}{words}"
                yield Refusal(module, node.exc.lineno, node.exc.end_lineno or 0, name)


def _is_of_site(call: ast.Call) -> bool:
    name = getattr(call.func, "id", "")
    kind = getattr(medfed.errors, name, None) or getattr(refusals, name, None)
    kind = CaseError if name == "CaseError" else kind
    return isinstance(kind, type) and issubclass(kind, DataError) and not issubclass(kind, ImageError)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _starts_with_value(call: ast.Call) -> bool:
    first = call.args[-1] if call.args else None
    return isinstance(first, ast.JoinedStr) and not _is_text(first.values[0])


FIRED: set[tuple[str, int]] = set()


@contextmanager
def recording() -> Iterator[None]:
    """Note the module and line of each refusal that is made."""

    def note(self: DataError, *args: object) -> None:
        frame = sys._getframe(1)
        while frame.f_code.co_name == "__init__" and frame.f_back is not None:
            frame = frame.f_back
        path = Path(frame.f_code.co_filename)
        if ROOM in path.parents:
            FIRED.add((path.relative_to(ROOM).as_posix(), frame.f_lineno))
        super(DataError, self).__init__(*args)

    DataError.__init__ = note  # type: ignore[method-assign]
    try:
        yield
    finally:
        del DataError.__init__


def of_images(folder: Path, one: BrokenImages) -> tuple[str, Preflight]:
    """Return training's refusal ('' if it takes the folder), and what `check` says."""
    folder.mkdir(parents=True, exist_ok=True)
    one.fill(folder)
    refusal = ""
    try:
        data = SiteDataModule.open(
            folder,
            one.settings,
            one.needs,
            site_secret=SECRET,
            classes=ClassNames(one.classes),
            own=one.own,
            batch=one.batch,
        )
        data.leave_out(data.screen(), one.bears or Unreadable())
        data.require_training_cases()
    except DataError as error:
        refusal = str(error)
    requirements = StudyRequirements(
        "study", one.settings, one.needs, one.classes, own_data=one.own, batch=one.batch
    )
    return refusal, check(folder, site_secret=SECRET, requirements=requirements, bears=one.bears, processes=1)


def of_table(folder: Path, one: BrokenTable) -> tuple[str, Preflight | None]:
    folder.mkdir(parents=True, exist_ok=True)
    path = one.write(folder)
    refusal = ""
    requirements = TableRequirements("study", one.settings, one.needs, ("no", "yes"), one.headings)
    try:
        data = SiteDataModule.open(
            path, one.settings, one.needs, site_secret=SECRET, classes=2, own=OwnData(headings=one.headings)
        )
        data.require_training_cases()
    except DataError as error:
        refusal = str(error)
    return refusal, check_table(path, requirements, site_secret=SECRET) if path.exists() else None


@pytest.mark.parametrize("name", BROKEN_IMAGES)
def test_check_calls_what_training_refuses_of_images_an_error(tmp_path: Path, name: str) -> None:
    with recording():
        refusal, result = of_images(tmp_path / f"{MARK}_export", BROKEN_IMAGES[name])
    held(refusal, result)


@pytest.mark.parametrize("name", BROKEN_TABLES)
def test_check_calls_what_training_refuses_of_tables_an_error(tmp_path: Path, name: str) -> None:
    with recording():
        refusal, result = of_table(tmp_path / f"{MARK}_export", BROKEN_TABLES[name])
    if result is None:
        assert refusal
    else:
        held(refusal, result)


def held(refusal: str, found: Preflight) -> None:
    """Check that training refuses, that `check` says error in the same words, and neither says a name."""
    assert refusal, "training takes it"
    errors = [problem for problem in found.problems if problem.severity == "error"]
    told = [detail for problem in errors for _, detail in problem.cases]
    assert any(detail and detail in refusal for detail in told), (refusal, told)
    assert found.exit_code == 2
    assert not found.can_take_part
    assert MARK.lower() not in (refusal + repr(found.problems) + found.verdict).lower()


def test_no_refusal_is_without_a_case(tmp_path: Path) -> None:
    with recording():
        for number, images in enumerate(BROKEN_IMAGES.values()):
            of_images(tmp_path / f"images{number}" / "site", images)
        for number, table in enumerate(BROKEN_TABLES.values()):
            of_table(tmp_path / f"table{number}" / "site", table)
        for number, name in enumerate(REFUSED):
            verdicts(tmp_path / f"other{number}", name, REFUSED[name])
    known = [one for path in sorted(ROOM.rglob("*.py")) for one in refusals_of(path)]
    lacking = [
        f"{one.name} (line {one.first})" for one in known if not _has_fired(one) and not _is_elsewhere(one)
    ]
    assert not lacking, "add a broken folder or table for each, or say why none can: " + "; ".join(lacking)
    assert len(known) > 150


def _has_fired(one: Refusal) -> bool:
    return any(module == one.module and one.first <= line <= one.last for module, line in FIRED)


def _is_elsewhere(one: Refusal) -> bool:
    return any(map(one.module.startswith, OTHER_ROOMS)) or any(map(one.name.startswith, NEVER_BY_A_FOLDER))

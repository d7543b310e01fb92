"""The draft of a study of images: which task, whether the images are CT, and which findings are common."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import yaml

from medfed.data.folder_options import FolderOptions
from medfed.data.layouts import parse_layout
from medfed.data.preflight.summary import UNKNOWN_MODALITY
from medfed.errors import DataError, StudyError
from medfed.pipeline import _draft_images as images

EMPTY = {"labels": 0, "targets": {}, "findings": []}


def folders(**sites: dict):
    return {site: SimpleNamespace(facts=EMPTY | facts) for site, facts in sites.items()}


LABELS, CLASSES = {"labels": 3}, {"targets": {"0": 2, "1": 1}}


@pytest.mark.parametrize(
    ("north", "south", "task"),
    [
        (LABELS, LABELS, "segment"),
        (LABELS | CLASSES, LABELS, "segment"),
        (LABELS | CLASSES, CLASSES, "classify"),
        ({"findings": ["a", "b", "c"]}, {"findings": ["c", "b"]}, "multilabel"),
        ({"findings": ["a", "b"]} | CLASSES, CLASSES, "classify"),
    ],
)
def test_the_task_is_what_every_folder_supports(north: dict, south: dict, task: str) -> None:
    assert images._infer_task(folders(north=north, south=south)) == task


def test_folders_with_nothing_in_common_are_asked_about() -> None:
    one_finding = {"findings": ["a", "sex"]}
    for north, south in ((LABELS, CLASSES), (one_finding, one_finding)):
        with pytest.raises(StudyError, match=r"^it is not clear what to learn: no case has a label at "):
            images._infer_task(folders(north=north, south=south))


def test_findings_are_the_columns_of_every_hospital_in_the_first_ones_order() -> None:
    both = folders(north={"findings": ["b", "a", "sex", "x"]}, south={"findings": ["sex", "a", "b"]})
    names, (taken, dropped) = images._finding_names(both)
    assert names == ["b", "a"]
    assert taken.startswith("the columns b, a hold only 0, 1 and empty cells")
    assert dropped.startswith("x: not at every hospital with both 0 and 1, and left out")
    with pytest.raises(DataError, match=r"^the folders' tables have no column of 0 and 1 in common"):
        images._finding_names(folders(north={"findings": ["a"]}, south={"findings": ["b"]}))


@pytest.mark.parametrize(
    ("north", "south", "is_ct", "warning"),
    [
        ((["CT"], -1000), (["CT"], 0), True, None),
        ((["CT"], -1000), ([UNKNOWN_MODALITY], -501), True, "were taken for CT in HU"),
        (
            ([UNKNOWN_MODALITY], -1000),
            ([UNKNOWN_MODALITY], -500),
            False,
            "were taken for MR, or anything but CT",
        ),
        ((["CT"], -1000), ([UNKNOWN_MODALITY], 0), False, None),
        ((["MR"], 0), ([UNKNOWN_MODALITY], -1000), False, None),
        ((["CT"], -1000), (["MR"], 0), False, "CT and MR in one study"),
        ((["CT+PT"], -1000), (["CT+PT"], -1000), False, None),
    ],
)
def test_ct_is_what_says_so_or_holds_the_hu_of_air(north, south, is_ct, warning) -> None:
    both = folders(
        **{
            site: {"modality": modality, "intensity": {"least": [lowest]}}
            for site, (modality, lowest) in (("north", north), ("south", south))
        }
    )
    answer, warnings = images._is_ct(both)
    assert answer is is_ct
    assert len(warnings) == (warning is not None)
    assert warning is None or warning in warnings[0]


def test_a_whole_images_grid_holds_the_largest_median_at_the_finest_spacing() -> None:
    def folder(size: list[int], spacing_mm: list[float]) -> dict:
        return {"size": {"median": size}, "spacing_mm": {"median": spacing_mm}}

    # 100 x 256 x 10 mm: 100 voxels of 1 mm would be more than 64, so 100 / 64 = 1.5625 and 256 / 64 = 4 mm.
    grid = images._whole_image_grid(
        folders(north=folder([100, 128, 5], [1, 2, 2]), south=folder([50, 128, 2], [1, 1.5, 5]))
    )
    # 100 / 1.56 = 64.1 and 256 / 4 = 64 voxels; 5 voxels of 2 mm are filled up to 16.
    assert grid == ([1.56, 4.0, 2.0], [64, 64, 16])


@pytest.mark.parametrize(("least", "norm", "batch"), [(256, "batch", 32), (255, "group", 4)])
def test_a_classifier_of_many_cases_has_batch_norm(least: int, norm: str, batch: int) -> None:
    def folder(cases: int) -> dict:
        grid = {"size": {"median": [64, 64, 64]}, "spacing_mm": {"median": [1, 1, 1]}}
        return {**grid, "splits": {"train": cases, "test": 1000}}

    sites = folders(north=folder(900), south=folder(least))
    plain = yaml.safe_load(images._whole_image_text(sites, "1", "classify", ["healthy", "mass"]))
    assert (plain["network"]["norm"], plain["train"]["batch"]) == (norm, batch)


def test_a_summary_counts_what_can_be_learned_from() -> None:
    facts = {"layout": "cases.csv", "cases": 9, "patients": 7, "modality": ["CT", "MR"]}
    one = SimpleNamespace(facts=EMPTY | LABELS | CLASSES | {"findings": ["a"]} | facts)
    assert images._summary(one) == (
        "cases.csv, 9 cases of 7 patients, 3 with a label, 3 with a class, 1 columns of 0 and 1; CT, MR"
    )


def test_errors_of_a_folder_are_counted_and_warnings_are_not() -> None:
    problems = [SimpleNamespace(severity=severity, cases=()) for severity in ("error", "warning", "error")]
    sites = {"north": SimpleNamespace(problems=problems), "south": SimpleNamespace(problems=problems[1:2])}
    (warning,) = images._preflight_warnings(sites)
    assert warning == "north: its folder has 2 kinds of errors; `medfed check` lists them and what to do"


def test_what_a_folder_holds_beside_its_cases_is_said() -> None:
    told = "left out: 2 other segmentations below derivatives"
    note = SimpleNamespace(severity="note", cases=(("", "1 patient"), ("", told)))
    assert images._preflight_warnings({"north": SimpleNamespace(problems=[note])}) == [f"north: {told}"]


def test_a_layout_that_a_person_gave_is_in_the_draft() -> None:
    text = "data:\n  kind: images\n  channels: 1\n"
    assert images._with_options(text, FolderOptions()) == text
    drafted = images._with_options(text, FolderOptions(parse_layout("paired")))
    assert drafted == "data:\n  kind: images\n  layout: paired\n  channels: 1\n"

"""The verdict on a folder, sentence by sentence, and the facts about it."""

from __future__ import annotations

from pathlib import Path

import pytest

from medfed.data.case import Case
from medfed.data.planes import PIXELS
from medfed.data.preflight.case import CaseFacts
from medfed.data.preflight.issues import Problem
from medfed.data.preflight.listing import Listing
from medfed.data.preflight.summary import summarise, verdict


def problem(severity, *names):
    return Problem("code", severity, "title", "means", "remedy", tuple((name, "detail") for name in names))


@pytest.mark.parametrize(
    ("problems", "cases", "unusable", "local", "of_study"),
    [
        ([], 0, 0, "Nothing to train on: no case was found.", "Nothing to train on: no case was found."),
        (
            [], 9, 0,
            "Ready: 9 cases, all of them can be read.",
            "This hospital can take part in 'heart' with 9 cases.",
        ),
        (
            [problem("warning", "a"), problem("note", "b")], 9, 1,
            "Ready: 8 of 9 cases; 1 cannot be used and is left out. Look at 1 warning first.",
            "This hospital can take part in 'heart' with 8 of 9 cases; 1 cannot be used and is left out. "
            "Look at 1 warning first.",
        ),
        (
            [problem("warning", "a"), problem("warning", "b")], 9, 2,
            "Ready: 7 of 9 cases; 2 cannot be used and are left out. Look at 2 warnings first.",
            "This hospital can take part in 'heart' with 7 of 9 cases; 2 cannot be used and are left out. "
            "Look at 2 warnings first.",
        ),
        (
            # The same case in two problems counts once; a finding about no case counts for none.
            [problem("error", "a", "b"), problem("error", "a", "")], 9, 0,
            "Not ready: 2 kinds of error, in 2 of 9 cases.",
            "This hospital can't take part in 'heart' yet: 2 kinds of error, in 2 of 9 cases.",
        ),
        (
            [problem("error", "")], 9, 3,
            "Not ready: 1 kind of error.",
            "This hospital can't take part in 'heart' yet: 1 kind of error.",
        ),
    ],
)  # fmt: skip
def test_the_verdict_is_one_sentence(problems, cases, unusable, local, of_study):
    assert verdict(problems, cases, None, unusable) == local
    assert verdict(problems, cases, "heart", unusable) == of_study


def case(patient, target=None, **more):
    return Case(id=patient, patient=patient, token=patient, image=(), target=target, **more)


def facts(number, **more):
    about = {
        "read": True,
        "channels": 1,
        "shape": (4, 4, 4),
        "spacing_mm": (1.0, 1.0, 1.0),
        "orientation": "RAS",
    }
    return CaseFacts(number, **{**about, **more})


def test_cases_patients_splits_labels_and_targets_are_counted():
    cases = (
        case("a", 1), case("a", 0, split="test"), case("b", 1, label=Path("l")),
        case("c", masks=(("liver", Path("m")),)),
    )  # fmt: skip
    summary = summarise(Listing("paired", cases, (), left_out={"links to nothing": 2}), [])
    assert (summary["layout"], summary["cases"], summary["patients"], summary["read"]) == ("paired", 4, 3, 0)
    assert summary["splits"] == {"test": 1, "train": 3}
    assert (summary["labels"], summary["targets"]) == (2, {"0": 1, "1": 2})
    assert summary["left_out"] == {"links to nothing": 2}
    assert summary["spacing_mm"] == summary["intensity"] == {}


def test_facts_are_of_the_cases_that_could_be_read():
    examined = [
        facts(0, modality="CT", spacing_mm=(1.0, 1.0, 2.0), flags=(PIXELS,), quantiles=tuple(range(101))),
        facts(1, spacing_mm=(0.5, 3.0, 4.0), scanner="A"),
        facts(2, modality="CT", spacing_mm=(0.75, 2.0, 9.0)),
        facts(3, modality="MR", read=False, spacing_mm=(9.0, 9.0, 9.0)),
    ]
    summary = summarise(Listing("paired", (), ()), examined)
    assert summary["read"] == 3
    assert summary["modality"] == {"CT": 2, "not stated (no DICOM)": 1}
    assert summary["scanner"] == {"unknown": 2, "A": 1}
    assert summary["spacing_mm"] == {
        "least": [0.5, 1.0, 2.0],
        "median": [0.75, 2.0, 4.0],
        "most": [1.0, 3.0, 9.0],
    }
    # The quantiles are the percentiles 0 to 100: shown are the 1st, the median and the 99th.
    assert summary["intensity"]["median"] == [1.0, 50.0, 99.0]
    assert (summary["in_pixels"], summary["colours"], summary["channels"]) == (1, 0, {"1": 3})


def test_each_class_has_its_cases_and_its_share_of_all_voxels():
    examined = [facts(0, classes={0: 60, 1: 40}), facts(1, classes={0: 90, 5: 10})]
    summary = summarise(Listing("paired", (), (), structures=("background", "liver")), examined)
    assert summary["classes"] == {
        "0": {"name": "background", "cases": 2, "share": 0.75},
        "1": {"name": "liver", "cases": 1, "share": 0.2},
        "5": {"name": "", "cases": 1, "share": 0.05},
    }

"""Which structures a hospital drew decides what is measured there, and a slip of the pen is refused."""

from __future__ import annotations

import pytest

from medfed.errors import StudyError
from medfed.pipeline.labelled import drawn_of, undrawn, with_labelled
from medfed.study.reading import parse_study

STUDY = """\
name: organs
task: {kind: segment, classes: [background, liver, spleen]}
network: {kind: unet, channels: [4, 8], residual_units: 0}
data: {kind: images, spacing_mm: [2, 2, 2], patch: [16, 16, 16]}
train: {rounds: 1, epochs: 1, batch: 2}
sites: {north: null, south: null}
"""
TABLE = """\
name: table
task: {kind: tabular, classes: [well, ill]}
network: {kind: fully_connected, hidden: [4]}
data: {kind: table, features: [x], target: ill}
train: {rounds: 1, epochs: 1, batch: 2}
sites: {north: null, south: null}
"""


def test_only_what_a_hospital_drew_is_measured_there() -> None:
    study = with_labelled(parse_study(STUDY, "s"), "ours", ["liver"])
    assert study.task.labelled_at("ours") == (1,)  # type: ignore[attr-defined]
    assert study.task.labelled_at("north") == (1, 2)  # type: ignore[attr-defined]
    assert undrawn(study, "ours") == "spleen is not measured, as this hospital draws liver alone"
    assert undrawn(study, "north") == ""
    assert with_labelled(study, "ours", ()) is study


def test_an_unknown_structure_is_named_with_the_nearest() -> None:
    with pytest.raises(
        StudyError, match="'spleeen' is no structure of study 'organs'; did you mean 'spleen'"
    ):
        with_labelled(parse_study(STUDY, "s"), "ours", ["spleeen"])


def test_a_site_file_may_draw_more_than_a_study_asks_but_not_nothing_of_it() -> None:
    study = parse_study(STUDY, "s")
    assert drawn_of(study, ["kidney", "spleen"]) == ["spleen"]
    assert drawn_of(study, []) == []
    with pytest.raises(StudyError, match=r"segments liver, spleen; the site file says .* draws kidney"):
        drawn_of(study, ["kidney"])


def test_a_study_that_segments_nothing_has_nothing_that_is_drawn() -> None:
    study = parse_study(TABLE, "s")
    assert drawn_of(study, ["liver"]) == []
    assert undrawn(study, "north") == ""
    with pytest.raises(StudyError, match="the task segments nothing; leave it out"):
        with_labelled(study, "ours", ["liver"])

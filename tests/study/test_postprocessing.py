"""A study that cannot have its components chosen is refused with what to do; one without keeps its digest."""

from __future__ import annotations

import pytest

from medfed.errors import StudyError
from medfed.study.canonical import study_digest
from medfed.study.reading import read_study

AUTO = "task.postprocess=auto"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["train.keep=best"], "may end with an earlier one"),
        (["train.keep_local=[norm]"], "each hospital has its own"),
        (["sampling.fraction=0.5"], "not all take part in each round"),
        (["rule={kind: cyclic}"], "rule 'cyclic'"),
        (["privacy={kind: secure_sum, min_sites: 2, colluding: 0, scores: false}"], r"privacy\.scores"),
        (["task.largest=[lesion]"], "leave out postprocess, or the two others"),
    ],
    ids=str,
)
def test_auto_is_refused_where_nothing_could_be_chosen(tiny, overrides, said):
    with pytest.raises(StudyError, match=said):
        read_study(tiny / "tiny.yaml", [AUTO, *overrides])


def test_rules_are_of_foreground_classes_and_positive_volumes(tiny):
    assert read_study(tiny / "tiny.yaml", ["task.postprocess={lesion: 0.5}"]).task.postprocess == {
        "lesion": 0.5
    }
    with pytest.raises(StudyError, match="postprocess: 'liver' is not one of the foreground classes lesion"):
        read_study(tiny / "tiny.yaml", ["task.postprocess={liver: largest}"])
    with pytest.raises(StudyError, match="postprocess"):
        read_study(tiny / "tiny.yaml", ["task.postprocess={lesion: 0}"])


def test_a_plane_has_no_volume(tiny):
    plane = ["data.spatial_dims=2", "data.patch=[16, 16]", "data.spacing_mm=[2, 2]"]
    with pytest.raises(StudyError, match="the images are planes, without volumes; take largest"):
        read_study(tiny / "tiny.yaml", [*plane, "task.postprocess={lesion: 0.5}"])
    assert read_study(tiny / "tiny.yaml", [*plane, "task.postprocess={lesion: largest}"])


def test_only_a_study_that_removes_components_has_another_digest(tiny):
    plain = read_study(tiny / "tiny.yaml")
    said = read_study(tiny / "tiny.yaml", ["task.postprocess=none"])
    auto = read_study(tiny / "tiny.yaml", [AUTO])
    assert study_digest(said) == study_digest(plain) != study_digest(auto)

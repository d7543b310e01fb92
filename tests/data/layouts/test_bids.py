"""BIDS: the labelled contrast, sessions of one patient, and refusals where names leave it open."""

from __future__ import annotations

from pathlib import Path

import pytest

from medfed.data.index import Index, index_folder
from medfed.data.layouts.bids import BIDS
from medfed.errors import DataError

from ..hospital_folder import MARK, SECRET, ZEROS, index, unreadable, write_nifti


def bids(folder: Path, *names: str) -> Path:
    """Files by their path within; a subject's mark is put in front of its number."""
    for name in names:
        write_nifti(folder / name.replace("sub-", f"sub-{MARK}"), ZEROS)
    return folder


def test_bids_takes_the_labelled_kind_of_image_and_a_subject_s_sessions_as_one_patient(
    tmp_path: Path,
) -> None:
    folder = bids(
        tmp_path,
        "sub-1/ses-a/anat/sub-1_ses-a_T1w.nii.gz",
        "sub-1/ses-a/anat/sub-1_ses-a_FLAIR.nii.gz",
        "sub-1/ses-b/anat/sub-1_ses-b_T1w.nii.gz",
        "sub-1/ses-b/func/sub-1_ses-b_bold.nii.gz",
        "sub-2/anat/sub-2_T1w.nii.gz",
        "sub-3/anat/sub-3_T1w.nii.gz",
        "derivatives/labels/sub-1/ses-a/anat/sub-1_ses-a_T1w_seg.nii.gz",
        "derivatives/labels/sub-1/ses-b/anat/sub-1_ses-b_label-lesion_mask.nii.gz",
        "derivatives/sub-2/anat/sub-2_dseg.nii.gz",
        "derivatives/fast/sub-2/anat/sub-2_desc-corrected_T1w.nii.gz",
        "derivatives/labels/sub-9/anat/sub-9_T1w_seg.nii.gz",
    )
    indexed = index(folder)
    assert indexed.layout == "BIDS"
    label = {
        case.id.replace(MARK, ""): case.label and case.label.name.replace(MARK, "") for case in indexed.cases
    }
    assert label == {
        "sub-1_ses-a_T1w": "sub-1_ses-a_T1w_seg.nii.gz",
        "sub-1_ses-b_T1w": "sub-1_ses-b_label-lesion_mask.nii.gz",
        "sub-2_T1w": "sub-2_dseg.nii.gz",
        "sub-3_T1w": None,
    }
    assert indexed.patients == 3
    assert indexed.left_out == {
        "images of another contrast than T1w": 1,
        "labels below derivatives that belong to no image": 1,
        "nifti files that no case uses": 2,
    }


def test_bids_guesses_neither_the_kind_of_image_nor_the_label(tmp_path: Path) -> None:
    two = bids(tmp_path / "kinds", "sub-1/anat/sub-1_T1w.nii.gz", f"sub-2/anat/sub-2_{MARK}.nii.gz")
    with pytest.raises(DataError, match=r"several contrasts \(1 of no usual contrast, 1 T1w\)") as told:
        index(two)
    assert MARK not in str(told.value)
    labels = bids(
        tmp_path / "labels",
        "sub-1/anat/sub-1_T1w.nii.gz",
        "derivatives/one/sub-1/anat/sub-1_T1w_seg.nii.gz",
        "derivatives/two/sub-1/anat/sub-1_T1w_seg.nii.gz",
    )
    told = unreadable(index(labels))
    assert list(told) == ["sub-1_T1w"]
    assert told["sub-1_T1w"].startswith("derivatives has 2 labels for it; keep")


STACK = BIDS(channels={"t1": "T1w", "t1c": "ce-gd_T1w", "flair": "acq-3d_FLAIR"})


def stacked(folder: Path, layout: BIDS = STACK) -> Index:
    return index_folder(folder, site_secret=SECRET, layout=layout)


def test_bids_stacks_contrasts_by_suffix_and_entities(tmp_path: Path) -> None:
    for visit in ("sub-1/ses-a/anat/sub-1_ses-a", "sub-1/ses-b/anat/sub-1_ses-b", "sub-2/anat/sub-2"):
        ends = ("acq-2d_FLAIR", "acq-3d_FLAIR", "ce-gd_T1w", "acq-mprage_T1w", "T2w")
        bids(tmp_path, *(f"{visit}_{end}.nii.gz" for end in ends))
    bids(tmp_path, "derivatives/l/sub-1/ses-a/anat/sub-1_ses-a_acq-3d_FLAIR_lesion-manual.nii.gz")
    bids(tmp_path, "derivatives/l/sub-2/anat/sub-2_T2w_dseg.nii.gz")
    indexed = stacked(tmp_path)
    ends = [[path.name.split("_", 1)[1] for path in case.image] for case in indexed.cases]
    assert ends[2] == ["acq-mprage_T1w.nii.gz", "ce-gd_T1w.nii.gz", "acq-3d_FLAIR.nii.gz"]
    assert [one[0] for one in ends[:2]] == ["ses-a_acq-mprage_T1w.nii.gz", "ses-b_acq-mprage_T1w.nii.gz"]
    assert [case.id.replace(MARK, "") for case in indexed.cases] == ["sub-1_ses-a", "sub-1_ses-b", "sub-2"]
    assert [case.label is not None for case in indexed.cases] == [True, False, False]
    assert indexed.cases[0].split == indexed.cases[1].split
    assert indexed.channels == ("t1", "t1c", "flair")
    assert indexed.left_out == {
        "images that `channels` does not choose": 6,
        "labels below derivatives that belong to no image": 1,
    }


def test_bids_never_takes_a_contrast_enhanced_image_for_a_plain_one(tmp_path: Path) -> None:
    bids(tmp_path, "sub-1/anat/sub-1_T1w.nii.gz", "sub-1/anat/sub-1_ce-gd_T1w.nii.gz")
    bids(tmp_path, "sub-1/anat/sub-1_acq-3d_FLAIR.nii.gz", "sub-2/anat/sub-2_acq-3d_FLAIR.nii.gz")
    bids(tmp_path, "sub-2/anat/sub-2_ce-gd_T1w.nii.gz", "sub-3/anat/sub-3_run-1_T1w.nii.gz")
    bids(tmp_path, "sub-3/anat/sub-3_run-2_T1w.nii.gz")
    refusals = unreadable(stacked(tmp_path))
    assert refusals["sub-2"].startswith("it has no file for channel 1 of 3")
    assert refusals["sub-3"].startswith("2 images of its session fit one channel")
    assert list(refusals) == ["sub-2", "sub-3"]
    alike = BIDS(channels={"a": "T1w", "b": "T1w"})
    with pytest.raises(DataError, match="one image fits the channels a and b equally well"):
        stacked(tmp_path, alike)


def participants(folder: Path, *rows: str) -> Path:
    text = "\n".join(["participant_id\tSex\tage\tdiagnosis", *rows])
    (folder / "participants.tsv").write_text(text.replace("sub-", f"sub-{MARK}"))
    return folder


def test_participants_are_the_groups_and_the_classes(tmp_path: Path) -> None:
    bids(tmp_path, *(f"sub-{n}/anat/sub-{n}_T1w.nii.gz" for n in (1, 2, 3, 4, 5)))
    rows = ["sub-1\tF\t40\ttumour", "sub-2\tM\tn/a\thealthy", "sub-3\tF\t61\ttumour", "sub-4\tM\t8\tn/a"]
    participants(tmp_path, *rows, "sub-9\tM\t1\thealthy")
    indexed = stacked(tmp_path, BIDS(target="Diagnosis"))
    assert indexed.class_names == ("healthy", "tumour")
    assert [case.target for case in indexed.cases] == [1, 0, 1, None, None]
    assert [dict(case.attributes).get("age") for case in indexed.cases] == ["40", None, "61", "8", None]
    assert [case.attributes.get("sex") for case in indexed.cases] == ["F", "M", "F", "M", None]
    assert indexed.left_out == {}
    assert stacked(tmp_path, BIDS()).class_names == ()
    for target, message in (("site", "names no column"), ("age", "4 different values for 4 subjects")):
        with pytest.raises(DataError, match=message):
            stacked(tmp_path, BIDS(target=target))


def test_participants_that_cannot_be_read_cost_the_classes_only(tmp_path: Path) -> None:
    bids(tmp_path, "sub-1/anat/sub-1_T1w.nii.gz")
    with pytest.raises(DataError, match="which is not there"):
        stacked(tmp_path, BIDS(target="diagnosis"))
    participants(tmp_path, "sub-1\tF\t40\ttumour", f"sub-1\tF\t{MARK}\ttumour")
    indexed = stacked(tmp_path, BIDS())
    (note,) = [one for one in indexed.notes if "participants.tsv" in one]
    assert "row 3 is of a subject that has another row" in note
    assert MARK not in note
    with pytest.raises(DataError, match="row 3 is of a subject"):
        stacked(tmp_path, BIDS(target="diagnosis"))


def test_label_tables_name_the_numbers_of_segmentations_alone(tmp_path: Path) -> None:
    bids(tmp_path, "sub-1/anat/sub-1_T1w.nii.gz", "derivatives/a/sub-1/anat/sub-1_T1w_dseg.nii.gz")
    (tmp_path / "derivatives/a/dseg.tsv").write_text("index\tname\tcolor\n0\tbackground\t#0\n3\ttumour\t#f\n")
    indexed = stacked(tmp_path, BIDS())
    assert indexed.label_names == {0: "background", 3: "tumour"}
    assert indexed.left_out == {}
    bids(tmp_path, "sub-2/anat/sub-2_T1w.nii.gz", "derivatives/a/sub-2/anat/sub-2_T1w_mask.nii.gz")
    assert stacked(tmp_path, BIDS()).label_names == {}
    (tmp_path / "dseg.tsv").write_text("index\tname\n3\toedema\n")
    with pytest.raises(DataError, match="the number 3 two names"):
        stacked(tmp_path, BIDS())


def test_subjects_named_as_sessions_are_one_patient(tmp_path: Path) -> None:
    names = ("1Ses1", "1Ses2", "2")
    bids(tmp_path, *(f"sub-{name}/anat/sub-{name}_T1w.nii.gz" for name in names))
    indexed = stacked(tmp_path, BIDS())
    assert [case.patient.replace(MARK, "") for case in indexed.cases] == ["1", "1", "2"]
    assert indexed.cases[0].split == indexed.cases[1].split
    assert "2 subjects are named as sessions (sub-xSes1): they count as 1 patient" in indexed.notes


def test_a_second_segmentation_of_an_image_is_counted_by_its_kind(tmp_path: Path) -> None:
    """As the spinal cord challenge has it: the cord in `_seg-manual`, its grey matter in `_gmseg-manual`."""
    bids(
        tmp_path,
        "sub-1/anat/sub-1_T2starw.nii.gz",
        *(f"derivatives/labels/sub-1/anat/sub-1_T2starw_{one}-manual.nii.gz" for one in ("seg", "gmseg")),
    )
    indexed = stacked(tmp_path, BIDS())
    assert indexed.cases[0].label is not None
    assert indexed.cases[0].label.name.endswith("_seg-manual.nii.gz")
    assert indexed.left_out == {
        "other segmentations below derivatives, whose names end on none of dseg, mask, seg, label, lesion": 1
    }

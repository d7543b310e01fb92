"""BIDS: the labelled contrast, sessions of one patient, and refusals where names leave it open."""

from __future__ import annotations

from pathlib import Path

import pytest

from medfed.errors import DataError

from ..hospital_folder import MARK, ZEROS, index, write_nifti


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
    found = index(folder)
    assert found.layout == "BIDS"
    label = {
        case.id.replace(MARK, ""): case.label and case.label.name.replace(MARK, "") for case in found.cases
    }
    assert label == {
        "sub-1_ses-a_T1w": "sub-1_ses-a_T1w_seg.nii.gz",
        "sub-1_ses-b_T1w": "sub-1_ses-b_label-lesion_mask.nii.gz",
        "sub-2_T1w": "sub-2_dseg.nii.gz",
        "sub-3_T1w": None,
    }
    assert found.patients == 3
    assert found.left_out == {
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
    with pytest.raises(DataError, match=r"case [0-9a-f]{12}: derivatives has 2 labels for it; keep") as told:
        index(labels)
    assert MARK not in str(told.value)

"""`check` names classes as training does, and without a study lists the names that several patients share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hard_series import Series, segmentation, write, write_series

from medfed.data.preflight.preflight import check
from medfed.data.preflight.study_checks import StudyRequirements
from medfed.data.settings import Images

LIVER = np.zeros((6, 9, 11), bool)
LIVER[1:3, 1:4, 1:4] = True
TUMOUR = np.zeros((6, 9, 11), bool)
TUMOUR[3:5, 5:8, 6:8] = True
SETTINGS = Images(spacing_mm="native", patch=(4, 4, 4))


def hospital(folder: Path, *patients: dict[str, np.ndarray]) -> Path:
    """Write a DICOM tree: per patient a series and a segmentation with segments of these names, in order."""
    for number, structures in enumerate(patients):
        series = Series(shape=(6, 9, 11))

        def of_patient(ds, k, number=number):
            ds.PatientID = f"P{number}"
            return ds

        write_series(folder / f"p{number}" / "ct", series, of_patient)
        frames = [(n, k, mask[k]) for n, mask in enumerate(structures.values(), 1) for k in range(6)]
        ds = segmentation(series, frames, titles=list(structures))
        ds.PatientID, ds.SeriesInstanceUID = f"P{number}", f"1.2.{number}"
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{number}"
        write(ds, folder / f"p{number}" / "seg.dcm")
    return folder


def test_without_a_study_classes_are_the_names_that_patients_share(tmp_path: Path) -> None:
    folder = hospital(
        tmp_path,
        {"Liver": LIVER, "Tumour": TUMOUR},
        {"tumour": TUMOUR, "LIVER": LIVER},
        {"Mrs Miller": TUMOUR, "Liver": LIVER},
    )
    preflight = check(folder, processes=1)
    classes = {about["name"]: about["share"] for about in preflight.facts["classes"].values()}
    voxels = 6 * 9 * 11
    assert classes["Liver"] * 3 * voxels == 3 * LIVER.sum()
    assert round(classes["Tumour"] * 3 * voxels) == 2 * TUMOUR.sum()
    details = " ".join(detail for problem in preflight.problems for _, detail in problem.cases)
    assert "Mrs Miller,,,1" in (folder / ".medfed" / "cache" / "notes" / "structures.csv").read_text()
    assert "Miller" not in repr(preflight.facts) + details


def test_with_a_study_its_names_decide(tmp_path: Path) -> None:
    folder = hospital(tmp_path, {"Leber": LIVER, "Tumour": TUMOUR}, {"tumour": TUMOUR, "leber": LIVER})
    classes = ("background", "liver", "tumour")
    wanted = StudyRequirements("organs", SETTINGS, "segment", classes, {"Leber": "liver"})
    preflight = check(folder, requirements=wanted, processes=1)
    counts = {number: about["share"] for number, about in preflight.facts["classes"].items()}
    assert round(counts["1"] * 2 * 6 * 9 * 11) == 2 * LIVER.sum()
    assert round(counts["2"] * 2 * 6 * 9 * 11) == 2 * TUMOUR.sum()
    unmapped = check(
        folder, requirements=StudyRequirements("organs", SETTINGS, "segment", classes), processes=1
    )
    details = " ".join(detail for problem in unmapped.problems for _, detail in problem.cases)
    assert "no label here names 'liver'" in details
    assert "1 structures that the labels name match no class" in details
    assert "Leber:" in details
    assert list(unmapped.facts["classes"]) == ["0", "2"]

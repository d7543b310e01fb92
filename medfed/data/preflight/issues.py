"""The kinds of issue that a preflight knows, and the records in which it reports them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


class Finding(NamedTuple):
    """One issue: a code of ISSUE_TYPES, the printable name of the case ('' for the site), the detail."""

    code: str
    case: str
    detail: str


@dataclass(frozen=True, slots=True)
class IssueType:
    """How bad a kind of issue is, what it means and what to do about it."""

    severity: Severity
    title: str
    means: str
    cure: str


ISSUE_TYPES: Mapping[str, IssueType] = {
    # the folder and its table
    "folder": IssueType(
        "error",
        "The folder can't be used as it is",
        "Training refuses it.",
        "Follow the line below.",
    ),
    "row": IssueType(
        "error", "Rows that can't be used", "Training refuses the whole table.", "Correct or remove the rows."
    ),
    "missing_file": IssueType(
        "error",
        "Missing files",
        "Training refuses the folder.",
        "Correct the path, or restore the file.",
    ),
    "patient_in_two_splits": IssueType(
        "error",
        "One patient in two splits",
        "The model would be tested on patients that it has trained on, and look better than it is.",
        "Put all of a patient's cases into one split.",
    ),
    # images
    "corrupt": IssueType(
        "error",
        "Images that can't be read correctly",
        "Training stops at the first of them.",
        "Export them again from the archive, or omit the cases.",
    ),
    "empty_file": IssueType(
        "error",
        "Empty files",
        "Most likely a copy was interrupted.",
        "Copy them again, or omit the cases.",
    ),
    "singular_affine": IssueType(
        "error",
        "Headers whose geometry is impossible",
        "Neither the position of the voxels in the patient nor the left side is known.",
        "Convert the images again from their DICOM, or omit the cases.",
    ),
    "several_volumes": IssueType(
        "error",
        "Several volumes instead of one",
        "medfed does not guess which of them is the case's image.",
        "Put each series or time point into a folder of its own.",
    ),
    "channel_grid": IssueType(
        "error",
        "Channels on different grids",
        "They can't be stacked.",
        "Register and resample them to one grid.",
    ),
    "constant": IssueType(
        "error",
        "Images with one value throughout",
        "They hold no information.",
        "Export them again, or omit them.",
    ),
    "hu_unsigned": IssueType(
        "error",
        "HU stored as unsigned numbers",
        "Values below zero wrapped round to about 65000: air looks brighter than bone.",
        "Convert the images again from their DICOM, with signed numbers.",
    ),
    "hu_offset": IssueType(
        "error",
        "CT images that are not in HU",
        "No voxel is near the -1000 HU of air; 1000 or 1024 was probably added, or the rescale was left out.",
        "Convert the images again from their DICOM; a header with the correct slope and intercept solves it.",
    ),
    "near_empty": IssueType(
        "warning",
        "Nearly empty images",
        "Nearly all voxels have the same value.",
        "Look at them; omit them if they are scouts, phantoms or failed exports.",
    ),
    "not_numbers": IssueType(
        "warning",
        "Voxels that are not numbers",
        "Training replaces them by the image's smallest value.",
        "Check whether that is correct for these images.",
    ),
    "no_rescale": IssueType(
        "warning",
        "CT without rescale slope and intercept",
        "Its numbers may not be HU.",
        "Export it again from the archive.",
    ),
    "not_hu": IssueType(
        "warning",
        "CT whose header says that it is not in HU",
        "A window in HU is wrong for it.",
        "Omit it.",
    ),
    "duplicate": IssueType(
        "warning",
        "The same image in several cases",
        "It counts twice in training; across splits or patients, the score is wrong.",
        "Keep one of them; if the patients differ, find out which one it belongs to.",
    ),
    "duplicate_across_splits": IssueType(
        "error",
        "The same image in two splits",
        "The model would be tested on an image that it has trained on.",
        "Keep one of them.",
    ),
    "burned_in": IssueType(
        "warning",
        "Text in the picture",
        "It may be a name, and a model can learn to read it.",
        "Look at the images; mask the text or omit them.",
    ),
    "face": IssueType(
        "warning",
        "Head scans that may show a face",
        "A face can be rebuilt from the image and recognised. Images don't leave the hospital, but copies "
        "and cached files are personal data.",
        "Deface them if your ethics approval asks for it; ignore this if they are.",
    ),
    "spacing_outlier": IssueType(
        "warning",
        "Voxel sizes unlike the site's others",
        "Another protocol, or a wrong header.",
        "Check whether the images belong to the study.",
    ),
    "intensity_outlier": IssueType(
        "warning",
        "Intensities unlike the site's others",
        "Another modality or contrast, or a wrong slope.",
        "Check whether the images belong to the study.",
    ),
    "orientation": IssueType(
        "note",
        "Images stored in another orientation",
        "Training reorients every image as the study says.",
        "Nothing to do.",
    ),
    "lossy": IssueType(
        "note", "Images with lossy compression", "Fine detail is lost.", "Prefer the originals."
    ),
    "tilt": IssueType(
        "note", "CT with a tilted gantry", "It is read with its sheared grid.", "Nothing to do."
    ),
    "qform_differs": IssueType(
        "note",
        "qform and sform differ",
        "The sform is used, as in most programs.",
        "Nothing to do if it is correct.",
    ),
    # labels
    "label_corrupt": IssueType(
        "error",
        "Labels that can't be read correctly",
        "Training stops at the first of them.",
        "Export the labels again, or omit the cases.",
    ),
    "label_grid": IssueType(
        "error",
        "Labels on another grid than their image",
        "Voxel by voxel they would mark the wrong place.",
        "Resample the label onto the image (nearest neighbour), or find the image that it was drawn on.",
    ),
    "label_classes": IssueType(
        "error",
        "Labels with values that are not classes",
        "Training refuses them.",
        "Map the values to classes from 0, or correct the study.",
    ),
    "label_empty": IssueType(
        "warning",
        "Labels without a labelled voxel",
        "Correct for a healthy patient; otherwise the label was lost.",
        "Look at them; omit the case if the label was lost.",
    ),
    "label_healthy": IssueType(
        "note", "Labels without a labelled voxel, of cases with target 0", "", "Nothing to do."
    ),
    "label_cut": IssueType(
        "warning",
        "Labels that end abruptly",
        "The last labelled slice is nearly as large as the largest, unlike the site's other labels: perhaps "
        "it was not finished, or was truncated.",
        "Look at the last slices.",
    ),
    "unlabelled": IssueType("note", "Cases without a label", "Segmentation omits them.", "Nothing to do."),
    # the study
    "study": IssueType(
        "error",
        "Requirements of the study that the folder does not meet",
        "This hospital can't take part as it is.",
        "Follow the line below.",
    ),
    "study_fit": IssueType(
        "warning",
        "Data that fit the study badly",
        "Training runs; its results may suffer.",
        "Talk to the coordinator.",
    ),
    "study_note": IssueType("note", "How the study will treat the data", "", "Nothing to do."),
    "note": IssueType("note", "Worth knowing", "", ""),
}


@dataclass(frozen=True, slots=True)
class Problem:
    """All findings of one kind, as (printable name of the case, detail)."""

    code: str
    severity: Severity
    title: str
    means: str
    cure: str
    cases: tuple[tuple[str, str], ...]


def group_findings(findings: Iterable[Finding]) -> tuple[Problem, ...]:
    """Return one problem per code, the worst and the most frequent first; repeated findings count once."""
    grouped: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for code, name, detail in findings:
        if (name, detail) not in grouped[code]:
            grouped[code].append((name, detail))
    problems = []
    for code, cases in grouped.items():
        kind = ISSUE_TYPES[code]
        problems.append(Problem(code, kind.severity, kind.title, kind.means, kind.cure, tuple(cases)))
    return tuple(sorted(problems, key=lambda p: (SEVERITIES.index(p.severity), -len(p.cases), p.code)))

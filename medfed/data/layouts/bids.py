"""The Brain Imaging Data Structure: images in sub-01[/ses-1]/anat, labels below derivatives/.

Source: Gorgolewski et al., The brain imaging data structure, Scientific Data 2016, doi:10.1038/sdata.2016.44;
names of masks and segmentations by its derivatives (version 1.9), and by the widespread `<image>_seg`. Only
`anat` is read: a functional or diffusion series is no volume to segment.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from medfed.data.case import Fault
from medfed.data.layouts._bids_tables import read_label_tables, read_participants
from medfed.data.layouts._files import is_image, stem
from medfed.data.layouts._layout import CaseListing, Layout, ListedCase
from medfed.data.layouts._numbered_channels import one_of
from medfed.data.layouts._survey import Survey
from medfed.data.refusals import SeveralFilesError, SeveralLabelsError
from medfed.errors import DataError

# How a label's name ends below derivatives/, where images lie too (bias-corrected, in a template's space).
LABELS = ("dseg", "mask", "seg", "label", "lesion")

# Contrasts that may be named in a message; any other word of a file's name could be a patient's.
WEIGHTED_IMAGES = frozenset({"T1w", "T2w", "T2starw", "PDw", "PDT2", "FLAIR", "FLASH", "inplaneT1", "angio"})
# Entities that a choice of a channel need not say: who and when it is of, and which of several takes.
_NEUTRAL = frozenset({"sub", "ses", "acq", "run"})
# Subjects that hold a session in their label.
_SESSION = re.compile(r"(.+?)ses(?:sion)?\d+", re.IGNORECASE)

UNUSED_LABELS = "labels below derivatives that belong to no image"
OTHER_SEGMENTATIONS = f"other segmentations below derivatives, whose names end on none of {', '.join(LABELS)}"

QUANTITATIVE_MAPS = frozenset({"T1map", "T2map", "T1rho", "UNIT1"})


class BIDS(Layout, tag="bids", frozen=True):
    """The Brain Imaging Data Structure: the anatomical images of each subject and session with their labels.

    channels: the images of a session that are its channels, by a name for each: a suffix, with the entities
    that tell its file from others, such as `{t1: T1w, t1c: ce-gd_T1w, flair: acq-3d_FLAIR}`. A file with
    `acq` or `run` fits a choice without them; one with any other entity (`ce`, `rec`, `part`) only one that
    says it.  target: the column of participants.tsv with each subject's class.

    Without `channels` each image of the labelled contrast is a case. Subjects that are named as sessions of
    one (`sub-12Ses1`, `sub-12Ses2`) are one patient.
    """

    title: ClassVar[str] = "BIDS"
    needs: ClassVar[str] = "sub-x/anat/sub-x_T1w (BIDS)"
    order: ClassVar[int] = 40
    rank: ClassVar[int] = 1

    channels: dict[str, str] | None = None
    target: str = ""

    def evidence(self, survey: Survey) -> str | None:
        count = len(_images(survey))
        return f"{count} images in sub-*/anat, named as BIDS does" if count else None

    def read(self, survey: Survey) -> CaseListing:
        images, labels = _images(survey), _labels(survey)
        found = _stacked(images, labels, self.channels) if self.channels else _one_contrast(images, labels)
        table = read_participants(survey, needed=bool(self.target))
        targets, classes = table.targets(self.target) if self.target else ({}, ())
        cases = tuple(
            replace(case, target=targets.get(case.patient), attributes=table.rows.get(case.patient, {}))
            for case in found.cases
        )
        names, tables = read_label_tables(survey)
        # The table is of segmentations; 1 in a mask is what the mask is of.
        all_named = all(_suffix(case.label) == "dseg" for case in cases if case.label is not None)
        cases, notes = _with_patients(cases)
        return replace(
            found,
            cases=cases,
            left_out={**found.left_out, OTHER_SEGMENTATIONS: tuple(_other_segmentations(survey))},
            notes=(*table.notes, *notes),
            class_names=classes,
            label_names=names if all_named else {},
            read=(*table.read, *tables),
        )


def _stacked(images: Sequence[Path], labels: Sequence[Path], channels: Mapping[str, str]) -> CaseListing:
    """Return a case for each session that has one of the chosen images."""
    taken = {image: _choice(image, channels) for image in images}
    cases = []
    for visit in sorted({_visit(image) for image in images if taken[image]}):
        of_visit = [image for image in images if _visit(image) == visit]
        chosen = [[image for image in of_visit if taken[image] == name] for name in channels]
        matches = _labels_of(visit, [image for some in chosen for image in some], of_visit, labels)
        cases.append(
            ListedCase(
                f"sub-{visit[0]}" + (f"_ses-{visit[1]}" if visit[1] else ""),
                visit[0],
                tuple(one_of(some) for some in chosen),
                label=matches[0] if matches else None,
                fault=_fault(chosen, matches),
            )
        )
    used = {case.label for case in cases}
    left_out = {
        "images that `channels` does not choose": tuple(image for image in images if not taken[image]),
        UNUSED_LABELS: tuple(label for label in labels if label not in used),
    }
    return CaseListing(BIDS.title, tuple(cases), channels=tuple(channels), left_out=left_out)


def _one_contrast(images: Sequence[Path], labels: Sequence[Path]) -> CaseListing:
    """Return a case for each image of the contrast that has labels."""
    labels_of = {image: _labels_of_image(image, images, labels) for image in images}
    contrast = _only_contrast(images, [image for image in images if labels_of[image]])
    cases = tuple(
        ListedCase(
            stem(image),
            _entities(image)["sub"],
            (image,),
            label=labels_of[image][0] if labels_of[image] else None,
            fault=_fault([[image]], labels_of[image]),
        )
        for image in images
        if _suffix(image) == contrast
    )
    used = {case.label for case in cases}
    left_out = {
        f"images of another contrast than {_printable(contrast)}": tuple(
            image for image in images if _suffix(image) != contrast
        ),
        UNUSED_LABELS: tuple(label for label in labels if label not in used),
    }
    return CaseListing(BIDS.title, cases, left_out=left_out)


def _choice(image: Path, channels: Mapping[str, str]) -> str:
    """Return the channel whose choice fits an image and says most of its name; or ''.

    Raises:
        DataError: if two do.
    """
    own = _entities(image)
    fitting = {}
    for name, choice in channels.items():
        wanted = dict(part.split("-", 1) for part in choice.split("_")[:-1] if "-" in part)
        said = own.items() >= wanted.items() and own.keys() - wanted.keys() <= _NEUTRAL
        if choice.rpartition("_")[2] == _suffix(image) and said:
            fitting[name] = len(wanted)
    best = [name for name, count in fitting.items() if count == max(fitting.values())]
    if len(best) > 1:
        raise DataError(
            f"layout: one image fits the channels {' and '.join(best)} equally well; make them more exact, "
            "by entities such as acq-x_T1w"
        )
    return best[0] if best else ""


def _fault(chosen: Sequence[Sequence[Path]], labels: Sequence[Path]) -> Fault | None:
    """Return why a session's files are not clear, or None."""
    several = [len(files) for files in chosen if len(files) > 1]
    if several:
        return Fault(
            SeveralFilesError,
            f"{several[0]} images of its session fit one channel; say which in `layout: {{kind: bids, "
            "channels: ...}}` by an entity (acq-x_T1w, run-1_T1w), or keep one",
        )
    if len(labels) > 1:
        return Fault(
            SeveralLabelsError,
            f"derivatives has {len(labels)} labels for it; keep the right one, or list the cases in "
            "cases.csv",
        )
    return None


def _with_patients(cases: Sequence[ListedCase]) -> tuple[tuple[ListedCase, ...], tuple[str, ...]]:
    """Return cases in which subjects named as sessions of one are one patient, and a note on it."""
    named = {case.patient: match[1] for case in cases if (match := _SESSION.fullmatch(case.patient))}
    if not named:
        return tuple(cases), ()
    patients = len(set(named.values()))
    note = (
        f"{len(named)} subjects are named as sessions (sub-xSes1): they count as {patients} "
        f"patient{'s' * (patients != 1)}"
    )
    return tuple(replace(case, patient=named.get(case.patient, case.patient)) for case in cases), (note,)


def _only_contrast(images: Sequence[Path], labelled: Sequence[Path]) -> str:
    """Return the contrast of the labelled images, or of all if none is labelled.

    Raises:
        DataError: if there are several.
    """
    counts = Counter(_suffix(image) for image in labelled or images)
    if len(counts) > 1:
        listed = ", ".join(f"{count} {_printable(contrast)}" for contrast, count in sorted(counts.items()))
        raise DataError(
            f"the folder holds {'labels of ' if labelled else ''}several contrasts ({listed}), and nothing "
            "says which one is meant; list the cases in cases.csv, which can also put several contrasts into "
            "channels"
        )
    return next(iter(counts))


def _images(survey: Survey) -> list[Path]:
    return [path for path in _anatomical(survey, ()) if "sub" in _entities(path)]


def _labels(survey: Survey) -> list[Path]:
    """Return the masks and segmentations of every pipeline below derivatives/, in order."""
    return [path for path in _derived(survey) if _is_label(path)]


def _other_segmentations(survey: Survey) -> list[Path]:
    """Return what may be labels by their names, such as `_gmseg-manual`, and are not taken for any."""
    return [
        path
        for path in _derived(survey)
        if not _is_label(path) and any(word in _suffix(path).lower() for word in LABELS)
    ]


def _derived(survey: Survey) -> list[Path]:
    """Return the images of every pipeline below derivatives/, in order."""
    pipelines = survey.subfolders("derivatives")
    roots = [("derivatives",), *(("derivatives", pipeline) for pipeline in pipelines)]
    return [path for root in roots for path in _anatomical(survey, root)]


def _is_label(path: Path) -> bool:
    """Whether a file's suffix is that of a label: `_dseg`, or as published, `_lesion-manual`."""
    return _suffix(path).partition("-")[0].lower() in LABELS


def _anatomical(survey: Survey, root: tuple[str, ...]) -> list[Path]:
    """Return the images of sub-*/anat and sub-*/ses-*/anat below a folder, in order."""
    return [
        file.path
        for file in survey.files
        if file.parts[: len(root)] == root and is_image(file) and _is_anatomical(file.parts[len(root) :])
    ]


def _is_anatomical(parts: Sequence[str]) -> bool:
    if len(parts) not in (3, 4) or not parts[0].startswith("sub-") or parts[-2] != "anat":
        return False
    return len(parts) == 3 or parts[1].startswith("ses-")


def _labels_of_image(image: Path, images: Sequence[Path], labels: Sequence[Path]) -> list[Path]:
    """Return the labels named after an image, or else those of a session that has no other image."""
    visit = _visit(image)
    of_visit = [label for label in labels if _visit(label) == visit]
    matches = [label for label in of_visit if _is_named_after(label, image)]
    if not matches and sum(_visit(other) == visit for other in images) == 1:
        return of_visit
    return matches


def _labels_of(
    visit: tuple[str, str], chosen: Sequence[Path], images: Sequence[Path], labels: Sequence[Path]
) -> list[Path]:
    """Return the labels named after a chosen image of a session, or else after none of its images."""
    of_visit = [label for label in labels if _visit(label) == visit]
    named = [label for label in of_visit if any(_is_named_after(label, image) for image in chosen)]
    return named or [
        label for label in of_visit if not any(_is_named_after(label, image) for image in images)
    ]


def _is_named_after(label: Path, image: Path) -> bool:
    return stem(label).startswith(f"{stem(image)}_")


def _entities(path: Path) -> dict[str, str]:
    """Return the entities in a BIDS name: sub-01_ses-2_T1w is {sub: 01, ses: 2}."""
    return dict(part.split("-", 1) for part in stem(path).split("_") if "-" in part)


def _visit(path: Path) -> tuple[str, str]:
    entities = _entities(path)
    return entities.get("sub", ""), entities.get("ses", "")


def _printable(contrast: str) -> str:
    return contrast if contrast in WEIGHTED_IMAGES | QUANTITATIVE_MAPS else "of no usual contrast"


def _suffix(path: Path) -> str:
    return stem(path).rpartition("_")[2]

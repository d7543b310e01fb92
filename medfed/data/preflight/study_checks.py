"""Whether a hospital's data meet the requirements of a study."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from medfed.data.batch_needs import IMAGE_NEEDS, Needs
from medfed.data.case import Case
from medfed.data.case_reading import moved_line
from medfed.data.findings import Findings, check_finding_columns, findings_of
from medfed.data.normalise.window import Window
from medfed.data.own_data import OwnData
from medfed.data.preflight.case import CaseFacts, format_mm
from medfed.data.preflight.issues import Finding
from medfed.data.preflight.listing import Listing
from medfed.data.settings import Images
from medfed.data.volume import COLOUR
from medfed.data.whole_images import CheckSize
from medfed.errors import DataError

# Resampling by more than this factor invents or discards most of the detail.
MAX_RESAMPLING_FACTOR = 3.0


@dataclass(frozen=True, slots=True)
class StudyRequirements:
    """What a study asks of a hospital's data."""

    study: str
    settings: Images
    needs: Needs
    classes: tuple[str, ...]
    # The site's own words for the classes, and the classes that it labels (all if empty); see `ClassNames`.
    words: Mapping[str, str] = field(default_factory=dict)
    expected: tuple[str, ...] = ()
    # Whether the site trains; a hospital that is held out only measures models.
    trains: bool = True
    # The site's own table beside the images, and its headings.
    own_data: OwnData | None = None
    # How many training items a step has, and what raises for an image size that the network cannot take.
    batch: int = 1
    check_size: CheckSize | None = None
    # The splits whose cases train, at least in the last rounds.
    training: tuple[str, ...] = ("train",)


def study_findings(
    requirements: StudyRequirements, listing: Listing, examined: Mapping[int, CaseFacts]
) -> Iterator[Finding]:
    """Yield what in a folder does not meet the study's requirements, or meets them badly."""
    if requirements.needs not in IMAGE_NEEDS:
        return
    settings = requirements.settings
    good = {number: facts for number, facts in examined.items() if facts.read}
    yield from _split_findings(requirements, listing)
    yield from _class_findings(requirements, listing, good)
    if settings.plan != "given":
        return  # spacing, patch and normalisation are computed from these images before training
    yield from _grid_findings(settings, listing, good)
    if isinstance(settings.normalise, Window):
        for number, facts in good.items():
            if facts.modality not in ("CT", "") and COLOUR not in facts.flags:
                detail = f"{facts.modality}, and the study normalises with a window in HU"
                yield Finding("study_fit", listing.names[number], detail)


def _usable(requirements: StudyRequirements, case: Case) -> bool:
    if requirements.needs == "multilabel":
        return not all(map(math.isnan, _findings(requirements, case)))
    if requirements.needs == "image":
        return True
    if requirements.needs == "segment":
        return case.label is not None or bool(case.masks)
    return case.target is not None


def _findings(requirements: StudyRequirements, case: Case) -> Findings:
    """Return a case's findings, none labelled if a cell of it can't be read, which is found by itself."""
    try:
        return findings_of(case, requirements.classes, requirements.settings.findings)
    except DataError:
        return (math.nan,) * len(requirements.classes)


def _split_findings(requirements: StudyRequirements, listing: Listing) -> Iterator[Finding]:
    what = {"segment": "label", "multilabel": "labelled finding"}.get(requirements.needs, "target")
    usable = [case for case in listing.cases if _usable(requirements, case)]
    if not usable:  # training's own refusal says so
        return
    if len(usable) < len(listing.cases):
        detail = f"{len(listing.cases) - len(usable)} cases have no {what} and are left out"
        yield Finding("study_note", "", detail)
    splits = Counter(case.split for case in usable)
    for split, use in (
        ("val", "the model can't be monitored here"),
        ("test", "it can't be measured on this hospital"),
    ):
        if not splits[split]:
            yield Finding("study_fit", "", f"no usable case is in the split '{split}': {use}")


def _class_findings(
    requirements: StudyRequirements, listing: Listing, good: Mapping[int, CaseFacts]
) -> Iterator[Finding]:
    if requirements.needs == "image":
        return
    if requirements.needs == "multilabel":
        yield from _finding_findings(requirements, listing)
        return
    classes = requirements.classes
    count = len(classes)
    if requirements.needs == "classify":
        for name, case in zip(listing.names, listing.cases, strict=True):
            if case.target is not None and case.target >= count:
                detail = f"target {case.target}; the study has classes 0 to {count - 1}"
                yield Finding("study", name, detail)
        expected = range(count)
        present = {case.target for case in listing.cases if case.split == "train"}
    else:
        present = {number for facts in good.values() for number in facts.classes}
        expected = range(1, count) if present else range(0)
    missing = [f"{number} ({classes[number]})" for number in expected if number not in present]
    if missing:
        yield Finding("study_fit", "", f"no case here has class {', '.join(missing)}")


def _finding_findings(requirements: StudyRequirements, listing: Listing) -> Iterator[Finding]:
    """Yield what keeps several findings per image from being read or learnt here."""
    names, words = requirements.classes, requirements.settings.findings
    try:
        check_finding_columns(listing.cases, names, words)
    except DataError:  # training's own refusal says so
        return
    for name, case in zip(listing.names, listing.cases, strict=True):
        try:
            findings_of(case, names, words)
        except DataError as error:
            yield Finding("study", name, str(error).partition(": ")[2])
    training = [_findings(requirements, case) for case in listing.cases if case.split == "train"]
    for number, name in enumerate(names):
        lacking = [
            word
            for word, value in (("with", 1.0), ("without", 0.0))
            if not any(findings[number] == value for findings in training)
        ]
        if lacking:
            yield Finding("study_fit", "", f"no training case here is {' or '.join(lacking)} '{name}'")


def _grid_findings(settings: Images, listing: Listing, good: Mapping[int, CaseFacts]) -> Iterator[Finding]:
    if not isinstance(settings.spacing_mm, tuple):
        if (
            settings.spacing_mm == "native"
            and settings.patch is None
            and len({facts.shape for facts in good.values()}) > 1
        ):
            detail = "sizes differ and the study trains on whole volumes at native spacing, one at a time"
            yield Finding("study_fit", "", detail)
        return
    dims = settings.spatial_dims
    spacing = np.sort(settings.spacing_mm)
    for number, facts in good.items():
        # In 2D the smaller spacings are those in the plane; the distance of slices stays.
        ratio = (
            np.sort(facts.spacing_mm[:dims] if settings.axes is None else facts.spacing_mm)[:dims] / spacing
        )
        if max(ratio.max(), 1 / ratio.min()) > MAX_RESAMPLING_FACTOR:
            detail = f"{format_mm(facts.spacing_mm)} mm, resampled to {format_mm(settings.spacing_mm)} mm"
            yield Finding("study_fit", listing.names[number], detail)
    if settings.patch is not None and dims == 3:
        patch_mm = np.sort(np.multiply(settings.patch, settings.spacing_mm))
        small = sum(_is_smaller(facts, patch_mm) for facts in good.values())
        if small:
            detail = f"{small} images are smaller than the study's patch and are padded at their edges"
            yield Finding("study_note", "", detail)


def moved_findings(examined: Collection[CaseFacts]) -> list[Finding]:
    """Return a note for labels and for channels that were moved from another grid onto their images'."""
    moved = Counter(part for facts in examined for part in facts.moved)
    return [
        Finding("study_note", "", moved_line(part, count, len(examined))) for part, count in moved.items()
    ]


def _is_smaller(facts: CaseFacts, patch_mm: NDArray[np.float64]) -> bool:
    extent_mm = np.sort(np.multiply(facts.shape, facts.spacing_mm))
    return bool((extent_mm < patch_mm - 1e-6).any())

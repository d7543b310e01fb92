"""What the labels of a folder name, for `medfed check`, matched to a study's classes as in training.

Without a study every name that the labels of at least two patients share becomes a class of its own, so that
`medfed new` can draft a study from names. A name of one patient's label alone may be that of the patient; it
is listed in the hospital's own note and nowhere else.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from medfed.data.class_names import BACKGROUND, Classes, ClassNames, words_of
from medfed.data.index import Index
from medfed.data.label_naming import (
    NUMBERS_ALONE,
    LabelSurvey,
    match_labels,
    match_targets,
    survey_labels,
    write_names,
)
from medfed.data.preflight.issues import Finding
from medfed.data.preflight.listing import Listing
from medfed.data.preflight.study_checks import StudyRequirements
from medfed.errors import DataError

# A structure's name is shown if the labels of this many patients hold it.
MIN_PATIENTS = 2


def name_structures(
    listing: Listing, folder: Path, key: bytes, requirements: StudyRequirements | None
) -> tuple[Listing, Classes]:
    """Return a listing whose labels and targets were matched to classes by name, and these classes.

    What training would refuse becomes a finding.
    """
    index = Index(
        folder,
        listing.layout,
        listing.cases,
        class_names=listing.class_names,
        label_names=listing.label_names,
    )
    if requirements is None:
        return _named_by_the_folder(listing, index, key)
    naming = ClassNames(requirements.classes, requirements.words, expected=requirements.expected)
    try:
        if requirements.needs == "segment":
            index, naming = match_labels(index, naming, key)
        elif requirements.needs == "classify":
            index = match_targets(index, naming)
    except DataError as error:
        refusal = Finding("folder", "", str(error))
        return replace(listing, findings=(*listing.findings, refusal)), len(naming)
    notes = tuple(
        Finding("study_note" if note.startswith(NUMBERS_ALONE) else "study_fit", "", note)
        for note in index.notes
    )
    named = replace(listing, cases=index.cases, findings=(*listing.findings, *notes))
    return replace(named, class_names=index.class_names), naming if requirements.needs == "segment" else None


def _named_by_the_folder(listing: Listing, index: Index, key: bytes) -> tuple[Listing, Classes]:
    """Return the names that the labels share as classes; None if they hold numbers alone."""
    survey = survey_labels(index.cases, ClassNames((BACKGROUND,), numbers=dict(index.label_names)))
    if not survey.named:
        return listing, None
    if survey.numbered:
        total = len(survey.named) + len(survey.numbered)
        detail = (
            f"{len(survey.named)} of {total} labels name their structures, the others hold numbers that "
            "nothing names; say in the site file what these mean, such as classes: {1: liver}"
        )
        return replace(listing, findings=(*listing.findings, Finding("folder", "", detail))), None
    shared, others = _shared_names(survey, index.label_names)
    naming = ClassNames((BACKGROUND, *shared), numbers=dict(index.label_names))
    findings = listing.findings
    if others:
        where = write_names(index.folder, key, replace(survey, naming=naming))
        detail = (
            f"{others} structures are named in the labels of one patient alone and are left out of this "
            f"list; {where}"
        )
        findings = (*findings, Finding("note", "", detail))
    return replace(listing, class_names=naming.classes, findings=findings), naming


def _shared_names(survey: LabelSurvey, label_names: Mapping[int, str]) -> tuple[list[str], int]:
    """Return the names that several patients' labels hold, in order, and how many others there are."""
    patients: dict[str, set[str]] = defaultdict(set)
    names: dict[str, str] = {}
    for each in survey.named:
        for one in each.structures or ():
            name = one.name or one.meaning
            names.setdefault(words_of(name), name)
            patients[words_of(name)].add(each.case.patient)
    names.pop(words_of(BACKGROUND), None)
    names.pop("", None)
    of_folder = {words_of(name) for name in label_names.values()}
    shared = [
        name for words, name in names.items() if words in of_folder or len(patients[words]) >= MIN_PATIENTS
    ]
    return shared, len(names) - len(shared)

"""What the labels of a folder name, for `medfed check`, matched to a study's classes as in training.

Without a study every name that the labels of at least two patients share becomes a class of its own, so that
`medfed new` can draft a study from names. A name of one patient's label alone may be that of the patient; it
is listed in the hospital's own note and nowhere else.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace

from medfed.data.channels import BY_NAME, UNNAMED
from medfed.data.class_names import BACKGROUND, ClassNames, words_of
from medfed.data.index import Index
from medfed.data.label_naming import (
    NUMBERS_ALONE,
    LabelSurvey,
    refuse_mixture,
    survey_labels,
    write_names,
)
from medfed.data.preflight.issues import Finding
from medfed.data.preflight.listing import Listing

# A structure's name is shown if the labels of this many patients hold it.
MIN_PATIENTS = 2


def naming_findings(index: Index, listing: Listing) -> list[Finding]:
    """Return what matching the labels of an index to classes has said, beyond what its listing says."""
    told = {finding.detail for finding in listing.findings}
    codes = {NUMBERS_ALONE: "study_note", BY_NAME: "study_note", UNNAMED: "unnamed_channels"}
    return [
        Finding(next((codes[start] for start in codes if note.startswith(start)), "study_fit"), "", note)
        for note in index.notes
        if note not in told
    ]


def shared_structures(index: Index, key: bytes) -> ClassNames | None:
    """Return the names that the labels of several patients share as classes; None if none has names.

    How many names are left out is added to the hospital's own note.

    Raises:
        DataError: if some labels name their structures and others hold numbers without names.
    """
    survey = survey_labels(index.cases, ClassNames((BACKGROUND,), numbers=dict(index.label_names)))
    if not survey.named:
        return None
    refuse_mixture(survey)
    naming = ClassNames(
        (BACKGROUND, *_shared_names(survey, index.label_names)), numbers=dict(index.label_names)
    )
    named = replace(survey, naming=naming)
    if any(not row[2] for row in named.rows):
        write_names(index.folder, key, named)
    return naming


def _shared_names(survey: LabelSurvey, label_names: Mapping[int, str]) -> list[str]:
    """Return the names that several patients' labels hold, in order."""
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
    return [
        name for words, name in names.items() if words in of_folder or len(patients[words]) >= MIN_PATIENTS
    ]

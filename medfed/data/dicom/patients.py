"""Which series belong to one patient.

Splits are by patient, so a patient who counts as two may be in training and in test. PatientID decides where
it tells patients apart. Archives that anonymise often empty it or write one word into all files; then the
study and the frame of reference decide, which the series of a visit share, and the name with the date of
birth if these tell patients apart. Whatever links two series makes them one patient's: joining two patients
costs a little, parting one falsifies the score.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

from medfed.data.dicom.listing_header import ListingHeader

# Words that anonymisers write instead of an identifier; compared without case, spaces and punctuation.
PLACEHOLDERS = frozenset(
    (
        "anon",
        "anonym",
        "anonymized",
        "anonymised",
        "anonymous",
        "anonymouspatient",
        "anonymizedpatient",
        "anonymisedpatient",
        "unknown",
        "unnamed",
        "noname",
        "noid",
        "none",
        "null",
        "nil",
        "na",
        "nan",
        "removed",
        "deleted",
        "redacted",
        "withheld",
        "deidentified",
        "deid",
        "dummy",
        "patient",
        "patientid",
        "id",
        "test",
        "testpatient",
        "private",
        "confidential",
    )
)
# A value that so many identified patients or visits share, and all there are, is a constant and no link.
MIN_CONSTANT = 3

# A series, by the PatientID and the UID in its headers.
Key = tuple[str, str]
Series = Mapping[Key, Sequence[ListingHeader]]
# What series of one patient share, such as its studies; empty words say nothing.
Values = Mapping[Key, frozenset[str]]


def group_by_patient(series: Series) -> tuple[dict[Key, str], list[str]]:
    """Return the patient of each series, and notes that may be printed.

    A patient is called by the PatientID, or by a study where no PatientID tells patients apart.
    """
    studies = _values(series, lambda header: header.study)
    visits = _Links(series, _sharing(studies))
    ids = _identities(series, visits, lambda header: header.patient)
    names = _identities(series, visits, lambda header: header.name and f"{header.name}/{header.birth_date}")
    unnamed = {key: members for key, members in series.items() if not ids[key]}
    frames = [
        group
        for group in _sharing(_values(unnamed, lambda header: header.frame))
        if not _is_constant([visits.of(key) for key in group], [visits.of(key) for key in unnamed])
    ]
    by_study = [
        group for group in _sharing(studies) if not _is_constant([ids[key] for key in group], ids.values())
    ]
    links = _Links(
        series, [*_sharing(ids), *_sharing({key: names[key] for key in unnamed}), *by_study, *frames]
    )
    patients = {key: _call(links.of(key), ids, studies) for key in series}
    return patients, _notes(series, ids, patients)


class _Links:
    """Series joined into groups by what they share."""

    def __init__(self, keys: Iterable[Key], shared: Iterable[Sequence[Key]]) -> None:
        self._group: dict[Key, tuple[Key, ...]] = {key: (key,) for key in keys}
        for group in shared:
            whole = tuple(sorted({key for one in group for key in self._group[one]}))
            for key in whole:
                self._group[key] = whole

    def of(self, key: Key) -> tuple[Key, ...]:
        """Return the series of one's group, sorted."""
        return self._group[key]


def _values(series: Series, of: Callable[[ListingHeader], str]) -> dict[Key, frozenset[str]]:
    return {key: frozenset(map(of, members)) - {""} for key, members in series.items()}


def _sharing(values: Values) -> list[list[Key]]:
    """Return the groups of series that share a value."""
    groups: dict[str, list[Key]] = defaultdict(list)
    for key, shared in values.items():
        for value in shared:
            groups[value].append(key)
    return list(groups.values())


def _identities(
    series: Series, visits: _Links, of: Callable[[ListingHeader], str]
) -> dict[Key, frozenset[str]]:
    """Return the identity that each series names; none if it is a placeholder or one for all visits."""
    values = {
        key: frozenset(value for value in named if not is_placeholder(value))
        for key, named in _values(series, of).items()
    }
    distinct = frozenset[str]().union(*values.values())
    if len(distinct) == 1 and len({visits.of(key) for key, named in values.items() if named}) > 1:
        return dict.fromkeys(values, frozenset())
    return values


def is_placeholder(identity: str) -> bool:
    """Whether an anonymiser wrote this instead of an identity: 'ANONYMOUS', '0000', 'XXX', 'n/a'."""
    word = re.sub(r"[\W_]+", "", identity.split("/")[0].lower())
    return word in PLACEHOLDERS or set(word) <= {"0"} or set(word) <= {"x"}


def _is_constant(shared: Iterable[object], everything: Iterable[object]) -> bool:
    """Whether a value is shared by all identified patients (or visits), of which there are several."""
    different = set(shared) - {frozenset()}
    return len(different) >= MIN_CONSTANT and different == set(everything) - {frozenset()}


def _call(group: tuple[Key, ...], ids: Values, studies: Values) -> str:
    named = sorted(value for key in group for value in ids[key])
    visits = sorted(value for key in group for value in studies[key])
    return named[0] if named else f"study {visits[0]}" if visits else f"series {group[0][1]}"


def _notes(series: Series, ids: Values, patients: Mapping[Key, str]) -> list[str]:
    notes = []
    unnamed = [key for key in series if not ids[key]]
    if unnamed:
        count = len({patients[key] for key in unnamed})
        notes.append(
            f"{len(unnamed)} series do not say whose they are (PatientID is empty, a placeholder or one for "
            f"all studies); by study and frame of reference they count as {count} patients, so a patient who "
            "was examined several times can't be recognised and may be in training and in test: if there are "
            "such patients, list the cases in cases.csv"
        )
    of_patient: dict[str, set[str]] = defaultdict(set)
    for key, patient in patients.items():
        of_patient[patient] |= ids[key]
    joined = sum(len(named) > 1 for named in of_patient.values())
    if joined:
        notes.append(f"{joined} patients have several PatientIDs in one study and count as one each")
    return notes

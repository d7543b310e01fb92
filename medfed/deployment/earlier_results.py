"""Of which patients this hospital has sent results before, over all studies; it never leaves.

A hospital that is tested in two studies, or again with one more patient, is in two reports: a mean over n and
one over n + 1 patients, whose difference is a single patient's. So a site keeps beside its run folders of
which patients its results were, and compares those of the next study: all that are tested, those who have a
structure, those of each class and those with an event. `policy.similar_results` says whether results that
differ by few patients are sent with a warning, or stay.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from msgspec.structs import replace

from medfed.deployment.patient_sets import PatientSet, patient_sets
from medfed.deployment.site_session import SiteSession
from medfed.deployment.study_page import OwnPart
from medfed.evaluation.disclosure import differ_by_few, is_too_few
from medfed.evaluation.rows import CaseRow, Row, unperturbed
from medfed.evaluation.segmentation import FALSE_POSITIVE
from medfed.pipeline.describing import only_describes
from medfed.pipeline.measure_models import all_cases_of

# Beside the run folders of all studies.
FILE = "results.jsonl"

# What a set of patients has in common beside the split: nothing, an event, or else a structure or class.
EVERYONE, EVENT = "", "event"

# A split, and what its patients have in common.
Key = tuple[str, str]


def similar_results(session: SiteSession) -> str:
    """Return how this study's test patients differ from those of earlier results, if by few; '' if not.

    It is '' also where no results of the study may leave.

    Raises:
        RunError: if what was kept is damaged.
    """
    if not OwnPart(session.study, session.site).results or only_describes(session.study):
        return ""
    cases = session.hospital.data.cases("test") if session.trains else all_cases_of(session.hospital)
    patients = frozenset(map(session.hospital.patient, cases))
    with patient_sets(_path(session), "results") as kept:
        return _compare(("test", EVERYONE), patients, kept.sets, fewest_of(session))


def note_similar_results(session: SiteSession) -> None:
    """Tell, in log, audit log and report, if results would be of an earlier study's patients but for few.

    Raises:
        RunError: if what was kept is damaged.
    """
    if sentence := similar_results(session):
        _tell(session, sentence)
        session.hospital.data.warnings += (sentence,)


def apart_from_earlier(session: SiteSession, cases: Iterable[CaseRow], rows: Sequence[Row]) -> list[Row]:
    """Keep of which patients results are, before they leave, and return the rows under the site's policy.

    Raises:
        RunError: if what was kept is damaged.
    """
    least, sets = fewest_of(session), patients_behind(cases)
    told: dict[Key, str] = {}
    withholds = session.site.policy.similar_results == "withhold"
    with patient_sets(_path(session), "results") as kept:
        before = list(kept.sets)
        for key, patients in sets.items():
            if sentence := _compare(key, patients, before, least):
                told[key] = sentence
        for (split, what), patients in sets.items():
            known = any(one.what == what and patients == {*one.patients} for one in before)
            stay = withholds and bool(told.keys() & {(split, what), (split, EVERYONE)})
            if len(patients) >= least and not known and not stay:
                kept.add(session.digest, patients, what)
    for sentence in told.values():
        if sentence not in session.hospital.data.warnings:  # else it was told before training
            _tell(session, sentence)
    return [
        _withheld(row, least) if withholds and any(_is_of(row, key) for key in told) else row for row in rows
    ]


def fewest_of(session: SiteSession) -> int:
    """Return the fewest patients of a result of this study that may leave this hospital."""
    return max(session.site.policy.smallest_group, session.study.evaluation.smallest_group)


def patients_behind(cases: Iterable[CaseRow]) -> Mapping[Key, frozenset[str]]:
    """Return the patients behind results, by split and what they have in common; the same for every model."""
    sets: dict[Key, set[str]] = defaultdict(set)
    for case in unperturbed(cases):
        sets[case.split, EVERYONE].add(case.patient)
        if case.event is not None:
            if case.event:
                sets[case.split, EVENT].add(case.patient)
        elif case.target or (case.metric == "finding" and case.target is not None):
            sets[case.split, f"{case.structure}={case.target:g}"].add(case.patient)
        elif case.metric == "dice" and case.value is not None and case.note != FALSE_POSITIVE:
            sets[case.split, f"{case.structure}="].add(case.patient)
    return {key: frozenset(patients) for key, patients in sets.items()}


def _path(session: SiteSession) -> Path:
    return Path(session.site.out) / FILE


def _compare(key: Key, patients: frozenset[str], before: Sequence[PatientSet], least: int) -> str:
    """Return a sentence if results of these patients, beside earlier ones, give those of few; '' if not."""
    split, what = key
    earlier = [one for one in before if one.what == what]
    sets = [frozenset(one.patients) for one in earlier]
    if len(patients) < least or not differ_by_few(patients, sets, least):
        return ""
    who = f"its patients of the {split} split" + (f" ({_words(what)})" if what else "")
    for one, known in zip(earlier, sets, strict=True):
        came, went = len(patients - known), len(known - patients)
        if is_too_few(came, least) or is_too_few(went, least):
            return (
                f"{who} are those of results that it sent on {one.time[:10]} (study {one.study[:12]}) but "
                f"for {came} who came and {went} who went: whoever has both reports can subtract them, "
                f"and has results of fewer than {least} patients"
            )
    return (
        f"results of {who}, together with the {len(sets)} sets that it sent before, give those of fewer "
        f"than {least} patients: whoever has all reports can add and subtract them"
    )


def _words(what: str) -> str:
    """Return what patients have in common, in words."""
    structure, _, target = what.partition("=")
    if what == EVENT:
        return "those with the event"
    return f"those {'without' if target == '0' else 'with'} '{structure}'"


def _tell(session: SiteSession, sentence: str) -> None:
    session.audit.write("similar results", site=session.name, reason=sentence)
    do = "stay here" if session.site.policy.similar_results == "withhold" else "are sent"
    session.progress.log(f"{session.name}: {sentence}. They {do} (policy.similar_results)")


def _is_of(row: Row, key: Key) -> bool:
    """Return whether a row says something of these patients that is more than their number."""
    split, what = key
    if row.split != split or row.metric == "patients":
        return False
    return what in (EVERYONE, EVENT) or row.structure in (None, what.rpartition("=")[0])


def _withheld(row: Row, least: int) -> Row:
    note = f"beside an earlier study's it would be of fewer than {least} patients (policy.similar_results)"
    return replace(row, value=None, low=None, high=None, p=None, p_holm=None, method=None, note=note)

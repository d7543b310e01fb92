"""Of which patients this hospital has sent statistics before, over all studies; it never leaves.

A hub that asks in two studies can subtract the answers: what is left is of the patients who are in one of
them and not in the other, and `smallest_group` says nothing of that. So a site keeps beside its run folders
of which patients each answer was (by the ledger's salted tokens), and sends none that differs from an earlier
one by a few patients, nor one that gives a few patients' values together with several earlier ones: of
answers for A and B, for A and C, and for A, B and C, the sum over A alone follows.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from medfed.deployment.patient_sets import PatientSet, patient_sets
from medfed.deployment.site_session import SiteSession
from medfed.errors import DeclinedError
from medfed.evaluation.disclosure import gives_few
from medfed.privacy.accounting.ledger import data_set

# Beside the run folders of all studies.
FILE = "statistics.jsonl"


def check_earlier_answers(session: SiteSession, least: int) -> None:
    """Check that a hospital's statistics may leave beside those that it sent before.

    Raises:
        DeclinedError: if their patients are those of an earlier answer but for fewer than `least` who came,
            or who went. Fewer than `least` patients in all are not compared: of them only that is said.
        RunError: if what was kept is damaged.
    """
    _compare(session, least, keep=False)


def record_answer(session: SiteSession, least: int) -> None:
    """Keep of which patients statistics were counted, before they leave; on disk when this returns.

    Raises:
        DeclinedError, RunError: as `check_earlier_answers`.
    """
    _compare(session, least, keep=True)


def _compare(session: SiteSession, least: int, *, keep: bool) -> None:
    patients = data_set(session.hospital.data.patients("train"), session.hospital.secret).patients
    if len(patients) < max(least, 1):
        return
    with patient_sets(Path(session.site.out) / FILE, "statistics") as kept:
        for one in kept.sets:
            _check_apart(session.name, patients, one, least)
        if any(patients == {*one.patients} for one in kept.sets):
            return  # nothing new is told
        _check_together(session.name, patients, kept.sets, least)
        if keep:
            kept.add(session.digest, patients)


def _check_apart(site: str, patients: frozenset[str], earlier: PatientSet, least: int) -> None:
    before = frozenset(earlier.patients)
    came, went = len(patients - before), len(before - patients)
    if not (0 < came < least or 0 < went < least):
        return
    raise DeclinedError(
        f"site '{site}': its statistics would be those that it sent on {earlier.time[:10]} (study "
        f"{earlier.study[:12]}) but for {came} training patients who came and {went} who went since. Whoever "
        f"has both could subtract them, and no numbers of fewer than {least} patients may leave. Nothing was "
        "sent. Answer once more patients have come, with the same patients as before, or in a study with "
        f"describe.noise; or, if nobody holds the earlier answer any more, remove its line from {FILE}"
    )


def _check_together(site: str, patients: frozenset[str], earlier: list[PatientSet], least: int) -> None:
    """Check that no combination of all answers is of a few patients who are in the same ones.

    Raises:
        DeclinedError: if one is.
    """
    answers = [*(frozenset(one.patients) for one in earlier), patients]
    tokens = sorted(frozenset().union(*answers))
    members = np.array([[token in answer for token in tokens] for answer in answers], dtype=bool)
    if gives_few(members, least):
        raise DeclinedError(
            f"site '{site}': its statistics, together with the {len(earlier)} answers that it sent before, "
            f"would give those of fewer than {least} patients: whoever has all of them could add and "
            "subtract them. Nothing was sent. Answer with the same patients as before, or in a study with "
            "describe.noise; or, if nobody holds the earlier answers any more, remove their lines from "
            f"{FILE}"
        )

"""On which patients a run's models were measured, by keyed digests of their content: tested.json; it stays.

Results over n and over n + 1 patients give a single patient's by subtraction: on one page under two names of
hospitals, in two reports one after the other, or in a report and on the page of a watched model.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec

from medfed.data.case import Case
from medfed.errors import DataError
from medfed.evaluation.disclosure import differ_by_few
from medfed.evaluation.inference import SiteCases
from medfed.files import write_whole
from medfed.pipeline.seen_cases import contents_of
from medfed.runs.folder import RunFolder
from medfed.runs.trained import KEY_BYTES, TrainedCases, read_keyed

# What goes before the name of a watched model's patients.
WATCH = "watch:"


class Tested(msgspec.Struct, frozen=True):
    """The patients of one hospital's results, by digest."""

    name: str
    patients: list[str]


class TestedPatients(msgspec.Struct, frozen=True):
    """The key of the digests, and all sets of patients, oldest first."""

    __test__ = False  # no tests, to pytest

    key: str
    sets: list[Tested] = []


@dataclass(frozen=True)
class Measured:
    """Patients that are to be measured, and those of the run's results so far."""

    known: TestedPatients
    name: str
    patients: frozenset[str]

    def check_page(self, least: int) -> None:
        """Check that results, beside those of other hospitals on the report's page, are not of few patients.

        Raises:
            DataError: if they do.
        """
        newest = {one.name: frozenset(one.patients) for one in self.known.sets}
        others = {
            name: patients
            for name, patients in newest.items()
            if name != self.name and not name.startswith(WATCH)
        }
        if not self._gives_few(others.values(), least):
            return
        near = max(others, key=lambda name: len(others[name] & self.patients))
        came, went = len(self.patients - others[near]), len(others[near] - self.patients)
        raise DataError(
            f"hospital '{self.name}': its patients are those of '{near}', whose results are in this report, "
            f"but for {came} more and {went} fewer; whoever has both could subtract them, and no results of "
            f"fewer than {least} patients may be shown (evaluation.smallest_group). Nothing was measured. "
            f"Give the other patients alone, or, if '{near}' was evaluated before, give these that name"
        )

    def subtractable(self, least: int) -> str:
        """Return a warning if results, beside an earlier report's, give those of few patients; '' if not."""
        earlier = [frozenset(one.patients) for one in self.known.sets]
        if not self._gives_few(earlier, least):
            return ""
        near = max(earlier, key=lambda patients: len(patients & self.patients))
        return (
            f"of its patients {len(self.patients - near)} came and {len(near - self.patients)} went since it "
            "was evaluated before; beside the earlier report this one gives results of fewer than "
            f"{least} patients, as whoever has both can subtract them: share one of them only"
        )

    def gives_few_reported(self, least: int) -> bool:
        """Return whether results, beside those of the run's reports, give those of few patients."""
        reported = [frozenset(one.patients) for one in self.known.sets if not one.name.startswith(WATCH)]
        return self._gives_few(reported, least)

    def _gives_few(self, earlier: Iterable[frozenset[str]], least: int) -> bool:
        """Return whether these patients, beside earlier sets that were shown, give few."""
        shown = [patients for patients in earlier if len(patients) >= least]
        return len(self.patients) >= least and differ_by_few(self.patients, shown, least)


def measured_patients(folder: RunFolder, name: str, hospital: SiteCases, cases: Sequence[Case]) -> Measured:
    """Return the patients of these cases, by the content of all their cases.

    Raises:
        RunError: if what was kept is damaged.
    """
    known, contents = _read(folder), contents_of(hospital.data)
    by_patient: dict[str, list[bytes]] = {}
    for case in cases:
        by_patient.setdefault(case.patient, []).append(contents.get(case.token, case.token.encode()))
    digest = TrainedCases(known.key).digest
    return Measured(known, name, frozenset(digest(b"".join(sorted(one))) for one in by_patient.values()))


def record_tested(folder: RunFolder, name: str, hospital: SiteCases, cases: Sequence[Case]) -> Measured:
    """Keep that these cases' patients are measured, and return them with those of before.

    Raises:
        RunError: if what was kept is damaged.
    """
    measured = measured_patients(folder, name, hospital, cases)
    one = Tested(name, sorted(measured.patients))
    if one.patients and one not in [*_newest(measured.known, name)]:
        known = TestedPatients(measured.known.key, [*measured.known.sets, one])
        write_whole(folder.tested, msgspec.json.encode(known), durable=True)
    return measured


def _newest(known: TestedPatients, name: str) -> Sequence[Tested]:
    return [one for one in known.sets if one.name == name][-1:]


def _read(folder: RunFolder) -> TestedPatients:
    known = read_keyed(
        folder.tested,
        TestedPatients,
        "of which patients results were",
        "Without it two reports could give a single patient's values",
    )
    return known or TestedPatients(os.urandom(KEY_BYTES).hex())

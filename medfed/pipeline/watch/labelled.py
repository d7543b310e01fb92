"""Results over new patients once they have labels: the rows of the study's evaluation, one look a round."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from msgspec.structs import replace

from medfed.errors import DataError
from medfed.evaluation.aggregate import aggregate
from medfed.evaluation.disclosure import is_too_few
from medfed.evaluation.inference import LabelCache, MeasurementSettings, measure
from medfed.evaluation.patients import SummarySettings
from medfed.evaluation.rows import FEDERATED, Row, append
from medfed.pipeline.baseline import read_baselines
from medfed.pipeline.factory import bears_of, hospital_of, screen_hospital
from medfed.pipeline.labelled import drawn_of, with_labelled
from medfed.pipeline.measure_models import all_cases_of
from medfed.pipeline.own_choices import OwnChoices
from medfed.pipeline.predict import load_model
from medfed.pipeline.tested_patients import WATCH, measured_patients, record_tested
from medfed.pipeline.watch.earlier_looks import read_all, write_earlier
from medfed.pipeline.watch.state import WatchFolder
from medfed.runs.folder import RunFolder
from medfed.study.study import Study

# Beside which results a row would be of too few patients.
LOOK, REPORT = "an earlier look's", "the results in the run's report"

# The patients who have a value of a metric and structure.
Behind = dict[tuple[str, str | None], set[str]]


def measure_look(
    study: Study,
    folder: RunFolder,
    state: WatchFolder,
    data: Path,
    name: str,
    own: OwnChoices,
    number: int,
    patients: set[str],
) -> None:
    """Measure the federated model on these patients, and append the look's rows, without small groups.

    Raises:
        DataError: if none of them has a label.
    """
    study = with_labelled(study, name, drawn_of(study, own.labelled))
    hospital = hospital_of(
        study.in_fold(None), name, str(data), own.secret, own.cache, own.data, own.words, own.layout
    )
    screen_hospital(hospital, own.bears or bears_of(study), own.cache)
    cases = [case for case in all_cases_of(hospital) if case.patient in patients]
    if not cases:
        raise DataError(f"watch of '{name}': --labels was given, and no new patient has a label or target")
    settings = MeasurementSettings(
        FEDERATED,
        "test",
        tolerance_mm=study.evaluation.tolerance_mm,
        seed=study.seed,
        baseline=read_baselines(folder).get(FEDERATED),
    )
    module = load_model(study, folder, FEDERATED)
    measured = list(measure(study.task, module, cases, LabelCache(hospital), settings))
    append(state.cases, measured)
    least = max(study.evaluation.smallest_group, own.smallest_group)
    rows = aggregate(
        measured,
        SummarySettings(
            round=number,
            seed=study.seed,
            classes=list(getattr(study.task, "classes", ())),
            held_out=[name],
            min_patients=least,
            draws=study.evaluation.draws,
        ),
    )
    # Tokens would be others without the site file's secret.
    names = {hospital.patient(case): case.patient for case in cases}
    behind: Behind = defaultdict(set)
    for case in measured:
        if case.value is not None:
            behind[case.metric, case.structure].add(names[case.patient])
    if measured_patients(folder, name, hospital, cases).gives_few_reported(least):
        append(
            state.rows, [row if row.metric == "patients" else _withheld(row, least, REPORT) for row in rows]
        )
        return
    record_tested(folder, f"{WATCH}{name}", hospital, cases)
    append(state.rows, _apart(rows, behind, state, number, least))


def _apart(rows: Sequence[Row], behind: Behind, state: WatchFolder, look: int, least: int) -> list[Row]:
    """Return the rows without those that, beside an earlier look's, would be of too few patients."""
    known = read_all(state.earlier)
    earlier = known[state.earlier.parent.name]
    withheld: set[str | None] = set()
    for (metric, structure), patients in behind.items():
        what = f"{metric}/{structure}"
        if is_too_few(len(patients), least):
            continue  # no row shows it
        if any(before.gives_few(what, patients, least) for before in known.values()):
            withheld.add(structure)
        else:
            earlier = earlier.after(look, what, patients)
    write_earlier(state.earlier, earlier)
    # A row of no structure is over all of them, and a classifier's cases name the class.
    return [
        _withheld(row, least, LOOK)
        if row.metric != "patients" and withheld and (row.structure in {*withheld, None} or None in withheld)
        else row
        for row in rows
    ]


def _withheld(row: Row, least: int, beside: str) -> Row:
    note = f"beside {beside} it would be of fewer than {least} patients, who came or went since"
    return replace(row, value=None, low=None, high=None, p=None, p_holm=None, method=None, note=note)

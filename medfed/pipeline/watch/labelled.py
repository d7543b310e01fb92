"""Results over new patients once they have labels: the rows of the study's evaluation, one look a round."""

from __future__ import annotations

from pathlib import Path

from medfed.errors import DataError
from medfed.evaluation.aggregate import aggregate
from medfed.evaluation.inference import LabelCache, MeasurementSettings, measure
from medfed.evaluation.patients import SummarySettings
from medfed.evaluation.rows import FEDERATED, append
from medfed.pipeline.baseline import read_baselines
from medfed.pipeline.factory import bears_of, hospital_of, screen_hospital
from medfed.pipeline.labelled import drawn_of, with_labelled
from medfed.pipeline.measure_models import all_cases_of
from medfed.pipeline.own_choices import OwnChoices
from medfed.pipeline.predict import load_model
from medfed.pipeline.watch.state import WatchFolder
from medfed.runs.folder import RunFolder
from medfed.study.study import Study


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
    rows = aggregate(
        measured,
        SummarySettings(
            round=number,
            seed=study.seed,
            classes=list(getattr(study.task, "classes", ())),
            held_out=[name],
            min_patients=max(study.evaluation.smallest_group, own.smallest_group),
            draws=study.evaluation.draws,
        ),
    )
    append(state.rows, rows)

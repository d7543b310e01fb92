"""Measure a run's models on another hospital: `medfed evaluate` and `medfed.evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from medfed.data.layouts import Layout
from medfed.errors import DataError, RunError
from medfed.evaluation import rows
from medfed.evaluation.rows import UNTRAINED
from medfed.files import private_files
from medfed.pipeline import measure_models
from medfed.pipeline.create_run import open_run
from medfed.pipeline.factory import bears_of, hospital_of, is_start_gone, module_of, screen_hospital
from medfed.pipeline.labelled import drawn_of, undrawn, with_labelled
from medfed.pipeline.own_choices import OwnChoices
from medfed.pipeline.report import report_run
from medfed.pipeline.seen_cases import all_seen, patients_seen, without_seen
from medfed.pipeline.suppress_warnings import suppress_warnings
from medfed.pipeline.tested_patients import measured_patients
from medfed.runs.facts import with_seen, with_warning
from medfed.runs.folder import RunFolder
from medfed.wire.weights import weights_of


@private_files()
def evaluate(
    run: str | Path | RunFolder,
    data: str | Path,
    *,
    name: str = "evaluated",
    all_cases: bool = False,
    layout: Layout | None = None,
    labelled: Sequence[str] = (),
    own: OwnChoices | None = None,
) -> RunFolder:
    """Measure a run's models on a hospital's folder and write the report again; return the run folder.

    The hospital is called `name` in rows and report. Its test split is measured, or every case
    with `all_cases`, which is right for a hospital that took no part in the study. Patients who
    trained the model are left out, whatever the folder is called. `layout` goes before the study's.
    `labelled` are the structures that the hospital drew, if not all of the study's; the others are
    not measured. `own` is what the hospital says of its data in its site file.

    Raises:
        RunError: if this is not a run folder, or a hospital of that name trained in the run.
        DataError: if the folder's cases cannot be used, or its results, beside those of another hospital in
            the report, would give those of a few patients.
        StudyError: if `labelled` names no structure of the study.
    """
    folder, facts, study = open_run(run)
    if name in study.sites:
        raise RunError(
            f"{folder.path}: hospital '{name}' trained in this run; give the one to evaluate another name"
        )
    own = own or OwnChoices()
    study = own.as_read_here(study).in_fold(None)  # this hospital's own splits, whatever fold the run was of
    study = with_labelled(study, name, labelled or drawn_of(study, own.labelled))
    with suppress_warnings():
        hospital = hospital_of(
            study,
            name,
            str(Path(data).resolve()),
            own.secret,
            own.cache,
            own.data,
            own.words,
            layout or own.layout,
        )
        screen_hospital(hospital, own.bears or bears_of(study), own.cache)
        # Where the file that it starts from is gone, nobody knows the model before training.
        untrained = {} if is_start_gone(study) else {UNTRAINED: weights_of(module_of(study))}
        models = {**untrained, **measure_models.saved_models(folder)}
        hospital, said = without_seen(folder, hospital, trains=False, start=study.start_path)
        listed = measure_models.all_cases_of(hospital) if all_cases else hospital.data.cases("test")
        cases = hospital.unseen(listed)
        if listed and not cases:
            raise DataError(all_seen(hospital, len(listed)))
        if not cases:
            raise DataError(
                f"hospital '{name}': no case is in the test split ({hospital.data.index.describe()}); "
                "measure all cases with --all-cases if none of them took part in training"
            )
        least = study.evaluation.smallest_group
        measured = measured_patients(folder, name, hospital, cases)
        measured.check_page(least)
        _forget(folder, name)
        measure_models.measure_test_cases(study, folder, hospital, cases, models)
        measure_models.write_gallery(study, folder, [hospital], models)
    facts = msgspec.structs.replace(
        facts,
        warnings={site: said for site, said in facts.warnings.items() if site != name},
        held_out=sorted({*facts.held_out, name}),
        cases={**facts.cases, name: {"test": len(cases)}},
    )
    facts = with_seen(facts, name, patients_seen(hospital), said) if said else facts
    facts = with_warning(facts, name, undrawn(study, name))
    facts = with_warning(facts, name, measured.subtractable(least))
    folder.write_facts(facts)
    return report_run(folder.path)


def _forget(folder: RunFolder, name: str) -> None:
    """Remove what was measured under a hospital's name before, such as structures that it does not draw."""
    if folder.cases.is_file():
        rows.write(folder.cases, [row for row in rows.read_cases(folder.cases) if row.site != name])

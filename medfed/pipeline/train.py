"""Train one study whose hospitals are all in this process: `medfed train STUDY` and `medfed.train`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import msgspec

from medfed.data.label_naming import different_labels
from medfed.data.whole_images import different_units
from medfed.errors import DataError, MedfedError, StudyError
from medfed.evaluation.inference import SiteCases
from medfed.evaluation.rows import FEDERATED, POOLED, UNTRAINED
from medfed.files import private_files
from medfed.pipeline import measure_models, privacy_facts, seen_cases
from medfed.pipeline.create_run import choose_folder, create_run, finish_run, write_study
from medfed.pipeline.describing import describe_here, keep_statistics, only_describes
from medfed.pipeline.experiments.leave_one_out import models_without_each, studies_without
from medfed.pipeline.experiments.local_models import train_local_models
from medfed.pipeline.experiments.pooled import pooled_model
from medfed.pipeline.experiments.seeds import models_of_seeds, studies_of_seeds
from medfed.pipeline.experiments.unlearning import Retraining, prepare_retraining, retraining
from medfed.pipeline.factory import (
    bears_of,
    folders_of,
    hospital_of,
    module_of,
    require_training_cases,
    screen_hospital,
    started_network,
)
from medfed.pipeline.federate import Federated, StudyRun, federate
from medfed.pipeline.noised_statistics import simulated_releases
from medfed.pipeline.planning import PlanFiles, needs_plan, plan_study
from medfed.pipeline.report import report_run
from medfed.pipeline.suppress_warnings import suppress_warnings
from medfed.privacy.accounting.ledger import Ledger
from medfed.runs.facts import RunFacts, with_missing_model, with_seen, with_unmeasured
from medfed.runs.folder import RunFolder
from medfed.runs.notebook import notebook_progress
from medfed.runs.progress import Progress
from medfed.runs.recorded_progress import RecordedProgress, record_warnings
from medfed.runs.rounds import read_rounds
from medfed.runs.status import FINISHED, Status, keep_status
from medfed.runs.trackers import TrackedRun, Tracking
from medfed.study.canonical import study_digest
from medfed.study.plugins import loaded_plugin
from medfed.study.reading import read_study, use_study
from medfed.study.study import Study
from medfed.wire.audit_log import AuditLog
from medfed.wire.signing import HUB
from medfed.wire.weights import Weights, weights_of


@private_files()
def train(
    study: str | Path | Study,
    *,
    out: str | Path | None = None,
    overrides: Sequence[str] = (),
    resume: bool = False,
    leave_one_out: bool = False,
    without: str | None = None,
    former: str | Path | None = None,
    progress: Progress | None = None,
) -> RunFolder:
    """Train a study over its hospitals in this process, measure the models, write the report.

    `without` names a hospital that withdrew from a `former` run of the study (the newest one if None): the
    study is trained again without it, from the last model to which it had not contributed. With
    `leave_one_out` the federation is also trained without each hospital in turn and tested on it.

    Returns the run folder.

    Raises:
        StudyError: if the study cannot be used.
        DataError: if a hospital's data cannot be used; it names the site, and the case by its salted id.
        QuorumError: if too few sites were left; the run can be resumed.
        RunError: if the run folder is taken, or holds a run of another study.
    """
    began, progress = time.monotonic(), progress or notebook_progress()
    if isinstance(study, Study):
        use_study(study)
    else:
        study = read_study(study, overrides)
    if only_describes(study):
        raise StudyError(
            "describe.only: this study ends with statistics of its data, and nothing is trained; run `medfed "
            "describe`, or leave the key out"
        )
    for line in describe_plugins(study):
        progress.log(line)
    again = None
    if without is not None:
        again = retraining(study, without, Path(former) if former is not None else None, resume)
        study = again.study
    if leave_one_out:
        studies_without(study)  # refused before anything is trained
    studies_of_seeds(study)
    if study.start is not None and not needs_plan(study):
        started_network(study)  # a start that cannot be used is refused before hours of reading cases
    folder = choose_folder(study, Path(out) if out is not None else None, resume)
    status = Status(folder.status, role="simulation", study=study.name, digest=study_digest(study))
    tracked = Tracking(study.trackers, TrackedRun(folder.path, study.name, HUB))
    progress = RecordedProgress(progress, status, read_rounds(folder.rounds), tracked)
    progress.opened(folder.path)
    with suppress_warnings(), keep_status(status), record_warnings(status), closing(tracked):
        status.update(state="reading the hospitals' cases")
        run, facts = _open(study, folder, again, progress, resume)
        run, facts = mark_seen(run, facts)
        status.update(state="training")
        federated = federate(run)
        facts = msgspec.structs.replace(facts, chosen=federated.choice, postprocess=federated.postprocess)
        run = _measured_as_chosen(run, federated)
        models = {UNTRAINED: weights_of(module_of(run.study)), FEDERATED: federated.weights}
        status.update(state="training other models, to compare")
        compared, facts = _models_to_compare(run, facts)
        models |= compared
        if leave_one_out:
            models |= models_without_each(run)
        models |= models_of_seeds(run)
        progress.stop()
        status.update(state="measuring every model")
        progress.log("measuring every model on every hospital's test cases")
        measured, unmeasured = measure_models.measure_all(
            run.study, folder, list(run.hospitals.values()), models, progress
        )
        facts = with_unmeasured(facts, unmeasured)
        measure_models.write_gallery(run.study, folder, measured, models)
        ledgers = {site: Ledger(folder.site(site)) for site in run.study.sites}
        finish_run(folder, privacy_facts.with_spent_budget(facts, run.study, ledgers), began)
        reported = report_run(folder.path)
        status.update(state=FINISHED)
    return reported


def _measured_as_chosen(run: StudyRun, federated: Federated) -> StudyRun:
    """Return the run whose models are measured with the components removed that the study has chosen."""
    study = federated.measured_as(run.study)
    if study != run.study:
        write_study(run.folder, study)
    return replace(run, study=study)


def describe_plugins(study: Study) -> list[str]:
    """Return one line for each plug-in of a study, whose code runs in this process."""
    known = [loaded_plugin(name, str(plugin.digest)) for name, plugin in study.plugins.items()]
    return [
        f"plug-in '{one.name}': its code runs here, and adds {'; '.join(one.adds)} ({one.digest})"
        for one in known
    ]


def _open(
    study: Study, folder: RunFolder, again: Retraining | None, progress: Progress, resume: bool
) -> tuple[StudyRun, RunFacts]:
    """Return the opened run and its facts: hospitals read, folder begun, data settings planned."""
    hospitals, unusable = open_hospitals(study, progress)
    for site, hospital in hospitals.items():
        for line in (hospital.data.index.describe(), *hospital.data.notes):
            progress.log(f"{site}: {line}")
    if again is not None:
        prepare_retraining(again, folder, progress)
    facts = create_run(folder, study, {site: hospital.data for site, hospital in hospitals.items()})
    facts = with_unmeasured(facts, {site: str(error) for site, error in unusable.items()})
    for line in facts.start.lines if facts.start else ():
        progress.log(line)
    for note in facts.privacy.notes:
        progress.log(f"privacy: {note}")
    run = StudyRun(study, folder, hospitals, progress, AuditLog(folder.audit), resume, unusable)
    began = {"start": facts.start.sha256} if facts.start else {}
    run.audit.write("began", study=study_digest(study), sites=sorted(study.sites), resumed=resume, **began)
    if study.describe is not None and not folder.statistics.exists():
        training = {site: hospital for site, hospital in hospitals.items() if site in study.sites}
        data = {site: hospital.data for site, hospital in training.items()}
        releases = simulated_releases(study, training, folder)
        statistics = describe_here(study, data, run.audit, releases=releases)
        keep_statistics(folder, study, study_digest(study), statistics)
        progress.log(f"statistics of the hospitals' training data: {folder.table_one}")
    if needs_plan(study):
        run = _plan(run)
    return run, facts


def mark_seen(run: StudyRun, facts: RunFacts) -> tuple[StudyRun, RunFacts]:
    """Record which cases train, and mark those among the cases to measure, under whatever name they come."""
    study, hospitals = run.study, dict(run.hospitals)
    trained = {site: hospital for site, hospital in hospitals.items() if site in study.sites}
    seen_cases.record_trained(run.folder, trained)
    for site, hospital in run.hospitals.items():
        marked, said = seen_cases.without_seen(
            run.folder, hospital, trains=site in study.sites, start=study.start_path
        )
        hospitals[site] = marked
        if site in study.held_out:
            listed = measure_models.all_cases_of(marked)
            measured = len(marked.unseen(listed))
            run.progress.log(
                f"{site}: takes no part in training; {measured} of its {len(listed)} cases are measured"
            )
            # Its own splits mean nothing here: it trains on none, and all are tested.
            facts = msgspec.structs.replace(facts, cases={**facts.cases, site: {"test": measured}})
        if said:
            run.progress.log(f"{site}: {said}")
            facts = with_seen(facts, site, seen_cases.patients_seen(marked), said)
    run.folder.write_facts(facts)
    return replace(run, hospitals=hospitals), facts


def open_hospitals(study: Study, progress: Progress) -> tuple[dict[str, SiteCases], dict[str, MedfedError]]:
    """Return the hospitals whose data can be used, and for each other one its error.

    Raises:
        MedfedError: if fewer are left than a round needs, with the first one's reason.
        DataError: if the labels of some name their structures and those of others hold numbers alone, or the
            images of some have no size in mm and are left as they are.
    """
    hospitals: dict[str, SiteCases] = {}
    unusable: dict[str, MedfedError] = {}
    for site, path in folders_of(study).items():
        try:
            hospital = hospital_of(study, site, path)
            # Until the plan is made, nobody knows how cases will be prepared.
            screen_hospital(hospital, bears_of(study), prepare=not needs_plan(study))
            if site in study.sites:
                require_training_cases(hospital)
            hospitals[site] = hospital
        except MedfedError as error:
            unusable[site] = error
            progress.log(f"{error}; the study goes on without this hospital")
    lost = [site for site in study.sites if site in unusable]
    if lost and len(study.sites) - len(lost) < max(study.minimum, study.rule.min_sites):
        raise unusable[lost[0]]
    if different := different_labels({site: one.data.index.labels_by for site, one in hospitals.items()}):
        raise DataError(different)
    if different := different_units({site: one.data.unit for site, one in hospitals.items()}):
        raise DataError(different)
    return hospitals, unusable


def _plan(run: StudyRun) -> StudyRun:
    """Return the run with the data settings that follow from all its hospitals' data."""
    trained = {site: run.hospitals[site].data for site in run.study.sites if site in run.hospitals}
    files = PlanFiles(run.folder.fingerprint, run.folder.table_sums)
    study = plan_study(run.study, trained, files, run.audit, run.progress.log)
    write_study(run.folder, study)
    hospitals, unusable = open_hospitals(study, run.progress)
    return replace(run, study=study, hospitals=hospitals, unusable=unusable)


def _models_to_compare(run: StudyRun, facts: RunFacts) -> tuple[Mapping[str, Weights], RunFacts]:
    """Return the local, pooled and personal models, and the facts with those that could not be trained.

    The federation went on without a hospital whose cases cannot be read, and its result must not be lost.
    """
    models: dict[str, Weights] = {}
    evaluation = run.study.evaluation
    if evaluation.local_models and len(run.study.sites) > 1:
        models, missing = train_local_models(run)
        facts = msgspec.structs.replace(facts, missing_models={**facts.missing_models, **missing})
    if evaluation.pooled_model and len(run.study.sites) > 1:
        try:
            models[POOLED] = pooled_model(run)
        except MedfedError as error:
            facts = with_missing_model(facts, POOLED, error)
            run.progress.log(f"no pooled model: {error}")
    saved = measure_models.saved_models(run.folder)
    models |= {model: weights for model, weights in saved.items() if model.startswith("personal:")}
    return models, facts

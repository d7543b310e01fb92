"""The folds of a cross-validation as one model, in a run folder of its own.

Its model is called federated, as that of any run. All patients of the folds trained it, so it is measured
where none of them is: at hospitals that took no part, and on patients whose given split is test.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from medfed.data.splits import Fold
from medfed.evaluation.inference import SiteCases
from medfed.evaluation.rows import FEDERATED, UNTRAINED
from medfed.files import private_folder, write_whole
from medfed.models.ensemble import AVERAGED, join_members
from medfed.pipeline import measure_models
from medfed.pipeline.component_gains import removed_components, with_rules
from medfed.pipeline.create_run import create_run, finish_run
from medfed.pipeline.factory import module_of
from medfed.pipeline.federate import StudyRun
from medfed.pipeline.report import report_run
from medfed.pipeline.suppress_warnings import suppress_warnings
from medfed.pipeline.train import mark_seen, open_hospitals
from medfed.runs.checkpoints import load_checkpoint, save_checkpoint
from medfed.runs.folder import RunFolder
from medfed.runs.progress import Progress
from medfed.runs.rounds import consecutive_rounds, encode_rounds, read_rounds
from medfed.study.reading import read_run_study
from medfed.study.study import Study
from medfed.wire.audit_log import AuditLog
from medfed.wire.weights import weights_of


def ensemble_run(
    study: Study, folds: Sequence[RunFolder], path: Path, progress: Progress
) -> tuple[list[str], str]:
    """Write the mean of the folds' models as a run; return where it was measured, and why there is none.

    It is made anew each time, as its models may have gone on.
    """
    if path.exists():
        shutil.rmtree(path)
    if why := no_mean(study, folds):
        progress.log(f"no mean of the folds' models: {why}")
        return [], why
    began, folder = time.monotonic(), RunFolder(path)
    private_folder(path)
    studies = [read_run_study(fold.study) for fold in folds]
    of_all = removed_by_all(studies).in_fold(Fold(number=0, of=len(folds)))
    weights = join_members([load_checkpoint(fold.checkpoint(FEDERATED)) for fold in folds])
    save_checkpoint(folder.checkpoint(FEDERATED), weights, study.train.rounds)
    rounds = consecutive_rounds(read_rounds(fold.rounds) for fold in folds)
    write_whole(folder.rounds, encode_rounds(rounds))
    with suppress_warnings():
        hospitals, unusable = open_hospitals(of_all, progress)
        facts = create_run(folder, of_all, {site: one.data for site, one in hospitals.items()})
        run = StudyRun(of_all, folder, hospitals, progress, AuditLog(None), False, unusable)
        run, facts = mark_seen(run, facts)
        measured = [one for one in run.hospitals.values() if _to_measure(of_all, one)]
        if measured:
            models = {UNTRAINED: weights_of(module_of(of_all)), FEDERATED: weights}
            measured, _ = measure_models.measure_all(of_all, folder, measured, models, progress)
            measure_models.write_gallery(of_all, folder, measured, models)
        finish_run(folder, facts, began)
    if measured:
        report_run(path)
    return [one.name for one in measured], ""


def no_mean(study: Study, folds: Sequence[RunFolder]) -> str:
    """Return why the models of these folds cannot predict as one, '' if they can."""
    if study.keep_local:
        return "layers stay in the hospitals (keep_local), so no fold has a whole model"
    if study.task.predicts == "other":
        return (
            f"the task's own module decides what it predicts, and only {' and '.join(AVERAGED)} have a mean"
        )
    data = [read_run_study(fold.study).in_fold(None).data for fold in folds]
    if any(one != data[0] for one in data):
        return (
            "each fold planned its data settings (data.plan) from the patients that train in it, so that its "
            "model sees images prepared in its own way; give the settings in the study for a mean"
        )
    return ""


def removed_by_all(studies: Sequence[Study]) -> Study:
    """Return the folds' study; components are removed that each fold chose to remove, by the same rule."""
    rules = [removed_components(study) for study in studies]
    if None in rules:
        return studies[0]
    first, *others = [one or {} for one in rules]
    alike = {name: one for name, one in first.items() if all(other.get(name) == one for other in others)}
    return with_rules(studies[0], alike)


def _to_measure(study: Study, hospital: SiteCases) -> bool:
    """Return whether a hospital has cases that none of the folds trained on."""
    listed = (
        measure_models.all_cases_of(hospital)
        if hospital.name in study.held_out
        else hospital.data.cases("test")
    )
    return bool(hospital.unseen(listed))

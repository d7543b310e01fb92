"""Measure a run's models on its hospitals' cases: the federated one, each hospital's own, and others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import pytorch_lightning as pl
from safetensors.torch import load_file

from medfed.data.batch_needs import PATCH_NEEDS
from medfed.data.case import Case
from medfed.data.splits import SPLITS
from medfed.errors import MedfedError, RunError
from medfed.evaluation.inference import (
    LabelCache,
    MeasurementSettings,
    SiteCases,
    case_images,
    measure,
    measure_scores,
    perturbations,
)
from medfed.evaluation.report import gallery
from medfed.evaluation.rows import FEDERATED, append, model_of, personal
from medfed.federation.site import LOCAL, PERSONAL
from medfed.models.ensemble import Ensemble, members_of
from medfed.pipeline.baseline import Baseline, baseline_of, read_baselines, write_baseline_file
from medfed.pipeline.factory import is_start_gone, module_of
from medfed.pipeline.tested_patients import record_tested
from medfed.runs.checkpoints import load_checkpoint
from medfed.runs.folder import RunFolder
from medfed.runs.progress import Progress
from medfed.study.study import Study
from medfed.wire.weights import Weights, load, weights_of


def measure_all(
    study: Study,
    folder: RunFolder,
    hospitals: Sequence[SiteCases],
    models: Mapping[str, Weights],
    progress: Progress,
) -> tuple[list[SiteCases], dict[str, str]]:
    """Measure every model on every hospital's test cases, and on all cases of those that took no part.

    A classifier is measured on validation cases too, because its operating point is chosen there and not on
    the test cases; it is 0.5 where the last rounds train on them. Returns the hospitals that could be
    measured, and for each other one the reason.

    Raises:
        MedfedError: if no hospital could be measured, with the first one's reason.
    """
    folder.cases.unlink(missing_ok=True)
    folder.scores.unlink(missing_ok=True)
    if study.task.predicts == "survival":
        write_baselines(study, folder, hospitals, models)
    measured: list[SiteCases] = []
    failures: dict[str, MedfedError] = {}
    for hospital in hospitals:
        try:
            measure_site(study, folder, hospital, models)
            measured.append(hospital)
        except MedfedError as error:
            failures[hospital.name] = error
            progress.log(f"{hospital.name}: could not be measured: {error}")
    if failures and not measured:
        raise next(iter(failures.values()))
    return measured, {site: str(error) for site, error in failures.items()}


def measure_site(study: Study, folder: RunFolder, hospital: SiteCases, models: Mapping[str, Weights]) -> None:
    """Measure the models on one hospital's test cases, or on all cases if it is held out.

    Cases that trained the model are not among them (`seen_cases`).
    """
    if hospital.name in study.held_out:
        measure_test_cases(study, folder, hospital, all_cases_of(hospital), models)
        return
    if study.task.needs not in PATCH_NEEDS and study.on_all_from is None:
        labels = LabelCache(hospital)
        for model, weights in models_at(study, folder, hospital.name, models).items():
            settings = _settings(study, folder, model, split="val")
            _append_rows(study, folder, labels, hospital.data.cases("val"), weights, settings)
    _append_scores(study, folder, hospital, models)
    measure_test_cases(study, folder, hospital, hospital.data.cases("test"), models)


def _append_scores(
    study: Study, folder: RunFolder, hospital: SiteCases, models: Mapping[str, Weights]
) -> None:
    """Append to scores.jsonl what guaranteed thresholds of a segmentation are chosen on and tested with."""
    local_models = models_at(study, folder, hospital.name, models)
    if not study.evaluation.guarantee or study.task.predicts != "segment" or FEDERATED not in local_models:
        return
    module, labels = module_with(study, local_models[FEDERATED]), LabelCache(hospital)
    for split in ("val", "test"):
        settings = _settings(study, folder, FEDERATED, split=split)
        cases = hospital.unseen(hospital.data.cases(split)) if split == "test" else hospital.data.cases(split)
        append(folder.scores, list(measure_scores(study.task, module, cases, labels, settings)))


def measure_test_cases(
    study: Study, folder: RunFolder, hospital: SiteCases, cases: Sequence[Case], models: Mapping[str, Weights]
) -> None:
    """Measure the models on these cases as test cases, and the federated one on perturbed cases too."""
    labels, cases = LabelCache(hospital), hospital.unseen(cases)
    record_tested(folder, hospital.name, hospital, cases)
    local_models = models_at(study, folder, hospital.name, models)
    for model, weights in local_models.items():
        _append_rows(study, folder, labels, cases, weights, _settings(study, folder, model))
    if FEDERATED in local_models and study.evaluation.robustness:
        for condition in perturbations(study.task, study.data):
            settings = _settings(study, folder, FEDERATED, condition=condition)
            _append_rows(study, folder, labels, cases, local_models[FEDERATED], settings)


def _settings(
    study: Study, folder: RunFolder, model: str, *, split: str = "test", condition: str | None = None
) -> MeasurementSettings:
    return MeasurementSettings(
        model,
        split,
        tolerance_mm=study.evaluation.tolerance_mm,
        condition=condition,
        seed=study.seed,
        baseline=read_baselines(folder).get(model),
    )


def _append_rows(
    study: Study,
    folder: RunFolder,
    labels: LabelCache,
    cases: Sequence[Case],
    weights: Weights,
    settings: MeasurementSettings,
) -> None:
    """Measure a model on one hospital's cases and append the rows to the run's cases.jsonl."""
    rows = measure(study.task, module_with(study, weights), cases, labels, settings)
    # All rows or none: a case of this hospital may prove unreadable.
    append(folder.cases, list(rows))


def models_at(
    study: Study, folder: RunFolder, site: str, models: Mapping[str, Weights]
) -> dict[str, Weights]:
    """Return the models that can be measured at a hospital, with the layers it kept and its personal model.

    If layers stay in the hospitals, the federated model is complete only at a hospital that has such layers,
    which one that took no part does not.
    """
    complete = dict(models)
    if site not in study.sites:
        return {m: w for m, w in complete.items() if m != FEDERATED or not study.keep_local}
    own = folder.site(site)
    if study.keep_local and (own / LOCAL).exists():
        complete[FEDERATED] = {**models[FEDERATED], **load_file(own / LOCAL)}
    if (own / PERSONAL).exists():
        complete[personal(site)] = load_file(own / PERSONAL)
    return complete


def write_gallery(
    study: Study, folder: RunFolder, hospitals: Sequence[SiteCases], models: Mapping[str, Weights]
) -> None:
    """Write cases.html for a segmentation, with images that stay in the hospital."""
    if study.task.predicts != "segment":
        return
    models_of = {hospital.name: models_at(study, folder, hospital.name, models) for hospital in hospitals}
    weights = {site: own[FEDERATED] for site, own in models_of.items() if FEDERATED in own}
    shown = {hospital.name: hospital for hospital in hospitals if hospital.name in weights}
    images = case_images(study.task, lambda site: module_with(study, weights[site]), shown)
    structures = dict(list(enumerate(study.task.classes))[1:])  # type: ignore[attr-defined]
    gallery.write_gallery(folder.path, images, structures, sites=sorted(shown))


def write_baselines(
    study: Study, folder: RunFolder, hospitals: Sequence[SiteCases], models: Mapping[str, Weights]
) -> None:
    """Write each model's baseline hazard, over the training patients of the hospitals that trained."""
    sites = [hospital.data for hospital in hospitals if hospital.name in study.sites]
    baselines: dict[str, Baseline] = {}
    for model, weights in models.items():
        if study.keep_local and model == FEDERATED:
            # It is complete only with a hospital's own layers, so no one baseline holds for all hospitals.
            continue
        baselines[model] = baseline_of(module_with(study, weights), sites, study.evaluation.smallest_group)
    write_baseline_file(folder, baselines)


def all_cases_of(hospital: SiteCases) -> list[Case]:
    """Return a hospital's cases of every split."""
    return [case for split in SPLITS for case in hospital.data.cases(split)]


def saved_models(folder: RunFolder) -> dict[str, Weights]:
    """Return the weights of every model that a run has saved, by the model's name."""
    return {model_of(path.stem): load_checkpoint(path) for path in sorted(folder.checkpoints.glob("*.ckpt"))}


def module_with(study: Study, weights: Weights) -> pl.LightningModule:
    """Return the study's module with these weights; of an ensemble's, one that predicts its members' mean.

    Raises:
        RunError: if the file that the study starts from is gone, and holds what the weights lack.
    """
    if members := members_of(weights):
        modules = [module_with(study, member) for member in members]
        return Ensemble(modules, getattr(study.task, "labels", None))
    gone = is_start_gone(study)
    module = module_of(msgspec.structs.replace(study, start=None) if gone else study)
    if gone and (lacking := set(weights_of(module)) - set(weights)):
        raise RunError(
            f"study '{study.name}': this model has {len(lacking)} tensors less than its network, which are "
            "in the file that the study starts from; put it back where study.yaml of the run says (start)"
        )
    load(module, weights)
    return module

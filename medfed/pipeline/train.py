"""One run of a study, from its file to its report: what the commands do, and what `medfed.train`
does as a library.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from medfed.errors import DataError, MedfedError, RunError
from medfed.evaluation.inference import Hospital, References
from medfed.evaluation.rows import FEDERATED, POOLED, UNTRAINED, local, without
from medfed.pipeline import privacy_facts
from medfed.pipeline.create_run import begin, folder_for, now, write_round, write_study
from medfed.pipeline.experiments import unlearning as withdrawal
from medfed.pipeline.factory import folders_of, hospital_of, module_of, training_of
from medfed.pipeline.measure_models import (
    measure_all,
    measure_changed,
    measure_one,
    models_at,
    picture,
    saved,
    usable,
)
from medfed.pipeline.planning import planned
from medfed.pipeline.suppress_warnings import quiet
from medfed.privacy.accounting.ledger import data_set
from medfed.registry import kind_of
from medfed.runs.checkpoints import save_checkpoint
from medfed.runs.folder import RunFolder
from medfed.runs.progress import Progress, NoProgress
from medfed.runs.rounds import RoundReport
from medfed.study.study import Study, digest, read_study
from medfed.wire.audit_log import AuditLog
from medfed.wire.weights import Weights, weights_of

if TYPE_CHECKING:
    import pytorch_lightning as pl

    from medfed.data.datamodule import SiteDataModule
    from medfed.exchange import MemoryExchange

# The score that progress shows and that the headline is about, by what a task needs.
SHOWN = {"segment": "val/dice", "classify": "val/auroc", "table": "val/auroc", "survival": "val/c_index"}


# ---------------------------------------------------------------------------------------------- train


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
    """Train a study over its hospitals in this process, measure the models, write the report;
    return the run folder.

    `without` names a hospital that withdrew from a `former` run of the study (the newest one if None): the
    study is trained again without it, from the last model that it had no part in. With `leave_one_out` the
    federation is also trained without each hospital in turn and tested on it.

    Raises:
        StudyError: what the study file says cannot be done.
        DataError: what a hospital's folder holds cannot be used, naming the site and the case by its salted id.
        QuorumError: too few sites were left; the run resumes.
        RunError: the run folder is taken, or holds another study's run.
    """
    progress = progress or NoProgress()
    if not isinstance(study, Study):
        study = read_study(study, overrides)
    whole = study
    if without is not None:
        before = (
            None if resume else folder_for(study, Path(former) if former is not None else None, resume=True)
        )
        study = withdrawal.without(study, without)
    folder = folder_for(study, Path(out) if out is not None else None, resume)
    began = time.monotonic()
    with quiet():
        places = folders_of(study)
        hospitals = {site: hospital_of(study, site, where) for site, where in places.items()}
        data = {site: hospital.data for site, hospital in hospitals.items()}
        for site, one in data.items():
            progress.log(f"{site}: {one.index.describe()}")
            for note in one.notes:
                progress.log(f"{site}: {note}")
        facts = begin(folder, study, data)
        if without is not None and before is not None:
            record = withdrawal.prepare(whole, without, before, folder)
            progress.log(f"without {without}: training goes on from round {record.retrained_from}")
        facts |= withdrawal.facts(folder)
        for note in facts["privacy"]["notes"]:
            progress.log(f"privacy: {note}")
        audit = AuditLog(folder.audit)
        audit.write("began", study=digest(study), sites=sorted(study.sites), resumed=resume)
        if study.data.plan != "given":
            trained = {site: data[site] for site in study.sites}
            study = planned(study, trained, folder.path / "fingerprint.json", audit, progress.log)
            hospitals = {site: hospital_of(study, site, where) for site, where in places.items()}
            data = {site: hospital.data for site, hospital in hospitals.items()}
            write_study(folder, study)
        final = _federate(study, folder, hospitals, progress, audit, resume)
        models = {UNTRAINED: weights_of(module_of(study)), FEDERATED: final}
        if study.evaluation.local_models and len(study.sites) > 1:
            models |= _alone(study, folder, data, progress, facts)
        if study.evaluation.pooled_model and len(study.sites) > 1:
            try:
                models[POOLED] = train_pooled(study, folder, data, progress)
            except MedfedError as error:
                # The federation went on without a hospital whose case can't be read; its result must not
                # be lost here.
                facts["missing_models"][POOLED] = str(error)
                progress.log(f"no pooled model: {error}")
        # Models that a local objective left in the folder, one for each hospital.
        models |= {
            model: weights for model, weights in saved(folder).items() if model.startswith("personal:")
        }
        if leave_one_out:
            models |= _without_each(study, folder, hospitals, progress, audit, resume)
        progress.stop()
        progress.log("measuring every model on every hospital's test cases")
        measured = measure_all(study, folder, list(hospitals.values()), models, progress, facts)
        picture(study, folder, measured, models)
    facts["privacy"] |= privacy_facts.spent(study, {site: folder.site(site) for site in study.sites})
    folder.write_facts({**facts, "seconds": round(time.monotonic() - began, 1), "finished": now()})
    return report(folder.path)


def _federate(
    study: Study,
    folder: RunFolder,
    hospitals: dict[str, Hospital],
    progress: Progress,
    audit: AuditLog,
    resume: bool,
) -> Weights:
    from medfed.federation.simulation import run_federation
    from medfed.federation.site import train_site

    privacy = study.privacy.planned(study.train.rounds)
    data = {site: hospital.data for site, hospital in hospitals.items()}
    metric = SHOWN[study.task.needs]

    def site(name: str) -> Callable[[MemoryExchange], None]:
        def work(exchange: MemoryExchange) -> None:
            train_site(
                name,
                module_of(study, name),
                data[name],
                exchange,
                training_of(study, name),
                folder=folder.site(name),
                examples=data[name].examples,
                audit=audit,
                callbacks=[_steps(progress, name, study.at(name).train.epochs)],
                resume=resume,
                study=digest(study),
                dataset=data_set(data[name].patients("train"), hospitals[name].secret),
                items=data[name].items_by_patient() if privacy.trains_privately else (),
                say=progress.log,
            )

        return work

    def heard(found: RoundReport) -> None:
        progress.round(found)
        write_round(folder, found)

    # What is not exchanged because it never changes belongs to a checkpoint all the same.
    frozen = weights_of(module_of(study)) if study.trained_only else {}

    def merged(current: Any) -> None:
        save_checkpoint(folder.checkpoint(FEDERATED), {**frozen, **current.weights}, current.round)

    method = kind_of(study.rule)
    if study.train.local is not None and kind_of(study.train.local) != method:
        method += f" with {kind_of(study.train.local)}"
    progress.start(
        f"{study.name}: {method} over {len(study.sites)} hospitals",
        {name: data[name].examples for name in study.sites},
        study.train.rounds,
        metric,
    )
    try:
        final = run_federation(
            {name: site(name) for name in study.sites},
            weights_of(module_of(study), study.keep_local, trained_only=study.trained_only),
            rule=study.rule,
            rounds=study.train.rounds,
            privacy=privacy,
            fraction=study.sampling.fraction,
            minimum=study.minimum,
            seed=study.seed,
            study=digest(study),
            folder=folder.hub,
            watch=heard,
            merged=merged,
            audit=audit,
            compress=study.compress,
            outlier=study.sampling.outlier,
        )
    finally:
        progress.stop()
    # As a site has it, where the hub holds a part of the model encrypted.
    whole = {**frozen, **final.weights}
    save_checkpoint(folder.checkpoint(FEDERATED), whole, final.round)
    return whole


def _alone(
    study: Study,
    folder: RunFolder,
    data: dict[str, SiteDataModule],
    progress: Progress,
    facts: dict[str, Any],
) -> dict[str, Weights]:
    """Return each hospital's own model, trained on its cases alone with the same budget, kept
    where one is there.

    A hospital whose cases cannot be read has none: the federation went on without it, and its result
    must not be lost.
    """
    from medfed.federation.site import train_alone

    models: dict[str, Weights] = {}
    for name in sorted(study.sites):
        model, path = local(name), folder.checkpoint(local(name))
        if path.exists():
            models[model] = torch.load(path, weights_only=True)["state_dict"]
            continue
        progress.log(f"{name}: its own model, for comparison")
        module = module_of(study, name)
        try:
            train_alone(name, module, data[name], training_of(study, name), folder=folder.site(name))
        except MedfedError as error:
            facts["missing_models"][model] = str(error)
            progress.log(f"{name}: no model of its own: {error}")
            continue
        models[model] = weights_of(module)
        save_checkpoint(path, models[model], study.train.rounds)
    return models


def _without_each(
    study: Study,
    folder: RunFolder,
    hospitals: dict[str, Hospital],
    progress: Progress,
    audit: AuditLog,
    resume: bool,
) -> dict[str, Weights]:
    """Return the federated model without each hospital in turn, kept where one is there; each has a
    folder of its own.
    """
    from medfed.pipeline.experiments.leave_one_out import studies_without

    models: dict[str, Weights] = {}
    for left_out, smaller in studies_without(study).items():
        model, path = without(left_out), folder.checkpoint(without(left_out))
        if path.exists():
            models[model] = torch.load(path, weights_only=True)["state_dict"]
            continue
        progress.log(f"the federation without {left_out}")
        inner = RunFolder(folder.path / "leave-one-out" / left_out)
        inner.path.mkdir(parents=True, exist_ok=True)
        models[model] = _federate(smaller, inner, hospitals, progress, audit, resume)
        save_checkpoint(path, models[model], study.train.rounds)
    return models


def train_pooled(
    study: Study, folder: RunFolder, data: Mapping[str, SiteDataModule], progress: Progress | None = None
) -> Weights:
    """Return the model trained on all the study's hospitals' cases in one place, kept where one is there."""
    from medfed.pipeline.experiments import pooled

    path = folder.checkpoint(POOLED)
    if path.exists():
        return torch.load(path, weights_only=True)["state_dict"]
    if progress is not None:
        progress.log("all cases in one place, for comparison")
    module = module_of(study)
    sites = {name: data[name] for name in study.sites}
    pooled.train_pooled(
        sites, module, training_of(study), batch=study.train.batch, folder=folder.site(POOLED)
    )
    weights = weights_of(module)
    save_checkpoint(path, weights, study.train.rounds)
    return weights


def _steps(progress: Progress, site: str, local_epochs: int) -> pl.Callback:
    import pytorch_lightning as pl

    class Steps(pl.Callback):
        """Tells the display how far a site is in its round."""

        def on_train_batch_start(
            self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
        ) -> None:
            steps = int(trainer.num_training_batches)
            done = (trainer.current_epoch % local_epochs) * steps + batch_idx
            progress.training(site, done, steps * local_epochs)

    return Steps()


# ----------------------------------------------------------------------------------------- measure and report


def evaluate(
    run: str | Path | RunFolder, data: str | Path, *, name: str = "evaluated", all_cases: bool = False
) -> RunFolder:
    """Measure a run's models on the cases of a hospital's folder and write the report again;
    return the run folder.

    The hospital is called `name` in rows and report. Its test split is measured, or every case with
    `all_cases`, which is right for a hospital that took no part in the study.

    Raises:
        RunError: if this is no run folder, or the name is that of a hospital that trained.
        DataError: if the folder's cases cannot be used.
    """
    folder = run if isinstance(run, RunFolder) else RunFolder(Path(run))
    facts = folder.read_facts()
    study = read_study(folder.study)
    if name in study.sites:
        raise RunError(
            f"{folder.path}: hospital '{name}' trained in this run; call the one to evaluate something else"
        )
    with quiet():
        hospital = hospital_of(study, name, str(Path(data).resolve()))
        models = {UNTRAINED: weights_of(module_of(study)), **saved(folder)}
        cases = usable(hospital) if all_cases else hospital.data.cases("test")
        if not cases:
            raise DataError(
                f"hospital '{name}': no case is in the test split ({hospital.data.index.describe()}); measure them all with "
                f"--all-cases if none of them took part in training"
            )
        whole = models_at(study, folder, name, models)
        for model, weights in whole.items():
            measure_one(study, folder, hospital, cases, "test", model, weights, References(hospital))
        if FEDERATED in whole:
            measure_changed(study, folder, hospital, cases, whole[FEDERATED], References(hospital))
        picture(study, folder, [hospital], models)
    held_out = sorted({*facts["held_out"], name})
    folder.write_facts(
        {**facts, "held_out": held_out, "cases": {**facts["cases"], name: {"test": len(cases)}}}
    )
    return report(folder.path)


def report(run: str | Path) -> RunFolder:
    """Write a run's rows and report again, from its cases and what hospitals reported; return the run folder.

    Raises:
        RunError: if this is no run folder, or nothing was measured in it yet.
    """
    from medfed.evaluation.report import write_report

    folder = RunFolder(Path(run))
    folder.read_facts()
    if not any(path.exists() for path in (folder.cases, folder.reported, folder.rows)):
        raise RunError(
            f"{folder.path}: nothing was measured in this run yet; finish it with medfed train --resume"
        )
    write_report(folder.path)
    return folder


def headline(run: RunFolder | str | Path) -> str:
    """Return the result of a run in one line."""
    from medfed.evaluation import report as reports

    return reports.headline(run.path if isinstance(run, RunFolder) else Path(run))

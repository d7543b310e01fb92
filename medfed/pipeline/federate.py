"""The federation of a study whose hospitals all train in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from msgspec import UNSET, UnsetType

from medfed.data.datamodule import SiteDataModule
from medfed.errors import MedfedError
from medfed.evaluation.inference import SiteCases
from medfed.evaluation.rows import FEDERATED
from medfed.exchange import SiteSide
from medfed.federation._worker_process import Launch, start_process
from medfed.federation.hub import RoundCallback
from medfed.federation.simulation import SiteFunction, simulate
from medfed.federation.site import ChargedPatients, SiteRun, train_site
from medfed.federation.worker_processes import WorkerProcesses, Workers, shares_of
from medfed.pipeline._told_to_workers import cost_of, threads_of, told_of_site, told_of_study
from medfed.pipeline.component_gains import component_scalars, postprocess_facts, with_rules
from medfed.pipeline.factory import (
    chooses_components,
    data_scalars,
    egress_of,
    folders_of,
    hub_config_of,
    module_of,
    site_config_of,
)
from medfed.pipeline.small_scores import few_numbers, patient_counts, under_counts
from medfed.privacy.accounting.ledger import data_set
from medfed.registry import kind_of
from medfed.runs.checkpoints import save_checkpoint
from medfed.runs.facts import ModelChoice, PostprocessFacts
from medfed.runs.folder import RunFolder
from medfed.runs.progress import Progress
from medfed.runs.rounds import RoundReport, append_round
from medfed.study.canonical import study_digest
from medfed.study.last_rounds import last_rounds_sentence
from medfed.study.study import Study
from medfed.wire.audit_log import AuditLog
from medfed.wire.weights import Weights, weights_of


@dataclass(frozen=True)
class StudyRun:
    """A study that is being run: its folder, its hospitals' data, and where progress goes.

    unusable: the hospitals whose data cannot be used, each with its error; the study goes on without them.
    """

    study: Study
    folder: RunFolder
    hospitals: Mapping[str, SiteCases]
    progress: Progress
    audit: AuditLog
    resume: bool
    unusable: Mapping[str, MedfedError] = field(default_factory=dict)

    @property
    def data(self) -> dict[str, SiteDataModule]:
        """Each hospital's data, those held out included."""
        return {site: hospital.data for site, hospital in self.hospitals.items()}

    def hospital(self, site: str) -> SiteCases:
        """Return a hospital's data.

        Raises:
            MedfedError: the hospital's own, if its data cannot be used.
        """
        if site in self.unusable:
            raise self.unusable[site]
        return self.hospitals[site]


class Federated(NamedTuple):
    """The final model of a study's rounds, and which it is where the study chooses one.

    postprocess: which components are removed of what it predicts, where the study lets that be chosen.
    """

    weights: Weights
    choice: ModelChoice | UnsetType = UNSET
    postprocess: PostprocessFacts | UnsetType = UNSET

    def measured_as(self, study: Study) -> Study:
        """Return the study as this model is measured: with the components to remove that were chosen."""
        return with_rules(study, self.postprocess.rules) if self.postprocess else study


def federate(run: StudyRun, on_round: RoundCallback = lambda report: None) -> Federated:
    """Return the final model of the study's rounds, as a site has it, and save it as the federated model.

    `on_round` is called after each round; what it raises ends the rounds and is raised.
    """
    study, folder = run.study, run.folder
    # Weights that are not exchanged because they never change belong to a checkpoint nevertheless.
    frozen = weights_of(module_of(study)) if study.trained_only else {}

    for line in filter(None, (last_rounds_sentence(study), *_withheld(run))):
        run.progress.log(line)
    choices: list[ModelChoice] = []

    def round_finished(report: RoundReport) -> None:
        run.progress.round(report)
        append_round(folder.rounds, report)
        if report.choice is not None:
            choices.append(report.choice)
            run.progress.log(report.choice.sentence)
        on_round(report)

    def model_merged(current: Any) -> None:
        save_checkpoint(folder.checkpoint(FEDERATED), {**frozen, **current.weights}, current.merges)

    run.progress.start(
        f"{study.name}: {_method(study)} over {len(study.sites)} hospitals",
        {name: run.hospitals[name].data.examples for name in study.sites if name in run.hospitals},
        study.train.rounds,
        study.task.main_score,
    )
    try:
        with _site_functions(run) as functions:
            final = simulate(
                functions,
                weights_of(module_of(study), study.keep_local, trained_only=study.trained_only),
                # In one process no update is late, so the hub waits for every site.
                replace(hub_config_of(study), deadline_s=None, evaluating=()),
                folder=folder.hub,
                on_round=round_finished,
                on_model=model_merged,
                audit=run.audit,
            )
    finally:
        run.progress.stop()
    # `final` is the model as a site has it, even if the hub holds a part of it encrypted.
    weights = {**frozen, **final.weights}
    postprocess = postprocess_facts(study, final)
    save_checkpoint(
        folder.checkpoint(FEDERATED), weights, final.merges, postprocess.rules if postprocess else None
    )
    if postprocess:
        run.progress.log(postprocess.sentence)
    return Federated(weights, choices[-1] if choices else UNSET, postprocess)


def _withheld(run: StudyRun) -> Iterator[str]:
    """Yield which numbers each hospital keeps as they are of too few patients, as it would at a real hub."""
    least = run.study.evaluation.smallest_group
    for site, hospital in run.hospitals.items():
        few = few_numbers(run.study, patient_counts(run.study, hospital.data), least)
        shown = sorted(name for name in few if not name.startswith("val/personal/"))
        if shown and site in run.study.sites:
            names = ", ".join(shown)
            yield f"{site}: {names} not shown, of fewer than {least} patients (evaluation.smallest_group)"


@contextmanager
def _site_functions(run: StudyRun) -> Iterator[Mapping[str, SiteFunction]]:
    """Yield each site's training, in this process or in workers, which then end with the block."""
    study = run.study
    if study.simulation.engine == "threads":
        with _computing_with(threads_of(study)):
            yield {name: site_function(run, name) for name in study.sites}
        return
    with _launching(run) as launch:
        workers = WorkerProcesses(replace(_workers(run), launch=launch))
        try:
            yield {name: workers.function(name) for name in study.sites}
        finally:
            workers.close()


@contextmanager
def _launching(run: StudyRun) -> Iterator[Launch]:
    """Yield what starts a worker: a process of this machine, or an actor on a Ray cluster."""
    study, simulation = run.study, run.study.simulation
    if simulation.engine == "processes":
        yield start_process
        return
    from medfed.federation.ray_workers import RayPlan, ray_cluster

    folders = folders_of(study)
    plan = RayPlan(
        simulation.address,
        min(simulation.workers, len(study.sites)),
        threads_of(study) or 1,
        simulation.gpus,
        {f"site '{name}'": Path(folders[name]).resolve() for name in study.sites if name in run.hospitals},
        run.folder.path,
    )
    with ray_cluster(plan) as cluster:
        yield cluster.launch


@contextmanager
def _computing_with(threads: int | None) -> Iterator[None]:
    """Let torch compute with so many threads within the block; None leaves it as it is."""
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _workers(run: StudyRun) -> Workers:
    """Return what the worker processes of a study are."""
    study = run.study
    costs = {
        name: cost_of(study, name, run.hospitals[name].data) if name in run.hospitals else 0.0
        for name in study.sites
    }
    shares = shares_of(costs, study.simulation.workers)
    beside = {site: share for share in shares for site in share}

    def report(site: str, what: str, arguments: Sequence[Any]) -> None:
        if what == "training":
            step, steps = arguments
            run.progress.training_together(site, step, steps, beside[site])
        elif what == "line":
            run.progress.log(*arguments)

    return Workers(
        module="medfed.pipeline.site_worker",
        shares=shares,
        threads=threads_of(study),
        work=told_of_study(study, run.folder),
        work_of=lambda site: told_of_site(run.hospital(site)),
        report=report,
        audit=run.audit,
        resume=run.resume,
        study_digest=study_digest(study),
    )


def site_function(run: StudyRun, name: str) -> Callable[[SiteSide], None]:
    """Return the training of one hospital, to be called with its exchange."""
    study = run.study

    def work(exchange: SiteSide) -> None:
        hospital = run.hospital(name)
        data = hospital.data
        # What is simulated is what is deployed: the hub's files, page and choices have what a hub would have.
        egress = egress_of(study, smallest_group=study.evaluation.smallest_group)
        egress = under_counts(egress, study, patient_counts(study, data))
        least = study.evaluation.smallest_group
        gains = partial(component_scalars, study, hospital=hospital, least=least)
        train_site(
            name,
            module_of(study, name),
            data,
            exchange,
            replace(site_config_of(study, name), egress=egress),
            SiteRun(
                run.folder.site(name),
                run.resume,
                logger=True,
                examples=data.examples,
                examples_on_all=data.examples_on_all,
                patients=ChargedPatients(
                    study_digest(study),
                    data_set(data.patients("train"), hospital.secret),
                    data.items_by_patient() if study.privacy.trains_privately else (),
                ),
                audit=run.audit,
                callbacks=[_step_callback(run.progress, name, study.at(name).train.epochs)],
                log=run.progress.log,
                scalars=data_scalars(data),
                on_last_model=gains if chooses_components(study) else None,
            ),
        )

    return work


def _method(study: Study) -> str:
    """Return the names of rule and local method, such as 'fedavg with fedprox'."""
    rule, local = kind_of(study.rule), study.train.local
    return rule if local is None or kind_of(local) == rule else f"{rule} with {kind_of(local)}"


def _step_callback(progress: Progress, site: str, local_epochs: int) -> pl.Callback:
    class StepProgress(pl.Callback):
        """Shows how many steps of its round a site has done."""

        def on_train_batch_start(
            self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
        ) -> None:
            steps = int(trainer.num_training_batches)
            done = (trainer.current_epoch % local_epochs) * steps + batch_idx
            progress.training(site, done, steps * local_epochs)

    return StepProgress()

"""`medfed train --site`: one hospital's part in a study, from its site file to its own report.

The study comes from the hub and is held to the digest that the hospital agreed to and to its own
policy. Images, results of single patients, the site's secret and its own model stay; what leaves
is an `Update` (`round.py`).
"""

from __future__ import annotations

import getpass
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from medfed.deployment.approvals import agree, agreed, last_agreed
from medfed.deployment.background import ending_told, every
from medfed.deployment.ddp import RUN, Beside, First, is_beside
from medfed.deployment.policy import egress_under, in_words, refusals
from medfed.deployment.site_file import SiteFile, read_site, secret_of
from medfed.errors import ExchangeError, StudyError, WireError
from medfed.evaluation.aggregate import aggregate
from medfed.evaluation.inference import Hospital
from medfed.evaluation.patients import SummarySettings
from medfed.evaluation.probabilities import temperature_scaled
from medfed.evaluation.row_transport import scalars_of
from medfed.evaluation.rows import FEDERATED, UNTRAINED, local, read_cases
from medfed.federation.callback import FederatedCallback
from medfed.federation.config import SiteConfig
from medfed.federation.egress import Egress
from medfed.federation.round import SiteConnection, receive, send_update, withdraw
from medfed.federation.site import PatientLedger, SiteRun, train_alone, train_site
from medfed.files import utc_time, write_whole
from medfed.pipeline import privacy_facts
from medfed.pipeline.create_run import create_run, finish_run
from medfed.pipeline.factory import hospital_of, module_of, training_of
from medfed.pipeline.federate import PROGRESS_METRICS
from medfed.pipeline.measure_models import all_cases_of, measure_site, write_baselines
from medfed.pipeline.planning import check_planned
from medfed.pipeline.report import report_run
from medfed.pipeline.suppress_warnings import suppress_warnings
from medfed.privacy.accounting.ledger import Ledger, data_set
from medfed.runs.checkpoints import load_checkpoint, save_checkpoint
from medfed.runs.folder import RunFolder
from medfed.runs.progress import NoProgress, Progress, show_warnings
from medfed.runs.rounds import RoundReport, SiteResult, append_round, last_round, read_rounds
from medfed.runs.status import Status
from medfed.study.canonical import public_yaml, start_digest, study_digest
from medfed.study.reading import parse_study
from medfed.study.study import Study
from medfed.wire.audit_log import AuditLog
from medfed.wire.signing import Identity
from medfed.wire.update import GlobalModel, Update
from medfed.wire.weights import Weights, weights_of

if TYPE_CHECKING:
    import pytorch_lightning as pl

# How much of a study's digest names its run folder, and how much of it a person must type to agree.
NAMED_BY, TYPED = 8, 12

# How often the status file says when the hub was last reached.
CONTACT_S = 5.0

Ask = Callable[[str], bool]


def take_part(
    site_file: Path, *, accept: str = "", progress: Progress | None = None, ask: Ask | None = None
) -> RunFolder | None:
    """Take part in the study that the hub offers, to its end; return this hospital's run folder.

    It goes on by itself where an earlier process was stopped. `accept` is the digest of a study that was
    agreed to already, `ask` shows a study in words and returns whether someone agrees. Returns None in a
    process that only trains beside the first one (several GPUs).

    Raises:
        StudyError: if the site file cannot be used, or policy or people refuse the study.
        ExchangeError: if the hub cannot be believed, or closed the study.
        DataError: if the hospital's folder cannot be used.
    """
    site = read_site(site_file)
    secret = secret_of(Path(site.secret))
    if is_beside():
        _train_beside(site, secret)
        return None
    progress = progress or NoProgress()
    _hold_to_name(site)
    with show_warnings(progress), suppress_warnings():
        progress.log(f"site {site.name} asks the hub for the study")
        with _refusal_written(site):
            known, text = site.exchange.advertised_study()
            study = _study(text, known, site)
        folder = RunFolder(Path(site.out) / f"{study.name}-{known[:NAMED_BY]}")
        if folder.facts.exists() and folder.read_facts().is_finished:
            progress.log(f"this study is over here; if it was started anew, move {folder.path} away first")
            return folder
        status = Status(folder.status, study=study.name, digest=known, rounds=study.train.rounds)
        with ending_told(status):
            _take_part(site, secret, study, folder, status, progress, accept, ask)
    return folder


def _take_part(
    site: SiteFile,
    secret: bytes,
    study: Study,
    folder: RunFolder,
    status: Status,
    progress: Progress,
    accept: str,
    ask: Ask | None,
) -> None:
    known = study_digest(study)
    check_planned(study)
    hospital = hospital_of(study, site.name, site.data, secret, site.cache)
    progress.log(f"{site.name}: {hospital.data.index.describe()}")
    for note in hospital.data.notes:
        progress.log(f"{site.name}: {note}")
    audit = audit_of(site, folder)
    _hold_to_policy(site, study, hospital, folder, audit)
    _hold_to_consent(Path(site.out), study, known, accept, ask, audit)
    began = time.monotonic()
    facts = create_run(folder, study, {site.name: hospital.data})
    audit.write("began", study=known, sites=[site.name], resumed=folder.rounds.exists())
    status.update(state="waiting for the hub")
    side: Any = site.exchange.open_site(known, site.name, folder.site(site.name))
    side.on_refused = lambda reason: audit.write("hub refused", site=site.name, reason=reason)
    closing = _closing(site, study, hospital, folder, status, progress)
    try:
        with every(CONTACT_S, lambda: _tell_contact(side, status), "medfed-contact"):
            if site.name in study.held_out:
                egress = egress_under(study, site.policy)
                final = _evaluate(site.name, side, folder, audit, egress, closing)
            else:
                final = _train(site, study, hospital, side, folder, status, progress, audit, closing)
    finally:
        progress.stop()
        side.close()
    save_checkpoint(folder.checkpoint(FEDERATED), final.weights, final.round)
    if study.evaluation.local_models and site.name in study.sites:
        status.update(state="training its own model, to compare")
        _compare(site, study, hospital, folder, progress)
    report_run(folder.path)
    if site.name in study.sites:
        facts = privacy_facts.with_spent_budget(facts, study, {site.name: Path(site.out)})
    finish_run(folder, facts, began)
    status.update(state="finished")


# ------------------------------------------------------------------------------------- before anything trains


def _hold_to_name(site: SiteFile) -> None:
    """Say at once, and not only when there is a study, that the credentials are another party's."""
    credentials = getattr(site.exchange, "credentials", "")
    if credentials and (name := Identity(Path(credentials)).check().name) != site.name:
        raise StudyError(
            f"the site file says that this is '{site.name}', its exchange.credentials are those of '{name}'; name the folder "
            f"that `medfed enrol accept` filled for '{site.name}'"
        )


@contextmanager
def _refusal_written(site: SiteFile) -> Iterator[None]:
    """Write down, beside the run folders, that what was offered as a study is none that the
    hub can have meant.
    """
    try:
        yield
    except (WireError, ExchangeError) as error:
        audit = audit_of(site, RunFolder(Path(site.out)))
        audit.write("study refused", site=site.name, reason=str(error))
        raise


def _study(text: str, known: str, site: SiteFile) -> Study:
    study = parse_study(text, "the hub's study")
    if study_digest(study) != known:
        raise ExchangeError(
            f"the hub offers study {known[:TYPED]}, but the file it sends is study {study_digest(study)[:TYPED]}; do hub and site "
            f"run the same version of medfed?"
        )
    if site.name not in study.sites and site.name not in study.held_out:
        others = ", ".join(sorted({*study.sites, *study.held_out}))
        raise StudyError(
            f"study '{study.name}' has no site '{site.name}' (it has {others}); the coordinator adds it, or name in the site "
            f"file is another"
        )
    return study if study.start is None else msgspec.structs.replace(study, start=_start(study, site))


def _start(study: Study, site: SiteFile) -> str:
    """Return where this hospital keeps the checkpoint that the study begins with: it never
    comes from the hub.
    """
    assert study.start is not None
    wanted = start_digest(study.start)
    told = f"study '{study.name}' begins with the weights in a checkpoint of SHA-256 {wanted}"
    if site.start is None:
        raise StudyError(
            f"{told}; get that file from the coordinator and name it in the site file (start: FILE)"
        )
    try:
        found = start_digest(site.start)
    except OSError as error:
        raise StudyError(
            f"{told}; the file that start names in the site file cannot be read: {error.strerror}"
        ) from None
    if found != wanted:
        raise StudyError(
            f"{told}; the file that start names in the site file has SHA-256 {found}: it is another one, or was damaged on "
            f"the way"
        )
    return site.start


def audit_of(site: SiteFile, folder: RunFolder) -> AuditLog:
    """Return the run's audit log, signed with the site's key where it has one."""
    folder.path.mkdir(parents=True, exist_ok=True)
    credentials = getattr(site.exchange, "credentials", "")
    return AuditLog(folder.audit, Identity(Path(credentials)) if credentials else None)


def _hold_to_policy(
    site: SiteFile, study: Study, hospital: Hospital, folder: RunFolder, audit: AuditLog
) -> None:
    trains = site.name in study.sites
    cases = hospital.data.examples if trains else len(all_cases_of(hospital))
    reasons = refusals(site.policy, study.at(site.name), cases)
    if not reasons:
        return
    audit.write("declined", study=study_digest(study), site=site.name, reason="; ".join(reasons))
    # The hub hears that it need not wait, and nothing of why.
    side: Any = site.exchange.open_site(study_digest(study), site.name, folder.site(site.name))
    withdraw(SiteConnection(site.name, side, audit=audit), "this hospital's policy does not allow the study")
    side.close()
    told = "\n  ".join(reasons)
    raise StudyError(f"this hospital's policy does not allow study '{study.name}':\n  {told}")


def _hold_to_consent(
    out: Path, study: Study, known: str, accept: str, ask: Ask | None, audit: AuditLog
) -> None:
    if agreed(out, known):
        return
    words = in_words(study, known)
    if accept:
        if len(accept) < TYPED or not known.startswith(accept.lower()):
            raise StudyError(
                f"--accept {accept}: the hub offers study {known}; agree to that one, with at least {TYPED} of its digits, "
                f"or to none"
            )
    elif ask is None:
        page = out / f"{study.name}-{known[:NAMED_BY]}.txt"
        write_whole(page, words.encode())
        write_whole(page.with_suffix(".yaml"), public_yaml(study).encode())
        raise StudyError(
            f"nobody here has agreed to study '{study.name}' yet{_other_agreed(out, known)}. Read {page}, then run once\n"
            f"  medfed train --site ... --accept {known}"
        )
    elif not ask(words):
        raise StudyError(f"study '{study.name}' was not agreed to; nothing was trained and nothing was sent")
    agree(out, known, getpass.getuser())
    audit.write("agreed", study=known, by=getpass.getuser())


def _other_agreed(out: Path, known: str) -> str:
    """Say that what was agreed to last is another study: one changed number makes another."""
    last = last_agreed(out)
    return "" if last is None else f" (it is {known[:TYPED]}; what was agreed to last is {last[:TYPED]})"


# ---------------------------------------------------------------------------------------------- in the study


def _training(site: SiteFile, study: Study, hospital: Hospital) -> SiteConfig:
    egress = egress_under(study, site.policy, len(hospital.data.cases("val")))
    return replace(
        training_of(study, site.name), accelerator=site.accelerator, devices=site.devices, egress=egress
    )


def _train(
    site: SiteFile,
    study: Study,
    hospital: Hospital,
    side: Any,
    folder: RunFolder,
    status: Status,
    progress: Progress,
    audit: AuditLog,
    closing: Callable[[GlobalModel], Mapping[str, float]],
) -> GlobalModel:
    module, data = module_of(study, site.name), hospital.data
    progress.start(
        f"{study.name}: site {site.name}",
        {site.name: data.examples},
        study.train.rounds,
        PROGRESS_METRICS[study.task.needs],
    )
    first = First(side, folder.path)
    train_site(
        site.name,
        module,
        data,
        first,
        _training(site, study, hospital),
        SiteRun(
            folder.site(site.name),
            resume=True,
            logger=True,
            examples=data.examples,
            patients=PatientLedger(
                study_digest(study),
                data_set(data.patients("train"), hospital.secret),
                data.items_by_patient() if study.privacy.trains_privately else (),
                # One ledger for all studies of this hospital, beside their run folders.
                Ledger(Path(site.out), site.policy.epsilon_ceiling, site.policy.delta),
            ),
            audit=audit,
            callbacks=[_shown(site.name, study, folder, status, progress)],
            log=progress.log,
            on_final_model=closing,
        ),
    )
    if first.received is None or not first.received.final:
        raise ExchangeError(f"site '{site.name}': training ended before the study did")
    if last_round(read_rounds(folder.rounds)) < first.received.round:
        _write_evaluated(folder, site.name, first.received)  # the study ended while this site was down
    return first.received


def _evaluate(
    name: str,
    side: Any,
    folder: RunFolder,
    audit: AuditLog,
    egress: Egress,
    closing: Callable[[GlobalModel], Mapping[str, float]],
) -> GlobalModel:
    """Wait for the final model, and report how it does here: a site that trains nothing."""
    channel = SiteConnection(name, side, egress=egress, audit=audit)
    received = receive(channel, 0)
    while not received.final:
        received = receive(channel, received.round + 1)
    _write_evaluated(folder, name, received)
    report = Update(name, received.round + 1, {}, 0, dict(closing(received)))
    send_update(channel, report, received.weights)
    return received


def _write_evaluated(folder: RunFolder, name: str, received: GlobalModel) -> None:
    """Write down that this site had no part in the last round, and whose model it measures."""
    append_round(folder.rounds, RoundReport(received.round, (SiteResult(name, "evaluated"),), 0.0, 0))


def _closing(
    site: SiteFile,
    study: Study,
    hospital: Hospital,
    folder: RunFolder,
    status: Status,
    progress: Progress,
) -> Callable[[GlobalModel], Mapping[str, float]]:
    """Return what measures the final model on this hospital's test cases and names the
    results that may leave.
    """

    def measured(received: GlobalModel) -> Mapping[str, float]:
        status.update(state="measuring the final model", round=received.round)
        progress.log("measuring the final model on this hospital's test cases")
        if study.task.needs == "survival":
            progress.log(
                "Brier scores rest on this hospital's own baseline hazard, and stay here; the c-index leaves"
            )
        models: dict[str, Weights] = {
            UNTRAINED: weights_of(module_of(study)),
            FEDERATED: {**weights_of(module_of(study)), **received.weights},
        }
        _measure(study, folder, hospital, models)
        if site.policy.rows == "none" or not folder.cases.exists():
            return {}
        classes = getattr(study.task, "classes", ())
        cases = read_cases(folder.cases)
        if study.evaluation.temperature:
            cases, _ = temperature_scaled(cases, classes)
        settings = SummarySettings(
            round=received.round,
            seed=study.seed,
            classes=classes,
            held_out=tuple(study.held_out),
            min_patients=max(site.policy.smallest_group, study.evaluation.smallest_group),
            draws=study.evaluation.draws,
        )
        rows = aggregate(cases, settings)
        return scalars_of(row for row in rows if row.site == site.name)

    return measured


def _compare(site: SiteFile, study: Study, hospital: Hospital, folder: RunFolder, progress: Progress) -> None:
    """Train the hospital's own model on its cases alone and measure it too; neither it nor its results leave."""
    path = folder.checkpoint(local(site.name))
    module = module_of(study, site.name)
    if path.exists():
        own = load_checkpoint(path)
    else:
        progress.log(f"{site.name}: its own model, for comparison; it stays here")
        alone = replace(_training(site, study, hospital), devices=1)
        train_alone(site.name, module, hospital.data, alone, folder=folder.site(site.name))
        own = weights_of(module)
        save_checkpoint(path, own, study.train.rounds)
    federated = load_checkpoint(folder.checkpoint(FEDERATED))
    whole = weights_of(module_of(study))
    _measure(
        study,
        folder,
        hospital,
        {UNTRAINED: whole, FEDERATED: {**whole, **federated}, local(site.name): own},
    )


def _measure(study: Study, folder: RunFolder, hospital: Hospital, models: Mapping[str, Weights]) -> None:
    """Measure models on this hospital's cases; a survival model's baseline hazard is that
    of its own patients.
    """
    folder.cases.unlink(missing_ok=True)
    if study.task.needs == "survival":
        write_baselines(study, folder, [hospital], models)
    measure_site(study, folder, hospital, models)


# ---------------------------------------------------------------------------------------------- what is shown


def _shown(name: str, study: Study, folder: RunFolder, status: Status, progress: Progress) -> pl.Callback:
    import pytorch_lightning as pl

    class Shown(pl.Callback):
        """Tells display, status file and rounds.jsonl how far this site is."""

        def __init__(self) -> None:
            self._round, self._began = 0, time.monotonic()

        def on_train_batch_start(
            self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
        ) -> None:
            steps = int(trainer.num_training_batches)
            epochs = study.at(name).train.epochs
            done = (trainer.current_epoch % epochs) * steps + batch_idx
            progress.training(name, done, steps * epochs)
            status.update(state="training", step=done, steps=steps * epochs)

        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            federated = next(one for one in trainer.callbacks if isinstance(one, FederatedCallback))  # type: ignore[attr-defined]
            if federated.round <= self._round or not trainer.is_global_zero:
                return
            seconds, self._began = time.monotonic() - self._began, time.monotonic()
            self._round = federated.round
            answer = SiteResult(name, "merged", examples=0, seconds=seconds, scalars=federated.scores)
            found = RoundReport(federated.round, (answer,), seconds, 0)
            progress.round(found)
            append_round(folder.rounds, found)
            status.update(round=federated.round, scores=dict(federated.scores))

    return Shown()


def _tell_contact(side: Any, status: Status) -> None:
    """Keep the status file's word on when the hub was last reached."""
    if side.last_contact_s is not None:
        status.update(last_contact=utc_time(side.last_contact_s))


# ---------------------------------------------------------------------------------------------- several GPUs


def _train_beside(site: SiteFile, secret: bytes) -> None:
    folder = RunFolder(Path(os.environ[RUN]))
    study = parse_study(folder.study.read_text(encoding="utf-8"), "study.yaml")
    hospital = hospital_of(study, site.name, site.data, secret, site.cache)
    beside: Any = Beside()  # it posts no letters: only `send_update` does, which is the first process's
    with suppress_warnings():
        train_site(
            site.name,
            module_of(study, site.name),
            hospital.data,
            beside,
            _training(site, study, hospital),
            SiteRun(folder.site(site.name), resume=True, examples=hospital.data.examples),
        )

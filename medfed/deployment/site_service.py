"""`medfed train --site`: one hospital's part in a study, from its site file to its own report.

The study comes from the hub; it must have the digest that the hospital approved, and satisfy its policy
(`admission.py`). Images, results of single patients, the site's secret and its own model stay; only an
`Update` leaves (`federation/round.py`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytorch_lightning as pl
from msgspec import UNSET, UnsetType

from medfed.deployment import admission
from medfed.deployment.admission import FOLDER_DIGITS, Ask
from medfed.deployment.background import run_periodically
from medfed.deployment.data_change import record_data
from medfed.deployment.ddp import RUN_FOLDER, Rank0Exchange, WorkerExchange, is_worker, read_left_out
from medfed.deployment.description import describe_session
from medfed.deployment.earlier_results import note_similar_results
from medfed.deployment.own_code import parse_run_study
from medfed.deployment.policy import egress_under
from medfed.deployment.site_evaluation import measure_final_model, site_config_under_policy
from medfed.deployment.site_file import SiteFile, as_read_here, checkpoint_s, read_site, secret_of
from medfed.deployment.site_finish import finish, finish_later, mark_answered, run_without_hub
from medfed.deployment.site_session import SiteSession, check_still_approved, ledger_of, open_audit_log
from medfed.deployment.study_choice import choose_study
from medfed.errors import DataError, ExchangeError
from medfed.evaluation.inference import SiteCases
from medfed.evaluation.rows import FEDERATED
from medfed.exchange import DropOut
from medfed.federation.callback import FederatedCallback
from medfed.federation.model_selection import mean_of_rounds
from medfed.federation.round import SiteConnection, receive, send_update
from medfed.federation.site import ChargedPatients, SiteRun, log_ledger_refusals, train_site
from medfed.files import describe_exposed, private_files, utc_now, utc_time
from medfed.pipeline.component_gains import component_scalars, postprocess_facts, with_rules
from medfed.pipeline.create_run import create_run, finish_run, write_study
from medfed.pipeline.describing import needs_description, only_describes, protection_of
from medfed.pipeline.factory import (
    chooses_components,
    data_scalars,
    hospital_of,
    module_of,
    require_training_cases,
    screen_hospital,
)
from medfed.pipeline.planning import needs_plan
from medfed.pipeline.seen_cases import record_trained
from medfed.pipeline.suppress_warnings import suppress_warnings
from medfed.privacy.accounting.ledger import data_set
from medfed.runs import json_log
from medfed.runs.checkpoints import save_checkpoint
from medfed.runs.facts import ModelChoice
from medfed.runs.folder import RunFolder
from medfed.runs.progress import Progress, show_warnings
from medfed.runs.recorded_progress import RecordedProgress, record_warnings
from medfed.runs.rounds import RoundReport, SiteResult, append_round, last_round, read_rounds
from medfed.runs.status import FINISHED, Status, keep_status
from medfed.runs.trackers import TrackedRun, Tracking, logger_of
from medfed.study.averaging import averages
from medfed.study.last_rounds import last_rounds_sentence
from medfed.study.study import Study
from medfed.wire.update import GlobalModel, Update

# How often the status file says when the hub was last reached.
CONTACT_S = 5.0


@private_files()
def take_part(
    site_file: Path, *, accept: str = "", progress: Progress | None = None, ask: Ask | None = None
) -> RunFolder | None:
    """Take part in the study that the hub offers, to its end; return this hospital's run folder.

    An earlier run that was stopped is resumed. `accept` is the digest of a study that was approved already;
    `ask` shows a study in words and returns whether someone approves it. Returns None in a worker process,
    which only trains (several GPUs).

    Raises:
        StudyError: if the site file cannot be used.
        DeclinedError: if the hospital's policy or people refuse the study.
        ExchangeError: if the hub cannot be believed.
        EndedError: if the hub closed the study, or shows no sign of life for the site's `give_up_hours`.
        DataError: if the hospital's folder cannot be used.
    """
    site = read_site(site_file)
    secret = secret_of(Path(site.secret))
    if is_worker():
        _train_worker(site, secret)
        return None
    progress = progress or Progress()
    json_log.set_site(site.name)
    admission.check_credentials(site)
    with show_warnings(progress), suppress_warnings():
        if exposed := describe_exposed(Path(site.out)):
            progress.log(f"site {site.name}: {exposed}")
        if (own := run_without_hub(site, accept)) is not None:
            return _without_hub(site, secret, own, progress)
        progress.log(f"site {site.name} asks the hub for the study")
        with admission.log_invalid_offer(site):
            known, text, _ = choose_study(site, accept, progress.log)
            study = admission.parse_offer(text, known, site)
        folder = RunFolder(Path(site.out) / f"{study.name}-{known[:FOLDER_DIGITS]}")
        if folder.facts.exists() and folder.read_facts().is_finished:
            return _tell_ended(folder, progress)
        status = Status(folder.status, role="site", study=study.name, digest=known, rounds=study.train.rounds)
        progress = RecordedProgress(progress, status, read_rounds(folder.rounds))
        progress.opened(folder.path)
        with keep_status(status), record_warnings(status):
            if needs_description(study):
                protection_of(study)
            hospital = _open_hospital(study, site, secret)
            audit = open_audit_log(site, folder)
            _take_part(SiteSession(site, study, hospital, folder, status, progress, audit), accept, ask)
    return folder


def _tell_ended(folder: RunFolder, progress: Progress) -> RunFolder:
    progress.log(f"this study has ended here; to join a new run of it, move {folder.path} away first")
    return folder


def _without_hub(site: SiteFile, secret: bytes, folder: RunFolder, progress: Progress) -> RunFolder:
    """Finish a run for which no hub is needed, if it isn't finished."""
    facts = folder.read_facts()
    if facts.is_finished:
        return _tell_ended(folder, progress)
    study = parse_run_study(folder.study.read_text(encoding="utf-8"), "study.yaml", site)
    rounds = study.train.rounds
    status = Status(folder.status, role="site", study=study.name, digest=facts.digest, rounds=rounds)
    progress = RecordedProgress(progress, status, read_rounds(folder.rounds))
    progress.opened(folder.path)
    with keep_status(status), record_warnings(status):
        hospital, audit = _open_hospital(study, site, secret), open_audit_log(site, folder)
        session = SiteSession(site, study, hospital, folder, status, progress, audit, facts.digest)
        _screen(session)
        finish_later(session)
    return folder


def _take_part(session: SiteSession, accept: str, ask: Ask | None) -> None:
    name, study, folder, data = session.name, session.study, session.folder, session.hospital.data
    for line in (data.index.describe(), *data.notes):
        session.progress.log(f"{name}: {line}")
    admission.enforce_policy(session)
    admission.require_approval(session, accept, ask)
    _screen(session)
    _note_changed_data(session)
    note_similar_results(session)
    began = time.monotonic()
    facts = create_run(folder, study, {name: data}, own=name)
    if session.trains:
        record_trained(folder, {name: session.hospital})
    start = {"start": facts.start.sha256} if facts.start else {}
    session.audit.write("began", study=session.digest, sites=[name], resumed=folder.rounds.exists(), **start)
    for line in facts.start.lines if facts.start else ():
        session.progress.log(line)
    session = _planned(session)
    if only_describes(session.study):
        finish_run(folder, facts, began)
        session.status.update(state=FINISHED)
        return
    session.status.update(state="waiting for the hub")
    with _connected(session) as side:
        final = _train(session, side) if session.trains else _evaluate(session, side)
        postprocess = postprocess_facts(session.study, final)
        facts = msgspec.structs.replace(facts, chosen=_choice(session.study, final), postprocess=postprocess)
        folder.write_facts(facts)
        session = _as_chosen(session, final)
        mark_answered(folder, name)
    finish(session, facts, began)


def _planned(session: SiteSession) -> SiteSession:
    """Return the session as the study trains: planned, if it is, from all hospitals' statistics."""
    planned = describe_session(session)
    if not needs_plan(session.study) or only_describes(session.study):
        return planned
    # How cases are prepared follows from the plan, so that they are opened and read anew.
    hospital = _open_hospital(planned.study, session.site, session.hospital.secret)
    planned = replace(planned, hospital=hospital)
    _screen(planned)
    return planned


def _screen(session: SiteSession) -> None:
    """Read every case once, after someone agreed; leave out what cannot be used, and check the policy again.

    Raises:
        DataError: if more cases cannot be used than the policy bears; the hub then goes on without this site.
    """
    site, data = session.site, session.hospital.data
    session.status.update(state="reading every case once")
    told = len(data.notes)
    try:
        prepare = not needs_plan(session.study)  # until then nobody knows how cases will be prepared
        screen_hospital(session.hospital, site.policy.unreadable, site.cache, prepare=prepare)
        if session.trains:
            require_training_cases(session.hospital)
    except DataError:
        admission.decline(session, DropOut.DATA)
        raise
    for line in data.notes[told:]:
        session.progress.log(f"{session.name}: {line}")
    admission.enforce_policy(session)


def _note_changed_data(session: SiteSession) -> None:
    """Tell, in the log, the audit log and the report, if the data are not those of before a restart."""
    data, name = session.hospital.data, session.name
    state, sentence = record_data(session.folder.site(name), session.hospital, utc_now())
    if sentence:
        session.audit.write("data changed", site=name, reason=sentence)
        session.progress.log(
            f"{name}: {sentence}. It goes on with those there are now; if that is not meant, stop it, put "
            "the former data back and start it again"
        )
    data.warnings += state.changes


@contextmanager
def _connected(session: SiteSession) -> Iterator[Any]:
    """Yield this site's side of the exchange, while the status file says when the hub was last reached."""
    side = session.connect()
    side.on_refused = lambda reason: session.audit.write("hub refused", site=session.name, reason=reason)
    side.on_broker_refused = lambda reason: session.audit.write(
        "broker refused", site=session.name, reason=reason
    )
    try:
        look = partial(_record_contact, side, session.status)
        with run_periodically(CONTACT_S, look, "medfed-contact"):
            yield side
    finally:
        session.progress.stop()
        side.close()


def _record_contact(side: Any, status: Status) -> None:
    if side.last_contact_s is not None:
        status.update(last_contact=utc_time(side.last_contact_s))


def _train(session: SiteSession, side: Any) -> GlobalModel:
    """Train through the whole study and return the final model."""
    site, study, name, data = session.site, session.study, session.name, session.hospital.data
    session.progress.start(
        f"{study.name}: site {name}",
        {name: data.examples},
        study.train.rounds,
        study.task.main_score,
    )
    if said := last_rounds_sentence(study):
        session.progress.log(said)
    own_folder = session.folder.site(name)
    exchange: Any = Rank0Exchange(side, session.folder.path, own_folder, data.left_out_tokens)
    with log_ledger_refusals(session.audit, name):
        ledger = ledger_of(site, session.hospital.secret)
    tracked = Tracking(site.trackers, TrackedRun(session.folder.path, study.name, name))
    least = max(study.evaluation.smallest_group, site.policy.smallest_group)
    gains = partial(component_scalars, study, hospital=session.hospital, least=least)
    run = SiteRun(
        own_folder,
        resume=True,
        logger=True,
        loggers=[logger_of(tracked)] if site.trackers else (),
        examples=data.examples,
        examples_on_all=data.examples_on_all,
        patients=ChargedPatients(
            session.digest,
            data_set(data.patients("train"), session.hospital.secret),
            data.items_by_patient() if study.privacy.trains_privately else (),
            ledger,
        ),
        audit=session.audit,
        callbacks=[SiteProgress(session)],
        log=session.progress.log,
        on_final_model=partial(_keep_and_measure, session),
        on_last_model=gains if chooses_components(study) else None,
        scalars=data_scalars(data),
        checkpoint_s=checkpoint_s(site),
    )
    with closing(tracked):
        train_site(
            name,
            module_of(study, name),
            data,
            exchange,
            site_config_under_policy(site, study, session.hospital),
            run,
        )
    received: GlobalModel | None = exchange.received
    if received is None or not received.final:
        raise ExchangeError(f"site '{name}': training ended before the study did")
    if last_round(read_rounds(session.folder.rounds)) < merged_rounds(received):
        _record_evaluated(session, received)  # the study ended while this site was down
    return received


def _evaluate(session: SiteSession, side: Any) -> GlobalModel:
    """Wait for the final model and report its results, for a site that trains nothing."""
    egress = egress_under(session.study, session.site.policy)
    connection = SiteConnection(session.name, side, egress=egress, audit=session.audit)
    received = receive(connection, 0)
    while not received.final:
        received = receive(connection, received.round + 1)
    _record_evaluated(session, received)
    check_still_approved(session, session.digest)
    scalars = {**_keep_and_measure(session, received), **data_scalars(session.hospital.data)}
    send_update(connection, Update(session.name, received.round + 1, {}, 0, scalars), received.weights)
    return received


def _keep_and_measure(session: SiteSession, received: GlobalModel) -> Mapping[str, float]:
    """Write the final model, before anything of it is sent, and return the results that may leave."""
    postprocess = postprocess_facts(session.study, received)
    rules = postprocess.rules if postprocess else None
    save_checkpoint(session.folder.checkpoint(FEDERATED), received.weights, received.merges, rules)
    return measure_final_model(_as_chosen(session, received), received)


def _as_chosen(session: SiteSession, received: GlobalModel) -> SiteSession:
    """Return the session of the study with the components to remove that came with the final model."""
    postprocess = postprocess_facts(session.study, received)
    if not postprocess:
        return session
    study = with_rules(session.study, postprocess.rules)
    write_study(session.folder, study)
    return replace(session, study=study)


def _record_evaluated(session: SiteSession, received: GlobalModel) -> None:
    """Record that this site took no part in the last round, and which round's model it measures."""
    result = SiteResult(session.name, "evaluated")
    append_round(session.folder.rounds, RoundReport(merged_rounds(received), (result,), 0.0, 0))


def merged_rounds(received: GlobalModel) -> int:
    """Return how many rounds were merged before the final model; a chosen one is published after the last."""
    return received.round if received.chosen is None else received.round - 1


def _choice(study: Study, received: GlobalModel) -> ModelChoice | UnsetType:
    """Return which round's model the hub says the final one is, where the study lets it choose."""
    train = study.train
    if averages(train.average):
        return mean_of_rounds(train.average, train.rounds)
    if train.keep == "last" and train.patience is None:
        return UNSET
    return ModelChoice(
        round=received.merges,
        merged=merged_rounds(received),
        rounds=train.rounds,
        keep=train.keep,
        score=study.task.main_score,
        best=received.chosen or 0,
        patience=train.patience,
    )


class SiteProgress(pl.Callback):
    """Writes a site's progress to the display, the status file and rounds.jsonl."""

    def __init__(self, session: SiteSession) -> None:
        self._session, self._digest = session, session.digest
        self._epochs = session.study.at(session.name).train.epochs
        self._round, self._began = 0, time.monotonic()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.is_last_batch:  # before anything is sent
            check_still_approved(self._session, self._digest)
        steps = int(trainer.num_training_batches)
        done = (trainer.current_epoch % self._epochs) * steps + batch_idx
        self._session.status.update(state="training")
        self._session.progress.training(self._session.name, done, steps * self._epochs)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        federated = next(one for one in trainer.callbacks if isinstance(one, FederatedCallback))  # type: ignore[attr-defined]
        if federated.round <= self._round or not trainer.is_global_zero:
            return
        seconds, self._began = time.monotonic() - self._began, time.monotonic()
        self._round = federated.round
        result = SiteResult(
            self._session.name, "merged", examples=0, seconds=seconds, scalars=federated.scores
        )
        report = RoundReport(federated.round, (result,), seconds, 0)
        self._session.progress.round(report)
        append_round(self._session.folder.rounds, report)
        self._session.status.update(scores=dict(federated.scores))


def _open_hospital(study: Study, site: SiteFile, secret: bytes) -> SiteCases:
    """Return the hospital's data as its own site file says to read them."""
    return hospital_of(
        as_read_here(study, site),
        site.name,
        site.data,
        secret,
        site.cache,
        site.own_data,
        site.classes,
        site.given_layout,
    )


# ---------------------------------------------------------------------------------------------- several GPUs


def _train_worker(site: SiteFile, secret: bytes) -> None:
    """Train in a process that Lightning started beside rank 0, which alone sends and receives."""
    folder = RunFolder(Path(os.environ[RUN_FOLDER]))
    study = parse_run_study(folder.study.read_text(encoding="utf-8"), "study.yaml", site)
    hospital = _open_hospital(study, site, secret)
    own_folder = folder.site(site.name)
    hospital.data.leave_out_tokens(read_left_out(own_folder))
    # All processes of a site write a checkpoint together.
    run = SiteRun(own_folder, resume=True, examples=hospital.data.examples, checkpoint_s=checkpoint_s(site))
    exchange: Any = WorkerExchange()  # it sends no messages: only `send_update` on rank 0 does
    config = site_config_under_policy(site, study, hospital)
    with suppress_warnings():
        train_site(site.name, module_of(study, site.name), hospital.data, exchange, config, run)

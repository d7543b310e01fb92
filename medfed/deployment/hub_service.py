"""`medfed hub`: the coordinator of a study across hospitals, from its file to its report.

What the hub decides is `hub.py`'s, what is said and believed on the way `exchange/`'s. Here a study file, a
folder of enrolment and a run folder become a running hub, and what people and services see of it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from medfed.deployment.background import ending_told, every
from medfed.deployment.enrolment.broker import Broker
from medfed.deployment.enrolment.enrol import enrolled
from medfed.deployment.site_file import located
from medfed.errors import StudyError
from medfed.evaluation.report import write_report
from medfed.evaluation.row_transport import rows_of, without_rows
from medfed.evaluation.rows import FEDERATED, Row
from medfed.evaluation.rows import write as write_rows
from medfed.exchange import Exchange
from medfed.exchange.memory import Memory
from medfed.exchange.nats import Nats
from medfed.federation.hub import run_hub
from medfed.pipeline.create_run import choose_folder, create_run, finish_run
from medfed.pipeline.experiments.unlearning import prepare_retraining, retraining
from medfed.pipeline.factory import hub_config_of, module_of
from medfed.pipeline.federate import PROGRESS_METRICS
from medfed.pipeline.planning import check_planned
from medfed.registry import kind_of
from medfed.runs.checkpoints import save_checkpoint
from medfed.runs.folder import RunFolder
from medfed.runs.progress import NoProgress, Progress, show_warnings
from medfed.runs.rounds import RoundReport, append_round
from medfed.runs.status import Status
from medfed.study.canonical import public_yaml, study_digest
from medfed.study.reading import read_study
from medfed.study.study import Study
from medfed.wire.audit_log import AuditLog
from medfed.wire.credentials import read_federation
from medfed.wire.signing import HUB, Identity
from medfed.wire.weights import weights_of

# How often it is looked who is connected and awaited, for the display and the status file.
LOOK_S = 1.0


def lead(
    study_file: Path,
    *,
    enrolment: Path | None = None,
    broker: bool = False,
    out: Path | None = None,
    overrides: Sequence[str] = (),
    resume: bool = False,
    without: str | None = None,
    former: Path | None = None,
    progress: Progress | None = None,
) -> RunFolder:
    """Lead a study across hospitals to its end and write its report; return the run folder.

    `enrolment` is the coordinator's folder that `medfed enrol init` made; with `broker` the broker of that
    folder runs as a child of this process. With `resume` a run that is there goes on, and one that is not
    there begins. `without` names a hospital that withdrew from a `former` run of the study (the newest one if
    None): training goes on without it from the last model that it had no part in.

    Raises:
        StudyError: if the study file, or how it says that parties meet, cannot be used.
        QuorumError: if too few sites answered a round; the sites wait, and the run resumes.
        RunError: if the run folder is taken, or its disk is full.
    """
    progress = progress or NoProgress()
    study = read_study(study_file, overrides)
    check_planned(study)
    exchange = exchange_of(study, study_file, enrolment, broker)
    going_on = resume and _begun(study, out)
    again = None
    if without is not None:
        again = retraining(study, without, former, going_on)
        study = again.study
    known = study_digest(study)
    unfinished = None if out is not None or going_on else _unfinished(study)
    folder = choose_folder(study, out, going_on)
    began = time.monotonic()
    credentials = getattr(exchange, "credentials", "")
    identity = Identity(Path(credentials)) if credentials else None
    if again is not None:
        prepare_retraining(again, folder, progress, identity)
    facts = create_run(folder, study, {})
    status = Status(folder.status, study=study.name, digest=known, rounds=study.train.rounds)
    audit = AuditLog(folder.audit, identity)
    audit.write("began", study=known, sites=sorted(study.sites), resumed=resume)
    with show_warnings(progress), ending_told(status), _broker(enrolment if broker else None):
        _say_who_is_missing(study, enrolment, progress)
        if not getattr(exchange, "credentials", ""):
            progress.log(
                "nothing is signed: whoever can write to the exchange can speak as any site (--enrolment)"
            )
        progress.log(f"study {study.name}, digest {known}")
        if unfinished is not None:
            progress.log(
                f"{unfinished} holds a run of this study that was not finished; this is a new one, which sites that took part "
                f"in that refuse. To go on with it, stop this and give --resume --out {unfinished}"
            )
        if study.start is not None:
            progress.log(
                "it begins with given weights: each hospital needs that checkpoint and names it in its site file (start)"
            )
        if study.task.needs == "survival":
            progress.log(
                "hospitals report the c-index; a Brier score rests on a baseline hazard over one hospital's patients and "
                "stays there"
            )
        rows = _conducted(study, exchange, folder, audit, progress, status)
    write_rows(folder.reported, rows)
    write_report(folder.path)
    finish_run(folder, facts, began)
    status.update(state="finished")
    return folder


def exchange_of(study: Study, study_file: Path, enrolment: Path | None, broker: bool) -> Exchange:
    """Return the hub's way to its sites: what the study file says, filled in from the enrolment.

    Raises:
        StudyError: if these do not say enough, or contradict each other.
    """
    found: Any = located(study.exchange, study_file.resolve().parent)
    name = study_file.name
    if isinstance(found, Memory):
        if enrolment is None:
            raise StudyError(
                f"{name}: exchange.kind: 'memory' joins sites of one process; give --enrolment FOLDER for a broker, or say "
                f"exchange: {{kind: folder, url: ...}} for shared storage"
            )
        found = Nats()
    if enrolment is not None and not getattr(found, "credentials", ""):
        read_federation(enrolment)
        found = msgspec.structs.replace(found, credentials=str(enrolment.resolve() / HUB))
    if broker:
        if enrolment is None or not isinstance(found, Nats):
            raise StudyError(
                f"{name}: --broker starts the broker of an enrolment: give --enrolment FOLDER, and no exchange.kind but 'nats'"
            )
        federation = read_federation(enrolment)
        own = f"tls://{federation.own_host}:{federation.port}"
        found = msgspec.structs.replace(
            found, urls=list(dict.fromkeys([own, *(found.urls or federation.urls)]))
        )
    return found


def _begun(study: Study, out: Path | None) -> bool:
    if out is not None:
        return RunFolder(out).facts.exists()
    return any(RunFolder(path).facts.exists() for path in Path("runs").glob(f"{study.name}*"))


def _unfinished(study: Study) -> Path | None:
    """Return the newest run folder of this very study that was begun and not finished, if that
    is its last run.
    """
    folders = [RunFolder(path) for path in Path("runs").glob(f"{study.name}*")]
    runs = [folder for folder in folders if folder.facts.exists()]
    for folder in sorted(runs, key=lambda folder: folder.facts.stat().st_mtime, reverse=True):
        facts = folder.read_facts()
        if facts.digest == study_digest(study):
            return None if facts.is_finished else folder.path
    return None


def _conducted(
    study: Study, exchange: Exchange, folder: RunFolder, audit: AuditLog, progress: Progress, status: Status
) -> list[Row]:
    """Return what the sites report of the final model, after every round."""
    side: Any = exchange.open_hub(study_digest(study), folder.hub)
    config = hub_config_of(study)
    rows: list[Row] = []

    def heard(found: RoundReport) -> None:
        rows[:] = [
            row for answer in found.results for row in rows_of(answer.scalars, config.rounds, answer.site)
        ]
        plain = (replace(answer, scalars=without_rows(answer.scalars)) for answer in found.results)
        found = replace(found, results=tuple(plain))
        progress.round(found)
        append_round(folder.rounds, found)
        status.update(state="leading", round=found.round, last_round_s=round(found.seconds, 1))
        for answer in found.results:
            if answer.status == "refused":
                progress.log(f"round {found.round}: {answer.site} refused: {answer.reason}")

    try:
        side.monitored_sites = (*config.sites, *config.evaluating)
        side.advertise_study(public_yaml(study))
        progress.start(
            f"{study.name}: {kind_of(study.rule)} over {len(config.sites)} hospitals",
            dict.fromkeys(side.monitored_sites, 0),
            config.rounds,
            PROGRESS_METRICS[study.task.needs],
        )
        with every(LOOK_S, lambda: _look(side, progress, status), "medfed-look"):
            final = run_hub(
                config,
                side,
                weights_of(module_of(study), study.keep_local, trained_only=study.trained_only),
                folder=folder.hub,
                on_round=heard,
                audit=audit,
            )
        frozen = weights_of(module_of(study)) if study.trained_only else {}
        save_checkpoint(folder.checkpoint(FEDERATED), {**frozen, **final.weights}, final.round)
    except BaseException:
        # Not closed: the sites wait for a hub that was stopped and is started again.
        side.disconnect()
        raise
    finally:
        progress.stop()
    side.close()
    return rows


def _look(side: Any, progress: Progress, status: Status) -> None:
    """Show who is connected and who is awaited."""
    left = None if side.deadline is None else side.deadline - time.monotonic()
    here, awaited = side.online_sites(), side.pending_sites
    progress.waiting(here, awaited, left)
    status.update(
        state="leading",
        connected=sorted(here),
        awaited=sorted(awaited),
        round_ends_in_s=None if left is None else round(left, 1),
    )


@contextmanager
def _broker(enrolment: Path | None) -> Iterator[None]:
    if enrolment is None:
        yield
        return
    running = Broker(enrolment)
    try:
        yield
    finally:
        running.stop()


def _say_who_is_missing(study: Study, enrolment: Path | None, progress: Progress) -> None:
    """Say which sites of the study hold no certificate, and whose ends soon; they can
    still be enrolled meanwhile.
    """
    if enrolment is None:
        return
    good = {one.site: one for one in enrolled(enrolment) if one.status in ("valid", "expires soon")}
    for site in sorted({*study.sites, *study.held_out}):
        if site not in good:
            progress.log(
                f"{site}: in the study, but without a valid certificate; `medfed enrol sign` answers its request"
            )
        elif good[site].status == "expires soon":
            progress.log(
                f"{site}: its certificate ends in {good[site].days_left} days; it can ask for a new one now"
            )

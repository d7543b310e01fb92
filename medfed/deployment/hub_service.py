"""`medfed hub`: the hub of a study across hospitals, from the study file to the report.

`federation/hub.py` runs the rounds and `exchange/` carries them. Here a study file, an enrolment folder and a
run folder become a running hub, with its progress display and status file.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from msgspec import UNSET, UnsetType

from medfed.data.label_naming import different_labels
from medfed.data.whole_images import different_units
from medfed.deployment.background import run_periodically
from medfed.deployment.description import HubRun, described
from medfed.deployment.enrolment.broker import Broker
from medfed.deployment.enrolment.configuration import admit_study
from medfed.deployment.enrolment.participants import (
    EXPIRY_WARNING_DAYS,
    participants,
    revocations_expire,
)
from medfed.deployment.enrolment.rights import publish_rights
from medfed.deployment.site_file import resolve_paths
from medfed.deployment.study_page import describe_for_hub
from medfed.errors import StudyError
from medfed.evaluation.report import write_report
from medfed.evaluation.row_checks import StudyMeasures, measures_of, plausible_patients, plausible_scores
from medfed.evaluation.row_transport import accept_rows, without_rows
from medfed.evaluation.rows import FEDERATED, Row
from medfed.evaluation.rows import write as write_rows
from medfed.exchange import Exchange
from medfed.exchange._admitted import admitted_studies
from medfed.exchange._study_store import space_of
from medfed.exchange.memory import Memory
from medfed.exchange.nats import Nats
from medfed.federation.config import HubConfig
from medfed.federation.description import description_digest
from medfed.federation.hub import run_hub
from medfed.federation.membership import recorded_joins
from medfed.files import private_files, utc_time, write_whole
from medfed.pipeline.component_gains import postprocess_facts, with_rules
from medfed.pipeline.create_run import choose_folder, create_run, finish_run, run_to_resume, write_study
from medfed.pipeline.describing import needs_description, only_describes, protection_of
from medfed.pipeline.experiments.unlearning import prepare_retraining, retraining
from medfed.pipeline.factory import egress_of, hub_config_of, module_of
from medfed.registry import kind_of
from medfed.runs.checkpoints import save_checkpoint
from medfed.runs.facts import ModelChoice, PostprocessFacts
from medfed.runs.folder import RunFolder
from medfed.runs.progress import Progress, show_warnings
from medfed.runs.recorded_progress import RecordedProgress
from medfed.runs.rounds import (
    IMAGES_IN_MM,
    LABELS_NAMED,
    RoundReport,
    append_round,
    first_examples,
    labels_by,
    read_rounds,
    unit_by,
)
from medfed.runs.status import FINISHED, Status, keep_status
from medfed.runs.trackers import TrackedRun, Tracking
from medfed.study.canonical import public_yaml, study_digest
from medfed.study.reading import read_study
from medfed.study.study import Study
from medfed.wire.audit_log import AuditLog
from medfed.wire.credentials import read_federation
from medfed.wire.signing import HUB, Identity
from medfed.wire.weights import weights_of

# How long the hub waits, once too few sites are left, for one that stopped to be started again, where the
# study gives no deadline.
RETURN_S = 24 * 3600.0

# How often the display and the status file are updated with the connected and the awaited sites.
POLL_S = 1.0


@dataclass(frozen=True)
class RetrainWithout:
    """Train a study again without a site that withdrew from a former run, by default the newest one."""

    site: str
    former: Path | None = None


@private_files()
def run_study(
    study_file: Path,
    *,
    enrolment: Path | None = None,
    broker: bool = False,
    out: Path | None = None,
    overrides: Sequence[str] = (),
    resume: bool = False,
    retrain: RetrainWithout | None = None,
    progress: Progress | None = None,
) -> RunFolder:
    """Run a study across hospitals to its end and write its report; return the run folder.

    `enrolment` is the coordinator's folder that `medfed enrol init` made; with `broker` its broker runs as a
    child of this process. With `resume` an earlier run continues, if there is one. With `retrain` training
    continues from the last model to which the named site had not contributed.

    Raises:
        StudyError: if the study file or its exchange cannot be used.
        QuorumError: if too few sites answered a round; the sites wait, and the run resumes.
        RunError: if the run folder is taken, or its disk is full.
    """
    progress = progress or Progress()
    study = read_study(study_file, overrides)
    if needs_description(study):
        protection_of(study)
    _check_joining(study, study_file, enrolment)
    exchange = exchange_of(study, study_file, enrolment, broker)
    resuming = resume and _has_started(study, out)
    again = None
    if retrain is not None:
        again = retraining(study, retrain.site, retrain.former, resuming)
        study = again.study
    digest = study_digest(study)
    unfinished = None if out is not None or resuming else _unfinished(study)
    folder = choose_folder(study, out, resuming)
    began = time.monotonic()
    credentials = getattr(exchange, "credentials", "")
    identity = Identity(Path(credentials)) if credentials else None
    if identity is not None:
        identity.check().revocations()  # raises now what would otherwise stop the first round
    if again is not None:
        prepare_retraining(again, folder, progress, identity)
    facts = create_run(folder, study, {})
    write_whole(folder.consent, describe_for_hub(study, exchange, digest))
    status = Status(folder.status, study=study.name, digest=digest, rounds=study.train.rounds)
    tracked = Tracking(study.trackers, TrackedRun(folder.path, study.name, HUB))
    progress = RecordedProgress(progress, status, read_rounds(folder.rounds), tracked)
    progress.opened(folder.path)
    audit = AuditLog(folder.audit, identity)
    start = {"start": facts.start.sha256} if facts.start else {}
    audit.write("began", study=digest, sites=sorted(study.sites), resumed=resume, **start)
    for line in facts.start.lines if facts.start else ():
        progress.log(line)
    with keep_status(status):
        with show_warnings(progress), closing(tracked), ExitStack() as stack:
            if broker and enrolment is not None:
                refused = partial(audit.write, "broker refused")
                stack.callback(Broker(enrolment, on_refused=lambda reason: refused(reason=reason)).stop)
            _log_notes(study, exchange, progress)
            _admit_at_broker(study, exchange, progress)
            stack.enter_context(_rights_published(exchange, progress))
            if enrolment is not None:
                _log_missing_certificates(study, enrolment, progress)
            if unfinished is not None:
                progress.log(
                    f"{unfinished} holds an unfinished run of this study; this is a new one, which sites of "
                    "that run refuse. To continue that run, stop this one and give --resume --out "
                    f"{unfinished}"
                )
            admitted = partial(_admitted, study, enrolment)
            ended = _run_rounds(study, exchange, folder, admitted, audit, progress, status)
        if only_describes(study):
            finish_run(folder, facts, began)
            status.update(state=FINISHED)
            return folder
        joined = recorded_joins(folder.hub)
        sites = sorted({*facts.sites, *joined})
        chosen, postprocess = ended.choice, ended.postprocess
        facts = msgspec.structs.replace(facts, chosen=chosen, postprocess=postprocess, sites=sites)
        folder.write_facts(facts)
        write_rows(folder.reported, ended.rows)
        write_report(folder.path)
        finish_run(folder, facts, began)
        status.update(state=FINISHED)
    return folder


def _admit_at_broker(study: Study, exchange: Exchange, progress: Progress) -> None:
    """Let this study's hospitals, and no others, read and write it at the broker of the enrolment."""
    if not isinstance(exchange, Nats):
        return
    enrolment = Path(exchange.credentials).parent
    if (enrolment / "federation.json").exists():
        named = sorted({*study.sites, *study.held_out})
        admit_study(enrolment, study_digest(study), named, keep=study.sampling.joining)
        if needs_description(study):
            asked = description_digest(study_digest(study))
            admit_study(enrolment, asked, named, keep=study.sampling.joining)
    else:
        progress.log(
            "the broker's enrolment folder is not on this machine: if it has admitted other studies, "
            "this one's hospitals cannot read it there; run `medfed enrol study STUDY` where `medfed enrol "
            "init` made the enrolment"
        )


def _rights_published(exchange: Exchange, progress: Progress) -> AbstractContextManager[None]:
    """Return what keeps the rights at a cluster's brokers up to date; nothing is needed for one broker."""
    enrolment = Path(getattr(exchange, "credentials", "")).parent
    if not isinstance(exchange, Nats) or not (enrolment / "federation.json").exists():
        return nullcontext()
    federation = read_federation(enrolment)
    if not federation.cluster:
        return nullcontext()
    return publish_rights(enrolment, exchange.urls or federation.urls, progress.log, exchange.timeout_s)


def _check_joining(study: Study, study_file: Path, enrolment: Path | None) -> None:
    """Refuse a study that hospitals may join where nobody could say which hospital one is.

    Raises:
        StudyError: saying what is missing.
    """
    if study.sampling.joining and enrolment is None:
        raise StudyError(
            f"{study_file.name}: sampling.joining: without certificates whoever can write to the exchange "
            "could join under any name; give --enrolment FOLDER, or name every hospital under sites"
        )


def _admitted(study: Study, enrolment: Path | None) -> list[str]:
    """Return the hospitals that were admitted to a study which does not name them (`medfed enrol study`)."""
    if enrolment is None or not study.sampling.joining:
        return []
    known = admitted_studies(enrolment).get(space_of(study_digest(study)), [])
    return sorted({*known} - {*study.sites, *study.held_out})


def _log_notes(study: Study, exchange: Exchange, progress: Progress) -> None:
    """Log what the coordinator should know about the study."""
    if not getattr(exchange, "credentials", ""):
        progress.log(
            "nothing is signed: whoever can write to the exchange can speak as any site (--enrolment)"
        )
    progress.log(f"study {study.name}, digest {study_digest(study)}")
    if study.start is not None:
        progress.log(
            "it begins with given weights: each hospital names its copy of that checkpoint in its site file "
            "(start)"
        )
    if study.task.predicts == "survival":
        progress.log(
            "hospitals report the c-index; a Brier score needs a baseline hazard of one hospital's patients, "
            "and stays there"
        )


def exchange_of(study: Study, study_file: Path, enrolment: Path | None, broker: bool) -> Exchange:
    """Return the hub's exchange: that of the study file, completed from the enrolment.

    Raises:
        StudyError: if these are incomplete, or contradict each other.
    """
    exchange: Exchange = resolve_paths(study.exchange, study_file.resolve().parent)
    name = study_file.name
    if isinstance(exchange, Memory):
        if enrolment is None:
            raise StudyError(
                f"{name}: exchange.kind: 'memory' connects sites within one process; give --enrolment FOLDER "
                "for a broker, or set exchange: {kind: folder, url: ...} for shared storage"
            )
        exchange = Nats()
    if enrolment is not None and not getattr(exchange, "credentials", ""):
        read_federation(enrolment)
        exchange = msgspec.structs.replace(exchange, credentials=str(enrolment.resolve() / HUB))
    if broker:
        if enrolment is None or not isinstance(exchange, Nats):
            raise StudyError(
                f"{name}: --broker starts the broker of an enrolment: give --enrolment FOLDER, and no "
                "exchange.kind but 'nats'"
            )
        federation = read_federation(enrolment)
        if federation.cluster:
            raise StudyError(
                f"{name}: --broker starts the one broker of a federation, this one has "
                f"{len(federation.hosts)}: leave it out, and run `medfed broker` on the machine of each"
            )
        urls = list(dict.fromkeys([federation.brokers[0].own_url, *(exchange.urls or federation.urls)]))
        exchange = msgspec.structs.replace(exchange, urls=urls)
    return exchange


def _has_started(study: Study, out: Path | None) -> bool:
    """Return whether the run folder, or else any run folder of the study's name, holds a run."""
    return RunFolder(out).facts.exists() if out is not None else bool(_runs(study))


def _unfinished(study: Study) -> Path | None:
    """Return the run folder with which --resume would go on, if that run is not finished."""
    folder = run_to_resume(study)
    return None if folder is None or RunFolder(folder).read_facts().is_finished else folder


def _runs(study: Study) -> list[RunFolder]:
    folders = [RunFolder(path) for path in Path("runs").glob(f"{study.name}*")]
    return [folder for folder in folders if folder.facts.exists()]


class _Ended(NamedTuple):
    """The end of a study's rounds: what the sites reported, which model it is, what is removed of masks."""

    rows: list[Row]
    choice: ModelChoice | UnsetType
    postprocess: PostprocessFacts | UnsetType


def _run_rounds(
    study: Study,
    exchange: Exchange,
    folder: RunFolder,
    admitted: Callable[[], Collection[str]],
    audit: AuditLog,
    progress: Progress,
    status: Status,
) -> _Ended:
    """Run every round; return the rows that the sites report on the final model, and which model it is.

    `admitted` returns the hospitals that the study does not name and the coordinator has admitted to it.
    """
    side: Any = exchange.open_hub(study_digest(study), folder.hub)
    expected = _expected(study)
    config = expected.config
    rows: list[Row] = []
    choices: list[ModelChoice] = []
    postprocess: PostprocessFacts | UnsetType = UNSET
    stated: dict[str, str] = {}
    units: dict[str, str] = {}

    def on_round(report: RoundReport) -> None:
        rows[:], report = _take_rows(report, expected, folder, audit)
        progress.round(report)
        append_round(folder.rounds, report)
        status.update(state="leading")
        if used := side.used_bytes():
            status.update(stored_bytes=used)
        _log_different(_LABELS, report, stated, progress)
        _log_different(_UNITS, report, units, progress)
        if report.choice is not None:
            choices.append(report.choice)
            progress.log(report.choice.sentence)

    side.on_refused(lambda reason: audit.write("refused", reason=reason))
    if config.joining:
        side.on_admitted(admitted)
    try:
        # Those that have joined keep their rights when the hub is started again.
        side.monitored_sites = (*config.sites, *config.evaluating, *admitted())
        side.advertise_study(public_yaml(study), side.monitored_sites)
        progress.start(
            f"{study.name}: {kind_of(study.rule)} over {len(config.sites)} hospitals",
            dict.fromkeys(side.monitored_sites, 0),
            config.rounds,
            study.task.main_score,
        )
        with described(HubRun(study, exchange, folder, audit, progress, status)) as planned:
            if only_describes(study):
                final = None
            else:
                look = partial(_show_waiting, side, progress, status)
                with run_periodically(POLL_S, look, "medfed-poll"):
                    final = run_hub(
                        config,
                        side,
                        weights_of(module_of(planned), study.keep_local, trained_only=study.trained_only),
                        folder=folder.hub,
                        on_round=on_round,
                        audit=audit,
                    )
        if final is not None:
            frozen = weights_of(module_of(planned)) if study.trained_only else {}
            postprocess = postprocess_facts(study, final)
            weights, rules = {**frozen, **final.weights}, postprocess.rules if postprocess else None
            save_checkpoint(folder.checkpoint(FEDERATED), weights, final.merges, rules)
            if postprocess:
                write_study(folder, with_rules(planned, postprocess.rules))
    except BaseException:
        # Not closed: the sites wait for a hub that was stopped and is started again.
        side.disconnect()
        raise
    finally:
        progress.stop()
    side.close()
    return _Ended(rows, choices[-1] if choices else UNSET, postprocess)


@dataclass(frozen=True)
class _Expected:
    """What an honest site may send in this study: whose results, and the names of its numbers."""

    config: HubConfig
    measures: StudyMeasures
    declared: frozenset[str]


def _expected(study: Study) -> _Expected:
    """Return what the sites of the study may send."""
    classes = getattr(study.task, "classes", ())
    measures = measures_of(type(study.task), classes, study.evaluation.tolerance_mm)
    # Only across machines: in one process every site is there from the start, and none is started again.
    config = replace(
        hub_config_of(study),
        joining=study.sampling.joining,
        return_s=study.sampling.deadline_s or RETURN_S,
    )
    return _Expected(config, measures, egress_of(study, smallest_group=None).scalars)


@dataclass(frozen=True)
class _Statement:
    """What a site says of its data in a scalar, and the words for sites that say different things."""

    scalar: str
    read: Callable[[float | None], str]
    different: Callable[[Mapping[str, str]], str]


# Whether the labels name their structures, and whether images have a size in mm.
_LABELS = _Statement(LABELS_NAMED, labels_by, different_labels)
_UNITS = _Statement(IMAGES_IN_MM, unit_by, different_units)


def _log_different(
    statement: _Statement, report: RoundReport, stated: dict[str, str], progress: Progress
) -> None:
    """Log, once for the same sites, that their data may not mean the same.

    `stated` is what each site has said so far; this round's is added. It is a warning: what one site says
    does not stop the others.
    """
    before = statement.different(stated)
    saying = [one for one in report.results if statement.scalar in one.scalars]
    stated.update({one.site: statement.read(one.scalars[statement.scalar]) for one in saying})
    if (different := statement.different(stated)) and different != before:
        progress.log(f"round {report.round}: {different}")


def _take_rows(
    report: RoundReport, expected: _Expected, folder: RunFolder, audit: AuditLog
) -> tuple[list[Row], RoundReport]:
    """Return the rows that sites report, and the report without them; rows that are refused are its notes."""
    began = first_examples(read_rounds(folder.rounds))
    config = expected.config
    rows, results = [], []
    for result in report.results:
        most = plausible_patients(config.max_examples, began.get(result.site))
        number = config.rounds if report.scored is None else report.scored
        accepted, refused = accept_rows(result.scalars, number, result.site, most, expected.measures)
        rows += accepted
        scores, implausible = plausible_scores(without_rows(result.scalars), expected.declared)
        notes = (*(f"a result is refused: {why}" for why in refused), *implausible)
        for note in notes:
            audit.write("warning", site=result.site, round=report.round, reason=note)
        results.append(replace(result, scalars=scores, notes=(*result.notes, *notes)))
    return rows, replace(report, results=tuple(results))


def _show_waiting(side: Any, progress: Progress, status: Status) -> None:
    """Show who is connected and who is awaited."""
    remaining_s = None if side.deadline is None else side.deadline - time.monotonic()
    progress.connections(side.online_sites(), side.pending_sites, remaining_s, side.stopped_sites())
    for site, age_s in side.heartbeat_ages().items():
        status.site(site, last_seen=utc_time(time.time() - age_s))
    status.update(state="leading")


def _log_missing_certificates(study: Study, enrolment: Path, progress: Progress) -> None:
    """Log which sites have no valid certificate, and what expires soon, the list of revoked ones too."""
    left = revocations_expire(enrolment) - datetime.now(UTC)
    if left.days < EXPIRY_WARNING_DAYS:
        progress.log(
            f"the list of revoked certificates expires in {left.days} days, and hospitals refuse models with "
            "an expired one; `medfed enrol refresh` where authority.key is makes a new one"
        )
    valid = {one.site: one for one in participants(enrolment) if one.status in ("valid", "expires soon")}
    for site in sorted({*study.sites, *study.held_out}):
        if site not in valid:
            progress.log(
                f"{site}: in the study, but without a valid certificate; `medfed enrol sign` answers its "
                "request"
            )
        elif valid[site].status == "expires soon":
            progress.log(
                f"{site}: its certificate expires in {valid[site].days_left} days; it can ask for a new one"
            )

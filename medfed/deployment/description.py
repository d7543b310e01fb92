"""Statistics of a study's data across machines, before its first round or instead of all rounds.

They have an exchange of their own beside the study's rounds, under a digest that follows from the study's, so
that their messages cannot be taken for a round's. Which hospitals answer, what each sends and who reads it is
decided as in training: by the study that each agreed to, by its own policy, and in `federation/round.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from medfed.deployment.background import run_periodically
from medfed.deployment.earlier_answers import check_earlier_answers, record_answer
from medfed.deployment.site_file import give_up_s
from medfed.deployment.site_session import SiteSession, check_still_approved, ledger_of
from medfed.errors import DECODING_ERRORS, ExchangeError, MedfedError, RunError
from medfed.exchange import DropOut, Exchange
from medfed.exchange._drop_out import detail_of, reason_of
from medfed.federation.description import (
    Described,
    answer_statistics,
    collect_statistics,
    description_digest,
    publish_statistics,
)
from medfed.federation.egress import Egress
from medfed.federation.round import SiteConnection, drop_out, receive, send_update
from medfed.federation.site import log_ledger_refusals
from medfed.files import private_folder, write_whole
from medfed.pipeline.create_run import write_study
from medfed.pipeline.describe import write_plan
from medfed.pipeline.describing import (
    StudyStatistics,
    answer_of,
    decoded,
    keep_statistics,
    kept_statistics,
    length_for,
    needs_description,
    only_describes,
    protection_of,
    request_of,
    statistics_of,
    total_of,
)
from medfed.pipeline.noised_statistics import Release, noise_of, noised_answer
from medfed.pipeline.planning import least_of, needs_plan, plan_from, summary_of
from medfed.privacy._patient_noise import PatientNoise
from medfed.privacy.accounting.ledger import data_set
from medfed.runs.folder import RunFolder
from medfed.runs.progress import Progress
from medfed.runs.status import Status
from medfed.study.canonical import study_digest
from medfed.study.study import Study
from medfed.wire.audit_log import AuditLog
from medfed.wire.update import Update

# How often the display and the status say whose statistics are awaited.
POLL_S = 1.0

# How long a hub that only describes waits until every hospital has the sum, so that none is left waiting.
RECEIVED_S = 600.0

# The folder of the exchange's own files, in the hub's and in a site's.
FOLDER = "statistics"

# In that folder of a site: what it answers.
ANSWER = "answer.json"


# ------------------------------------------------------------------------------------------------- at the hub


@dataclass(frozen=True)
class HubRun:
    """A study at its hub: its exchange, its run folder, and where its progress goes."""

    study: Study
    exchange: Exchange
    folder: RunFolder
    audit: AuditLog
    progress: Progress
    status: Status


@contextmanager
def described(run: HubRun) -> Iterator[Study]:
    """Yield the study as it is trained: planned from its hospitals' statistics, if it asks for them.

    Within the block the hospitals can still ask for the sum, from which each computes the same plan.

    Raises:
        QuorumError: if too few hospitals answered; it names each.
        DataError: if none has enough patients.
    """
    if not needs_description(run.study):
        yield run.study
        return
    digest = study_digest(run.study)
    side: Any = run.exchange.open_hub(description_digest(digest), run.folder.hub / FOLDER)
    side.on_refused(lambda reason: run.audit.write("refused", reason=reason))
    side.awaited_as = "statistics"
    try:
        statistics = kept_statistics(run.folder, run.study, digest)
        if statistics is None:
            statistics = _collected(run, side)
            keep_statistics(run.folder, run.study, digest, statistics)
        publish_statistics(side, description_digest(digest), total_of(run.study, statistics))
        run.progress.log(
            f"statistics of {statistics.total['hospitals'][0]} hospitals: {run.folder.table_one}"
        )
        planned = plan_from(run.study, statistics.total)
        if needs_plan(run.study):
            _keep_plan(run, planned)
        if only_describes(run.study):
            _wait_received(run, side)
        yield planned
    except BaseException:
        side.disconnect()  # the hospitals wait for a hub that is started again
        raise
    side.close()


def _keep_plan(run: HubRun, planned: Study) -> None:
    """Write the plan: into the study that is trained, or beside one that is only described."""
    if only_describes(run.study):
        write_plan(run.folder, planned, run.progress)
        return
    run.progress.log(f"planned from them: {summary_of(planned.data)}")
    write_study(run.folder, planned)


def _collected(run: HubRun, side: Any) -> StudyStatistics:
    config = request_of(run.study)
    side.monitored_sites = config.sites
    run.progress.log("asks every hospital for statistics of its training data")
    with run_periodically(POLL_S, partial(_show, side, run), "medfed-statistics"):
        answers: Described = collect_statistics(config, side, length_for(run.study), run.audit)
    for result in answers.results:
        if result.status != "merged":
            run.progress.log(f"statistics: {result.site} {result.status}: {result.reason}")
    return statistics_of(run.study, answers)


def _show(side: Any, run: HubRun) -> None:
    """Show whose statistics are awaited."""
    run.status.update(
        state="collecting statistics",
        connected=sorted(side.online_sites()),
        awaited=sorted(side.pending_sites),
    )


def _wait_received(run: HubRun, side: Any) -> None:
    """Wait until the hospitals have the sum, or some time has passed."""
    side.awaited_as = "word that it has the sum"
    run.progress.log(f"waits until every hospital has the sum, for {RECEIVED_S / 60:g} minutes at most")
    for arrival in side.collect(2, sorted(run.study.sites), RECEIVED_S):
        if arrival.error is not None:
            run.progress.log(f"statistics: {arrival.site}: {arrival.error}")


# -------------------------------------------------------------------------------------------- in the hospital


def describe_session(session: SiteSession) -> SiteSession:
    """Send this hospital's statistics, if the study asks for them, and return the session as planned.

    A hospital that is held out, or joins later, sends none and receives the sum.

    Raises:
        DataError: if its data cannot be read, or no hospital has enough patients.
        EgressError: if they may not leave. Nothing was sent then.
        WireError: if the hub asks for something else.
    """
    study = session.study
    if not needs_description(study):
        return session
    kept = kept_statistics(session.folder, study, session.digest)
    if kept is None:
        total = _exchanged(session)
        kept = StudyStatistics(decoded(study, total, len(study.sites)), {})
        keep_statistics(session.folder, study, session.digest, kept)
    planned = plan_from(study, kept.total)
    if needs_plan(study) and not only_describes(study):
        session.progress.log(f"planned from the hospitals' statistics: {summary_of(planned.data)}")
        write_study(session.folder, planned)
    return replace(session, study=planned, agreed=session.digest)


def _exchanged(session: SiteSession) -> Tensor:
    """Send this hospital's statistics and return the sum of all hospitals'."""
    vector = None
    if session.name in session.study.sites:  # one that joins later, or is held out, is not asked
        session.status.update(state="counting its training data")
        session.progress.log(f"{session.name}: counts its training data, as the study asks for statistics")
        try:
            vector = _answer(session)
        except MedfedError as error:
            tell_both(session, reason_of(error), detail_of(error))
            raise
    session.status.update(state="waiting for all hospitals' statistics")
    side = open_side(session)
    try:
        connection = _connection(session, side)
        send = None if vector is None else partial(_approved, session, vector)
        total = answer_statistics(connection, send, length_for(session.study))
        _say_received(session, connection)
        return total
    except MedfedError as error:
        if not isinstance(error, ExchangeError):
            drop_out(
                SiteConnection(session.name, side, audit=session.audit), reason_of(error), detail_of(error)
            )
        raise
    finally:
        side.close()


def _approved(session: SiteSession, vector: Tensor) -> Tensor:
    """Return what is sent now: counting and waiting took a while, and the approval may have been revoked."""
    check_still_approved(session, session.digest)
    return vector


class _Answer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What this hospital answers: its numbers that are not 0 by their place, and the group they are for."""

    least: int
    numbers: dict[int, float]


def _answer(session: SiteSession) -> Tensor:
    """Return this hospital's statistics: those of before a restart, as long as its policy is the same.

    The difference of two answers would be that of the patients who came or went in between, however few.

    Raises:
        DataError: if its data cannot be read.
        DeclinedError: if it would differ from another study's answer by a few patients.
        RunError: if what was kept of earlier answers is damaged.
        LedgerError: if noised statistics would carry a patient over this hospital's ceiling.
    """
    if (noise := noise_of(session.study)) is not None:
        return _noised_answer(session, noise)
    path, least = session.folder.site(session.name) / FOLDER / ANSWER, session.site.policy.smallest_group
    known = _kept_answer(path)
    if known is not None and known.least == least:
        session.progress.log(
            f"{session.name}: sends the statistics that it counted before it was started again: from two "
            "answers a reader would see what the patients changed who came or went since. If they must be "
            f"counted anew, delete {path} while this site is stopped"
        )
        vector = torch.zeros(length_for(session.study), dtype=torch.float64)
        vector[list(known.numbers)] = torch.tensor(list(known.numbers.values()), dtype=torch.float64)
        return vector
    fewest = max(least, least_of(session.study))
    check_earlier_answers(session, fewest)
    vector = answer_of(session.study, session.hospital.data, least)
    record_answer(session, fewest)
    numbers = {place: number for place, number in enumerate(vector.tolist()) if number}
    answer = msgspec.to_builtins(_Answer(least=least, numbers=numbers), str_keys=True)
    private_folder(path.parent)
    write_whole(path, msgspec.json.encode(answer), durable=True)
    return vector


def _noised_answer(session: SiteSession, noise: PatientNoise) -> Tensor:
    """Return this hospital's noised statistics, which its ledger pays for once."""
    hospital, folder = session.hospital, session.folder.site(session.name)
    with log_ledger_refusals(session.audit, session.name):
        release = Release(
            session.digest,
            data_set(hospital.data.patients("train"), hospital.secret),
            ledger_of(session.site, hospital.secret),
            folder,
        )
        return noised_answer(
            session.study, noise, partial(answer_of, session.study, hospital.data, 1), release
        )


def _kept_answer(path: Path) -> _Answer | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Answer) if path.exists() else None
    except DECODING_ERRORS as error:
        raise RunError(
            f"{FOLDER}/{path.name}: the statistics that this site counted before are damaged ({error}); "
            "restore the file, or delete it to have them counted anew"
        ) from None


def _connection(session: SiteSession, side: Any) -> SiteConnection:
    return SiteConnection(
        session.name,
        side,
        protection_of(session.study),
        Egress(frozenset()),
        audit=session.audit,
        parties=tuple(sorted(session.study.sites)),
    )


def _say_received(session: SiteSession, connection: SiteConnection) -> None:
    """Tell a hub that only describes that this hospital has the sum: it need not wait any longer."""
    if only_describes(session.study):
        received = receive(connection, 1)
        send_update(connection, Update(session.name, 2, {}, 0), received.weights)


def open_side(session: SiteSession) -> Any:
    """Open this hospital's side of the exchange of statistics."""
    folder = session.folder.site(session.name) / FOLDER
    private_folder(folder)
    side: Any = session.site.exchange.open_site(description_digest(session.digest), session.name, folder)
    side.max_silence_s = give_up_s(session.site)
    side.awaited_as = "sum of all hospitals' statistics"
    return side


def tell_both(session: SiteSession, reason: DropOut, detail: str = "") -> None:
    """Tell the hub that it need not wait for this hospital, neither for statistics nor in a round."""
    opens: list[Callable[[], Any]] = [session.connect]
    if needs_description(session.study) and not session.folder.statistics.exists():
        opens.append(lambda: open_side(session))
    for open_one in opens:
        side = open_one()
        drop_out(SiteConnection(session.name, side, audit=session.audit), reason, detail)
        side.close()

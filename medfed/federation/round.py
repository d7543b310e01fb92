"""One round, both sides, top to bottom. Whatever leaves a hospital leaves here, as an `Update`.

In the hospital:  `receive`          takes the hub's model.
                  (Training happens elsewhere, on images that no line of this file can reach.)
                  `send_update`      checks the update, protects it, compares it with the list of what may
                                     leave, compresses it, writes it to the audit log, and sends it.
                  (Mechanisms whose sites agree on keys exchange messages before and after. No message holds
                  anything that training learned.)
At the hub:       `aggregate_round`  collects the updates, decompresses, checks and unmasks them, and merges
                                     them into the next model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from medfed.aggregation import Rule, State
from medfed.errors import ExchangeError, ForgedError, MedfedError, QuorumError, SiteError, UpdateError
from medfed.exchange import DropOut, HubSide, MemoryExchange, ReceivedUpdate, SiteSide, SupportsAsync
from medfed.federation.acceptance import (
    accept_numbers,
    check_examples,
    check_needs,
    dominance,
    factor_dominance,
    factor_errors,
    group_errors,
    keep_examples,
    keep_merged,
    merged_rounds,
    with_notes,
    without_examples,
)
from medfed.federation.config import HubConfig
from medfed.federation.egress import Egress, enforce
from medfed.privacy import NoPrivacy, Privacy, RoundSession, split_state
from medfed.runs.rounds import SiteResult
from medfed.wire.audit_log import AuditLog
from medfed.wire.compression import Compression, compress_update, decompress_update
from medfed.wire.compression import State as Residual
from medfed.wire.messages import HubChannel, SiteChannel
from medfed.wire.update import GlobalModel, Update, check_model, check_update, model_digest, outlier_errors
from medfed.wire.weights import Weights, digest

# -------------------------------------------------------------------------------------------- in the hospital


@dataclass(frozen=True)
class SiteConnection:
    """How a site sends to the hub: the exchange, the protection, what may leave, and the audit log.

    `parties` are the hospitals that train in the study to which this site agreed. With no others does it
    agree on keys; in a simulation the exchange knows them.
    """

    site: str
    exchange: SiteSide
    privacy: Privacy = field(default_factory=NoPrivacy)
    # By default the model's tensors may leave, and plain numbers under `train` and `val`.
    egress: Egress = field(default_factory=Egress)
    compress: Sequence[Compression] = ()
    audit: AuditLog = field(default_factory=lambda: AuditLog(None))
    parties: tuple[str, ...] = ()

    def channel(self, round: int, model: GlobalModel) -> SiteChannel:
        """Return the channel through which the privacy mechanism's parties agree on keys in a round."""
        parties = self.parties or self.exchange.parties
        return SiteChannel(
            self.exchange, self.site, round, self.audit, model, parties, self.privacy.min_sites
        )


def receive(connection: SiteConnection, round: int) -> GlobalModel:
    """Wait for the hub's model of this round or a later one, and return it.

    Raises:
        WireError: if nobody can train from it.
        PrivacyError: if a part of it is encrypted, and is not the sum of enough hospitals' updates.
    """
    received = connection.exchange.fetch(connection.site, round)
    received = replace(received, sha256=model_digest(received))
    connection.audit.write(
        "received",
        site=connection.site,
        round=received.round,
        sha256=received.sha256,
        final=received.final,
        hub_head=received.audit_head,
    )
    channel = connection.channel(received.round, received)
    model = connection.privacy.decrypt(received, channel)
    exchange = connection.exchange if model is received else None
    # Sites of one process receive the same tensors, by digest: the first that finds them valid is enough.
    if isinstance(exchange, MemoryExchange) and exchange.valid_model == model.sha256:
        return model
    with channel.logged_refusals():
        check_model(model, channel.who)
    if isinstance(exchange, MemoryExchange):
        exchange.valid_model = model.sha256
    return model


def send_update(
    connection: SiteConnection,
    update: Update,
    weights: Weights,
    residual: Residual | None = None,
    model_sha256: str = "",
) -> Residual:
    """Send one update to the hub: the only line in medfed by which anything learned from patients leaves.

    `weights` are the model that the hub sent, `model_sha256` its digest as it arrived, which `receive`
    measured and which is measured here if it is not given. `residual` is what compression left out so far; it
    stays in the hospital, and what is left out now is returned for the next round.

    Raises:
        UpdateError: if the update does not fit the model. Nothing was sent then.
        EgressError: if it holds what may not leave. Nothing was sent then.
    """
    residual = residual or {}
    with _log_withheld(connection, update):
        scalars = connection.privacy.filter_scalars(update.scalars)
        checked = check_update(replace(update, scalars=scalars), weights)
    if checked.evaluation_only:
        return _send(connection, checked, weights, residual)
    model = GlobalModel(update.round - 1, weights, sha256=model_sha256)
    for protector in connection.privacy.protectors(connection.channel(update.round, model)):
        with _log_withheld(connection, update):
            protected = protector.protect(checked, weights)
        residual = _send(connection, protected, weights, residual)
    return residual


@contextmanager
def _log_withheld(connection: SiteConnection, update: Update) -> Iterator[None]:
    """Write to the audit log why an update did not leave."""
    try:
        yield
    except MedfedError as error:
        connection.audit.write("withheld", site=update.site, round=update.round, reason=str(error))
        raise


def _send(connection: SiteConnection, update: Update, weights: Weights, residual: Residual) -> Residual:
    egress = replace(connection.egress, sealed=(*connection.egress.sealed, *connection.privacy.sends))
    with _log_withheld(connection, update):
        leaving = enforce(update, weights, egress)
        withheld = len({*update.scalars} - {*leaving.scalars})
        packed, residual = compress_update(connection.compress, leaving, residual)
    packed = replace(packed, audit_head=connection.audit.head)
    if connection.audit.is_written:  # else nobody needs to know the size and digest beforehand
        _log_sent(connection, packed, leaving, weights, withheld)
    connection.exchange.send(packed)
    return residual


def _log_sent(
    connection: SiteConnection, packed: Update, leaving: Update, weights: Weights, withheld: int
) -> None:
    """Write to the audit log what leaves: its size, its digest, and what is in it."""
    transmission = connection.exchange.transmission(packed)
    connection.audit.write(
        "sent",
        site=leaving.site,
        round=leaving.round,
        to=transmission.to,
        bytes=transmission.bytes,
        sha256=transmission.sha256,
        tensors=len(leaving.delta),
        values=sum(weights[name].numel() for name in leaving.delta),
        examples=leaving.examples,
        scalars=sorted(leaving.scalars if transmission.scalars is None else transmission.scalars),
        groups=sorted(leaving.groups),
        **({"withheld": withheld} if withheld else {}),
    )


def drop_out(connection: SiteConnection, reason: DropOut, detail: str = "") -> None:
    """Tell the hub in one of the fixed words that this site stops; the detail stays in its own log."""
    connection.audit.write(
        "dropped out",
        site=connection.site,
        to="hub",
        bytes=len(reason.encode()),
        reason=reason.value,
        detail=detail,
    )
    connection.exchange.drop_out(connection.site, reason, detail)


# ---------------------------------------------------------------------------------------------- at the hub


@dataclass(frozen=True)
class RoundOutcome:
    """The next model, the rule's state, and the result of each site that was asked."""

    weights: Weights
    state: State
    results: tuple[SiteResult, ...]


def aggregate_round(
    exchange: HubSide,
    config: HubConfig,
    state: State,
    current: GlobalModel,
    sites: Sequence[str],
    audit: AuditLog,
) -> RoundOutcome:
    """Collect what the sites send towards the next round, refuse what is invalid, and merge the rest.

    Raises:
        QuorumError: if too few sites sent a valid update; it names the result of each site.
    """
    number, rule, privacy = current.round + 1, config.rule, config.privacy
    channel = HubChannel(exchange, tuple(sites), number, audit, current)
    session = privacy.open_session(channel, config.deadline_s)
    results = log_results([_refused(site, why) for site, why in session.refused.items()], number, audit)
    admitted: list[tuple[Update, SiteResult]] = []
    for arrival in _arrivals(exchange, rule, number, session, state):
        update, result = _admit(arrival, current, config, session, state, audit)
        if update is None:
            results += log_results([result], number, audit)
        else:
            admitted.append((update, result))
    updates, judged = _comparable(admitted, current.weights, config)
    for outweighing in (dominance(updates, state), factor_dominance(updates, rule)):
        judged = [
            with_notes(one, outweighing[one.site]) if one.site in outweighing else one for one in judged
        ]
    results += log_results(judged, number, audit)
    if not rule.asynchronous:  # an asynchronous site that sent nothing is still training
        # In one process a site's failure may close the exchange while the others still train.
        closed = bool(getattr(exchange, "closed", False))
        missing = _absent(sites, results, None if closed else config.deadline_s)
        results += log_results(missing, number, audit)
    results.sort(key=lambda result: result.site)
    if len(updates) < (minimum := config.quorum(len(sites))):
        each = "; ".join(f"{r.site}: {r.status}{f' ({r.reason})' if r.reason else ''}" for r in results)
        raise QuorumError(
            f"round {number}: {len(updates)} of {len(sites)} sites sent a valid update, the study's minimum "
            f"is {minimum} (sampling.minimum). {each}. Correct what is named for each site, or lower the "
            "minimum, then resume the run with --resume"
        )
    kept = keep_examples(state, updates) | (keep_merged(state, updates) if rule.asynchronous else {})
    own, rest = split_state(without_examples(state))
    revealed = session.reveal(updates, current.weights)
    released, privacy_state = privacy.prepare_merge(revealed, own, current.weights)
    weights, state = rule.merge(released, rest, current.weights)
    merged_sha256 = digest(weights) if audit.is_written else ""
    audit.write("merged", round=number, sites=sorted(u.site for u in updates), sha256=merged_sha256)
    return RoundOutcome(weights, {**state, **privacy_state, **kept}, tuple(results))


def _arrivals(
    exchange: HubSide, rule: Rule, number: int, session: RoundSession, state: State
) -> Iterator[ReceivedUpdate]:
    if not rule.asynchronous:
        return exchange.collect(number, session.sites, session.deadline_s)
    if not isinstance(exchange, SupportsAsync):
        raise ExchangeError(
            "this rule merges late updates, which this exchange does not carry; use 'memory', 'folder' or "
            "'nats'"
        )
    # A hub that was started again has merged these, and their sites' updates may still lie in the store.
    merged = merged_rounds(state)
    return exchange.collect_async(number, session.sites, session.deadline_s, rule.buffer_size, merged)


def _admit(
    arrival: ReceivedUpdate,
    current: GlobalModel,
    config: HubConfig,
    session: RoundSession,
    state: State,
    audit: AuditLog,
) -> tuple[Update | None, SiteResult]:
    """Return the update if it is valid, and the site's result."""
    try:
        own = require_own(arrival, current.round + 1, audit, config.rule.asynchronous)
        if own.evaluation_only:
            raise UpdateError(f"{own}: holds no weights, but its site was asked to train")
        sent, notes = accept_numbers(own)
        update = session.admit(decompress_update(config.compress, sent, current.weights), current.weights)
        notes += check_examples(update, config, state)
        if config.privacy.reveals_each_update:
            check_needs(update, config.rule, current.weights)
    except MedfedError as error:
        nothing = arrival.update is None and arrival.bytes_up == 0
        status = "absent" if nothing and not isinstance(error, ForgedError) else "refused"
        return None, SiteResult(arrival.site, status, str(error), bytes_up=arrival.bytes_up)
    result = SiteResult(
        arrival.site, "merged", "", update.examples, arrival.bytes_up, arrival.seconds, update.scalars, notes
    )
    return update, result


def require_own(arrival: ReceivedUpdate, number: int, audit: AuditLog, asynchronous: bool = False) -> Update:
    """Return the update that arrived, if it is the site's own and for this round; log its audit log's head.

    Raises:
        MedfedError: why there is none, or whose it is.
    """
    if arrival.error is not None:
        raise arrival.error
    update = arrival.update
    assert update is not None
    in_time = update.round <= number if asynchronous else update.round == number
    if update.site != arrival.site or not in_time:
        raise UpdateError(
            f"site '{arrival.site}' sent an update of site '{update.site}' for round {update.round}, "
            f"expected its own for round {number}"
        )
    if update.audit_head:
        audit.write("site head", site=update.site, round=update.round, head=update.audit_head)
    return update


def _comparable(
    admitted: Sequence[tuple[Update, SiteResult]], weights: Weights, config: HubConfig
) -> tuple[list[Update], list[SiteResult]]:
    """Return the updates to merge and all results; updates that do not fit the others are refused.

    They are too long to come from training, or have other tensors in a group than the rest.
    """
    sent = [update for update, _ in admitted]
    reasons = group_errors(sent, config.rule)
    if config.privacy.reveals_each_update and config.outlier is not None:
        lengths = outlier_errors(sent, weights, config.outlier)
        factors = factor_errors(sent, config.rule, config.outlier)
        reasons = [
            group or length or factor for group, length, factor in zip(reasons, lengths, factors, strict=True)
        ]
    judged = [
        result if why is None else SiteResult(result.site, "refused", str(why), bytes_up=result.bytes_up)
        for (_, result), why in zip(admitted, reasons, strict=True)
    ]
    return [update for update, why in zip(sent, reasons, strict=True) if why is None], judged


def log_results(results: Sequence[SiteResult], number: int, audit: AuditLog) -> list[SiteResult]:
    """Return sites' results, once they are in the audit log with what a person should know of them."""
    lines: list[tuple[str, dict[str, Any]]] = []
    for result in results:
        who = {"site": result.site, "round": number}
        lines.append((result.status, {**who, "bytes": result.bytes_up, "reason": result.reason}))
        lines += [("warning", {**who, "reason": note}) for note in result.notes]
    audit.write_all(lines)
    return list(results)


def _refused(site: str, why: MedfedError) -> SiteResult:
    """Return the result of a site that stopped, or whose earlier message was refused."""
    return SiteResult(site, "absent" if isinstance(why, SiteError) else "refused", str(why))


def _absent(
    sites: Sequence[str], results: Sequence[SiteResult], deadline_s: float | None
) -> list[SiteResult]:
    why = "the hub closed" if deadline_s is None else f"nothing came within the deadline of {deadline_s:g} s"
    answered = {result.site for result in results}
    return [SiteResult(site, "absent", why) for site in sites if site not in answered]

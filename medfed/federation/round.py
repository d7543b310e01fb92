"""One round, both sides, top to bottom. Whatever crosses a hospital's wall crosses here, as an `Update`.

In the hospital:    receive  the hub's model arrives
                    (training happens elsewhere, on images that no line of this file can reach)
                    contribute  the update is checked, protected, held to the list of what may leave, compressed,
                                written to the audit log, and sent
                                (a mechanism whose sites settle keys among themselves does so by messages, before
                                and after, and nothing that training learned is in a message)
At the hub:         conduct  the updates are collected, restored, checked, revealed and merged into the next model
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import MappingProxyType

from medfed.aggregation import Rule, State
from medfed.errors import ExchangeError, MedfedError, QuorumError, SiteError, UpdateError
from medfed.exchange import HubSide, ReceivedUpdate, SiteSide, SupportsAsync
from medfed.federation.egress import Egress, declared
from medfed.privacy import NoPrivacy, Privacy, RoundSession, split_state
from medfed.runs.rounds import SiteResult
from medfed.wire.audit_log import AuditLog
from medfed.wire.compression import Compression, compress_update, decompress_update
from medfed.wire.compression import State as Left
from medfed.wire.messages import HubChannel, SiteChannel
from medfed.wire.update import GlobalModel, Update, check_update, outlier_errors
from medfed.wire.weights import Weights, digest

# The model's tensors, and plain numbers under train and val.
_MODEL_ONLY = Egress()
_NO_PRIVACY = NoPrivacy()

# -------------------------------------------------------------------------------------------- in the hospital


def receive(
    exchange: SiteSide, site: str, round: int, audit: AuditLog, privacy: Privacy = _NO_PRIVACY
) -> GlobalModel:
    """Return the hub's newest model of at least this round, waiting for it."""
    received = exchange.fetch(site, round)
    audit.write(
        "received", site=site, round=received.round, sha256=digest(received.weights), final=received.final
    )
    return privacy.decrypt(received, SiteChannel(exchange, site, received.round, audit))


def contribute(
    exchange: SiteSide,
    privacy: Privacy,
    update: Update,
    weights: Weights,
    audit: AuditLog,
    egress: Egress = _MODEL_ONLY,
    compress: Sequence[Compression] = (),
    left: Left = MappingProxyType({}),
) -> Left:
    """Send one update to the hub: the only line in medfed by which anything learned from patients leaves.

    Compression may only say less; what this round `left` out stays in the hospital, and is
    returned for the next.

    Raises:
        UpdateError: if the update does not fit the model, or holds what `egress` does not list; nothing is sent then.
    """
    egress = replace(egress, sealed=(*egress.sealed, *privacy.sends))
    with _noted(update, audit):
        checked = check_update(replace(update, scalars=privacy.filter_scalars(update.scalars)), weights)
    if checked.evaluation_only:
        return _send(exchange, checked, weights, audit, egress, compress, left)
    for protector in privacy.protectors(SiteChannel(exchange, update.site, update.round, audit)):
        with _noted(update, audit):
            leaving = protector.protect(checked, weights)
        left = _send(exchange, leaving, weights, audit, egress, compress, left)
    return left


@contextmanager
def _noted(update: Update, audit: AuditLog) -> Iterator[None]:
    """Write down why an update did not leave."""
    try:
        yield
    except MedfedError as error:
        audit.write("withheld", site=update.site, round=update.round, reason=str(error))
        raise


def _send(
    exchange: SiteSide,
    update: Update,
    weights: Weights,
    audit: AuditLog,
    egress: Egress,
    compress: Sequence[Compression],
    left: Left,
) -> Left:
    with _noted(update, audit):
        leaving = declared(update, weights, egress)
        packed, left = compress_update(compress, leaving, left)
    transmission = exchange.transmission(packed)
    audit.write(
        "sent",
        site=leaving.site,
        round=leaving.round,
        to=transmission.to,
        bytes=transmission.bytes,
        sha256=transmission.sha256,
        tensors=len(leaving.delta),
        values=sum(weights[name].numel() for name in leaving.delta),
        examples=leaving.examples,
        scalars=sorted(leaving.scalars),
        groups=sorted(leaving.groups),
    )
    exchange.send(packed)
    return left


def withdraw(exchange: SiteSide, site: str, reason: str, audit: AuditLog) -> None:
    """Tell the hub why this site stops; the reason names no patient, no file and no header."""
    audit.write("withdrew", site=site, to="hub", bytes=len(reason.encode()), reason=reason)
    exchange.withdraw(site, reason)


# ---------------------------------------------------------------------------------------------- at the hub


@dataclass(frozen=True)
class Outcome:
    """The next model and the rule's state, and what became of each site that was asked."""

    weights: dict
    state: State
    results: tuple[SiteResult, ...]


def conduct(
    exchange: HubSide,
    rule: Rule,
    privacy: Privacy,
    state: State,
    current: GlobalModel,
    sites: Sequence[str],
    minimum: int,
    deadline_s: float | None,
    audit: AuditLog,
    compress: Sequence[Compression] = (),
    outlier: float | None = None,
) -> Outcome:
    """Return the outcome of one round: collect what the sites send, leave out what does not
    fit, merge the rest.

    With `outlier` what is so many times as long as the round's updates does not
    fit either (see `outlier_errors`).

    Raises:
        QuorumError: if fewer than `minimum` sites sent an update that fits, naming what became of each.
    """
    number = current.round + 1
    session = privacy.open_session(HubChannel(exchange, tuple(sites), number, audit), deadline_s)
    results = [_before(site, why) for site, why in session.refused.items()]
    admitted: list[tuple[Update, SiteResult]] = []
    for arrival in _arrivals(exchange, rule, number, session):
        update, result = _admit(arrival, number, current, rule, session, compress)
        if update is None:
            results.append(_written(result, number, audit))
        else:
            admitted.append((update, result))
    limit = outlier if privacy.reveals_each_update else None
    updates, compared = _compared(admitted, current.weights, limit)
    results += [_written(result, number, audit) for result in compared]
    heard = {result.site for result in results}
    if not rule.asynchronous:  # where one merges without rounds, who was not heard is still training
        results += [SiteResult(site, "absent", _late(deadline_s)) for site in sites if site not in heard]
    results.sort(key=lambda result: result.site)
    if len(updates) < minimum:
        told = "; ".join(f"{a.site}: {a.status}{f' ({a.reason})' if a.reason else ''}" for a in results)
        raise QuorumError(
            f"round {number}: {len(updates)} of {len(sites)} sites sent an update that fits, the study's minimum is "
            f"{minimum} (sampling.minimum). {told}. Mend the sites named, or lower the minimum, and go on with --resume"
        )
    own, rest = split_state(state)
    released, kept = privacy.prepare_merge(session.reveal(updates, current.weights), own, current.weights)
    weights, state = rule.merge(released, rest, current.weights)
    audit.write("merged", round=number, sites=sorted(u.site for u in updates), sha256=digest(weights))
    return Outcome(weights, {**state, **kept}, tuple(results))


def _arrivals(exchange: HubSide, rule: Rule, number: int, session: RoundSession) -> Iterator[ReceivedUpdate]:
    if not rule.asynchronous:
        return exchange.collect(number, session.sites, session.deadline_s)
    if not isinstance(exchange, SupportsAsync):
        raise ExchangeError(
            "this rule merges late updates, which this exchange does not carry; take the exchange 'memory'"
        )
    return exchange.collect_async(number, session.sites, session.deadline_s, rule.buffer_size)


def _admit(
    arrival: ReceivedUpdate,
    number: int,
    current: GlobalModel,
    rule: Rule,
    session: RoundSession,
    compress: Sequence[Compression],
) -> tuple[Update | None, SiteResult]:
    try:
        if arrival.error is not None:
            raise arrival.error
        assert arrival.update is not None
        fits = arrival.update.round <= number if rule.asynchronous else arrival.update.round == number
        if arrival.update.site != arrival.site or not fits:
            raise UpdateError(
                f"site '{arrival.site}' sent an update of site '{arrival.update.site}' for round "
                f"{arrival.update.round}, expected its own for round {number}"
            )
        if arrival.update.evaluation_only:
            raise UpdateError(
                f"site '{arrival.site}' sent no weights for round {number}, but it was asked to train"
            )
        update = session.admit(decompress_update(compress, arrival.update, current.weights), current.weights)
    except MedfedError as error:
        status = "absent" if arrival.update is None and arrival.bytes_up == 0 else "refused"
        return None, SiteResult(arrival.site, status, str(error), bytes_up=arrival.bytes_up)
    result = SiteResult(
        arrival.site, "merged", "", update.examples, arrival.bytes_up, arrival.seconds, update.scalars
    )
    return replace(update), result


def _compared(
    admitted: Sequence[tuple[Update, SiteResult]], weights: Weights, outlier: float | None
) -> tuple[list[Update], list[SiteResult]]:
    """Return the updates that are merged, and every result, having refused those too long to be of training."""
    sent = [update for update, _ in admitted]
    reasons = [None] * len(sent) if outlier is None else outlier_errors(sent, weights, outlier)
    judged = [
        result if why is None else SiteResult(result.site, "refused", str(why), bytes_up=result.bytes_up)
        for (_, result), why in zip(admitted, reasons, strict=True)
    ]
    return [update for update, why in zip(sent, reasons, strict=True) if why is None], judged


def _written(result: SiteResult, number: int, audit: AuditLog) -> SiteResult:
    audit.write(result.status, site=result.site, round=number, bytes=result.bytes_up, reason=result.reason)
    return result


def _before(site: str, why: MedfedError) -> SiteResult:
    """Return the result of a site that is not awaited: it stopped, or what it said before is refused."""
    return SiteResult(site, "absent" if isinstance(why, SiteError) else "refused", str(why))


def _late(deadline_s: float | None) -> str:
    return "the hub closed" if deadline_s is None else f"nothing came within the deadline of {deadline_s:g} s"

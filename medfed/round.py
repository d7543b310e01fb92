"""One round, both sides, top to bottom. Whatever crosses a hospital's wall crosses here, as an `Update`.

In the hospital:    receive  the hub's model arrives
                    (training happens elsewhere, on images that no line of this file can reach)
                    contribute  the update is checked, protected, written to the audit log, and sent
At the hub:         conduct  the updates are collected, checked, revealed and merged into the next model
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from medfed.audit import AuditLog
from medfed.errors import ExchangeError, MedfedError, QuorumError, UpdateError
from medfed.exchange import Arrival, HubSide, SiteSide, TakesLate
from medfed.privacy import Privacy
from medfed.rules import Rule, State
from medfed.update import Global, Update, check
from medfed.weights import Weights, digest

# ---------------------------------------------------------------------------------------------- in the hospital


def receive(exchange: SiteSide, site: str, round: int, audit: AuditLog) -> Global:
    """Return the hub's newest model of at least this round, waiting for it."""
    received = exchange.fetch(site, round)
    audit.write(
        "received", site=site, round=received.round, sha256=digest(received.weights), final=received.final
    )
    return received


def contribute(
    exchange: SiteSide, privacy: Privacy, update: Update, weights: Weights, audit: AuditLog
) -> None:
    """Send one update to the hub: the only line in medfed by which anything learned from patients leaves.

    Raises:
        UpdateError: if the update does not fit the model; nothing is sent then.
    """
    leaving = check(update, weights)
    if not leaving.evaluates_only:
        leaving = privacy.protect(leaving, weights)
    audit.write(
        "sent",
        site=leaving.site,
        round=leaving.round,
        tensors=len(leaving.delta),
        values=sum(weights[name].numel() for name in leaving.delta),
        examples=leaving.examples,
        scalars=sorted(leaving.scalars),
        groups=sorted(leaving.groups),
    )
    exchange.send(leaving)


# ---------------------------------------------------------------------------------------------- at the hub


@dataclass(frozen=True)
class Answer:
    """What became of one site in one round, for the report."""

    site: str
    status: str  # merged, refused, absent, reported
    reason: str = ""
    examples: int = 0
    bytes_up: int = 0
    seconds: float = 0.0
    scalars: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """The next model and the rule's state, and what became of each site that was asked."""

    weights: dict
    state: State
    answers: tuple[Answer, ...]


def conduct(
    exchange: HubSide,
    rule: Rule,
    privacy: Privacy,
    state: State,
    current: Global,
    sites: Sequence[str],
    minimum: int,
    deadline_s: float | None,
    audit: AuditLog,
) -> Outcome:
    """Return the outcome of one round: collect what the sites send, leave out what does not fit, merge the rest.

    Raises:
        QuorumError: if fewer than `minimum` sites sent an update that fits, naming what became of each.
    """
    number = current.round + 1
    updates, answers = [], []
    for arrival in _arrivals(exchange, rule, number, sites, deadline_s):
        update, answer = _admit(arrival, number, current, rule)
        answers.append(answer)
        audit.write(
            answer.status, site=answer.site, round=number, bytes=answer.bytes_up, reason=answer.reason
        )
        if update is not None:
            updates.append(update)
    heard = {answer.site for answer in answers}
    if not rule.asynchronous:  # where one merges without rounds, who was not heard is still training
        answers += [Answer(site, "absent", _late(deadline_s)) for site in sites if site not in heard]
    answers.sort(key=lambda answer: answer.site)
    if len(updates) < minimum:
        told = "; ".join(f"{a.site}: {a.status}{f' ({a.reason})' if a.reason else ''}" for a in answers)
        raise QuorumError(
            f"round {number}: {len(updates)} of {len(sites)} sites sent an update that fits, the study's minimum is "
            f"{minimum} (sampling.minimum). {told}. Mend the sites named, or lower the minimum, and go on with --resume"
        )
    revealed = privacy.reveal(updates, current.weights)
    weights, state = rule.merge(revealed, state, current.weights)
    audit.write("merged", round=number, sites=sorted(u.site for u in updates), sha256=digest(weights))
    return Outcome(weights, state, tuple(answers))


def _arrivals(
    exchange: HubSide, rule: Rule, number: int, sites: Sequence[str], deadline_s: float | None
) -> Iterator[Arrival]:
    if not rule.asynchronous:
        return exchange.collect(number, sites, deadline_s)
    if not isinstance(exchange, TakesLate):
        raise ExchangeError(
            "this rule merges late updates, which this exchange does not carry; take the exchange 'memory'"
        )
    return exchange.collect_late(number, sites, deadline_s, rule.enough)


def _admit(arrival: Arrival, number: int, current: Global, rule: Rule) -> tuple[Update | None, Answer]:
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
        if arrival.update.evaluates_only:
            raise UpdateError(
                f"site '{arrival.site}' sent no weights for round {number}, but it was asked to train"
            )
        update = check(arrival.update, current.weights)
    except MedfedError as error:
        status = "absent" if arrival.update is None and arrival.bytes_up == 0 else "refused"
        return None, Answer(arrival.site, status, str(error), bytes_up=arrival.bytes_up)
    answer = Answer(
        arrival.site, "merged", "", update.examples, arrival.bytes_up, arrival.seconds, update.scalars
    )
    return replace(update), answer


def _late(deadline_s: float | None) -> str:
    return "the hub closed" if deadline_s is None else f"nothing came within the deadline of {deadline_s:g} s"

"""A study's statistics, by the same road as training: a "model" of one vector, to which each hospital adds.

The hub publishes a vector of zeros, each hospital's `Update` is its own statistics, and the hub publishes the
sum. Both sides go through `round.py`: what leaves is checked, protected (a secure sum sees no single vector),
compared with the list of what may leave, written to the audit log, sealed and sent there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from medfed.aggregation import Rule, State
from medfed.errors import DataError, RuleError, WireError
from medfed.exchange import HubSide
from medfed.federation.config import HubConfig
from medfed.federation.round import SiteConnection, aggregate_round, receive, send_update
from medfed.runs.rounds import SiteResult
from medfed.wire.audit_log import AuditLog
from medfed.wire.update import GlobalModel, Update
from medfed.wire.weights import Weights

# The name of the only tensor, and the groups of the hub's state that hold single hospitals' vectors.
STATISTICS = "statistics"
SITE = "statistics:"

# Checks one hospital's vector, float64; raises a DataError that says what is wrong.
Check = Callable[[Tensor], None]


def description_digest(study_digest: str) -> str:
    """Return the digest under which a study's statistics are exchanged, beside the study's own rounds."""
    return hashlib.sha256(f"medfed statistics of study {study_digest}".encode()).hexdigest()


class Sum(Rule, tag=STATISTICS, frozen=True):
    """The sum of the hospitals' statistics, each of which is checked.

    check_vector: raises a DataError for a vector that no honest hospital sends.
    """

    check_vector: Any = None  # a `Check`

    supports_secure_aggregation: ClassVar[bool] = True

    def check(self, update: Update) -> None:
        try:
            if self.check_vector is not None:
                self.check_vector(update.delta[STATISTICS].double())
        except DataError as error:
            raise RuleError(
                f"{update}: {error}; its statistics are left out: look at that site's data and version of "
                "medfed"
            ) from None

    def merge(
        self, updates: Iterable[Update], state: State, weights: Weights
    ) -> tuple[dict[str, Tensor], State]:
        total, single = weights[STATISTICS].double().clone(), dict[str, Weights]()
        for update in updates:
            # Under a secure sum there is one update: the mean, with the number of hospitals as its examples.
            total += update.delta[STATISTICS].double() * update.examples
            single[f"{SITE}{update.site}"] = {STATISTICS: update.delta[STATISTICS].double()}
        return {STATISTICS: total}, single


@dataclass(frozen=True)
class Described:
    """The sum of the hospitals' statistics, float64; single hospitals' where the hub sees them."""

    total: Tensor
    hospitals: dict[str, Tensor]
    results: tuple[SiteResult, ...]

    @property
    def answered(self) -> int:
        """How many hospitals are in the sum."""
        return sum(result.status == "merged" for result in self.results)


def collect_statistics(config: HubConfig, exchange: HubSide, length: int, audit: AuditLog) -> Described:
    """Publish the request for statistics of so many numbers, and return what the hospitals answer.

    The rule of `config` is a `Sum`.

    Raises:
        QuorumError: if too few hospitals sent valid statistics; it names each.
    """
    zeros = {STATISTICS: torch.zeros(length, dtype=torch.float64)}
    request = GlobalModel(0, zeros, study_digest=config.study_digest, rule=STATISTICS)
    exchange.publish(request)
    outcome = aggregate_round(exchange, config, {}, request, config.sites, audit)
    single = {
        name.removeprefix(SITE): group[STATISTICS]
        for name, group in outcome.state.items()
        if name.startswith(SITE) and config.privacy.reveals_each_update
    }
    return Described(outcome.weights[STATISTICS].double(), single, outcome.results)


def publish_statistics(exchange: HubSide, study_digest: str, total: Tensor) -> None:
    """Publish the sum, from which every hospital computes the same plan."""
    exchange.publish(GlobalModel(1, {STATISTICS: total}, study_digest=study_digest, final=True))


def answer_statistics(connection: SiteConnection, vector: Callable[[], Tensor] | None, length: int) -> Tensor:
    """Send this hospital's statistics, if they are still asked for, and return the sum of all hospitals'.

    `vector` computes them; None for a hospital that only receives the sum.

    Raises:
        WireError: if the hub asks for something else than statistics of so many numbers.
        EgressError: if they may not leave. Nothing was sent then.
    """
    received = _received(connection, 0, length)
    if not received.final and vector is not None:
        update = Update(connection.site, 1, {STATISTICS: vector()}, 1)
        send_update(connection, update, received.weights, model_sha256=received.sha256)
    if not received.final:
        received = _received(connection, 1, length)
    return received.weights[STATISTICS].double()


def _received(connection: SiteConnection, round: int, length: int) -> GlobalModel:
    received = receive(connection, round)
    tensor = received.weights.get(STATISTICS)
    if len(received.weights) != 1 or tensor is None or tensor.shape != (length,) or received.groups:
        raise WireError(
            f"site '{connection.site}': the hub asks for other statistics than the {length} numbers that the "
            "study's data section gives; do hub and site run the same version of medfed?"
        )
    if tensor.dtype != torch.float64 or received.final != (received.round == 1) or received.round > 1:
        raise WireError(
            f"site '{connection.site}': what the hub published of the study's statistics is of another form; "
            "do hub and site run the same version of medfed?"
        )
    return received

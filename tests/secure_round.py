"""One round of a secure sum over the memory exchange, every site a thread."""

from __future__ import annotations

import threading

import torch

from medfed.aggregation.fedavg import FedAvg
from medfed.exchange import DropOut, MemoryExchange
from medfed.federation.config import HubConfig
from medfed.federation.round import SiteConnection, aggregate_round, send_update
from medfed.privacy._masks import FixedPoint
from medfed.privacy.secure_sum import SecureSum
from medfed.wire.audit_log import AuditLog
from medfed.wire.update import GlobalModel, Update
from medfed.wire.weights import Difference

SITES = ("east", "north", "south", "west")
EXAMPLES = {"east": 7, "north": 12, "south": 30, "west": 51}
PATIENCE_S = 60

# In order: what a site says before it is killed. `updates` is no message: it is the masked update.
STEPS = ("keys", "shares", "updates", "signed", "unmask")


class Killed(Exception):
    pass


class DiesBefore:
    """A site's exchange that stops at one step, as after kill -9, without any further message."""

    def __init__(self, exchange: MemoryExchange, step: str) -> None:
        self._exchange, self._step = exchange, step

    def __getattr__(self, name: str):
        return getattr(self._exchange, name)

    def send_message(self, site, round, attempt, step, data):
        if step == self._step:
            raise Killed
        self._exchange.send_message(site, round, attempt, step, data)

    def send(self, update):
        if self._step == "updates":
            raise Killed
        self._exchange.send(update)


def model() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {"a.weight": torch.randn(70, 1100, generator=generator), "b": torch.randn(3, generator=generator)}


def trained(site: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(EXAMPLES.get(site, 5))
    return {name: tensor + torch.randn(tensor.shape, generator=generator) for name, tensor in model().items()}


def update(site: str, round: int = 1) -> Update:
    scalars = {"val/loss": 0.5, "train/steps": 4.0}
    return Update(site, round, Difference(trained(site), model()), EXAMPLES.get(site, 5), scalars)


def plainly(sites, privacy: SecureSum, terms: int) -> dict[str, torch.Tensor]:
    """Return the mean that whole numbers give without any mask: 64-bit integers, nothing hidden."""
    scale = FixedPoint(privacy.bits, privacy.limit, terms).scale
    total = sum(EXAMPLES[site] for site in sites)
    mean = {}
    for name in model():
        whole = sum(
            (update(site).delta[name] * (EXAMPLES[site] / privacy.max_examples * scale)).round().long()
            for site in sites
        )
        mean[name] = whole.double() / scale * (privacy.max_examples / total)
    return mean


class Round:
    """One round over the memory exchange, every site a thread; what the hub's rule is given is kept."""

    def __init__(self, privacy: SecureSum, sites=SITES, exchange: MemoryExchange | None = None) -> None:
        self.privacy, self.sites = privacy, sites
        self.log = AuditLog(None)
        self.exchange = exchange or MemoryExchange("study")
        self.exchange.publish(GlobalModel(0, model(), study_digest="study"))
        self.ends: dict[str, BaseException | None] = {}
        self.given: list[Update] = []
        self.threads: list[threading.Thread] = []

    def start(self, *sites: str, dies: dict[str, str] | None = None, silent: bool = False) -> None:
        """Start sites; one that dies or is deceived drops out, unless `silent`."""
        for site in sites:
            self.exchange._dropped_out.pop(site, None)

        def work(site: str) -> None:
            side = DiesBefore(self.exchange, (dies or {})[site]) if site in (dies or {}) else self.exchange
            try:
                send_update(
                    SiteConnection(site, side, self.privacy, audit=self.log, parties=tuple(self.sites)),
                    update(site),
                    model(),
                )
                self.ends[site] = None
            except BaseException as error:
                self.ends[site] = error
                if not silent or not isinstance(error, Killed):
                    self.exchange.drop_out(site, DropOut.ERROR)

        for site in sites:
            self.threads.append(threading.Thread(target=work, args=(site,), daemon=True))
            self.threads[-1].start()

    def run_round(self, minimum: int = 2, audit: AuditLog | None = None, deadline_s: float | None = None):
        given = self.given

        class Keeps(FedAvg, frozen=True, tag="keeps"):
            def merge(self, updates, state, weights):
                given[:] = updates
                return super().merge(given, state, weights)

        outcome = aggregate_round(
            self.exchange,
            HubConfig(
                1,
                tuple(self.sites),
                Keeps(),
                self.privacy,
                minimum=minimum,
                deadline_s=deadline_s,
                outlier=None,
            ),
            {},
            GlobalModel(0, model(), study_digest="study"),
            self.sites,
            audit or AuditLog(None),
        )
        self.exchange.publish(GlobalModel(1, outcome.weights, study_digest="study"))
        self.join()
        return outcome

    def join(self) -> None:
        for thread in self.threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive(), "a site waited for ever"


def same(merged: Update, expected: dict[str, torch.Tensor]) -> None:
    assert set(merged.delta) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(merged.delta[name], tensor), name

"""Merging without rounds over a broker and shared storage: the same merges as in one process, by hand."""

from __future__ import annotations

import threading
import time
from math import sqrt

import pytest
import torch
from broker_enrolment import Enrolment

from medfed.aggregation.fedbuff import FedBuff
from medfed.errors import MedfedError
from medfed.exchange import DropOut, MemoryExchange
from medfed.exchange import _late_updates as late
from medfed.exchange.folder import Folder
from medfed.exchange.nats import Nats
from medfed.federation.config import HubConfig
from medfed.federation.hub import run_hub
from medfed.wire.update import Update
from medfed.wire.weights import Difference

STUDY = "ef" * 32
PATIENCE_S = 60


def model(value: float) -> dict[str, torch.Tensor]:
    return {"w": torch.tensor([value], dtype=torch.float64)}


@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    enrolment = Enrolment(tmp_path_factory.mktemp("federation"), sites=("a", "b", "c"))
    enrolment.start()
    yield enrolment
    enrolment.end()


class Scripted:
    """A hub in a thread, and sites that do what a test says, over one exchange."""

    def __init__(self, kind: str, broker: Enrolment, folder) -> None:
        self.kind, self.broker, self.folder = kind, broker, folder
        self.memory = MemoryExchange(STUDY, asynchronous=True)
        self.hub = None
        self.sides, self.result, self.reports = {}, [], []

    def open(self, party: str):
        if self.kind == "memory":
            return self.memory
        if self.kind == "folder":
            exchange = Folder(url=str(self.folder / "share"), poll_s=0.01)
        else:
            settings = self.broker.exchange_of(party)
            exchange = Nats(**{key: value for key, value in settings.items() if key != "kind"})
        place = self.folder / party
        return exchange.open_hub(STUDY, place) if party == "hub" else exchange.open_site(STUDY, party, place)

    def lead(self, rule: FedBuff, sites: str, rounds: int, folder=None) -> None:
        self.hub = self.open("hub")
        config = HubConfig(rounds=rounds, sites=tuple(sites), rule=rule, study_digest=STUDY)

        def run() -> None:
            try:
                final = run_hub(config, self.hub, model(0.0), folder=folder, on_round=self.reports.append)
                self.result.append(final)
            except MedfedError as error:
                self.result.append(error)
            except SystemExit:
                pass  # killed

        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()

    def fetch(self, site: str, round: int):
        if site not in self.sides:
            self.sides[site] = self.open(site)
        return self.sides[site].fetch(site, round)

    def train(self, site: str, received, to: float) -> None:
        trained = Update(site, received.round + 1, Difference(model(to), received.weights), 1)
        self.sides[site].send(trained)

    def end(self, sites: str) -> float:
        for site in sites:
            final = self.fetch(site, 0)
            while not final.final:
                final = self.fetch(site, final.round + 1)
            self.sides[site].send(Update(site, final.round + 1, {}, 0))
        self.thread.join(PATIENCE_S)
        (final,) = self.result
        assert not isinstance(final, MedfedError), final
        return float(final.weights["w"])

    def close(self) -> None:
        for side in self.sides.values():
            side.close()
        if self.hub is not None:
            getattr(self.hub, "disconnect", self.hub.close)()


@pytest.fixture(params=["memory", "folder", "nats"])
def study(request, tmp_path, broker):
    made = Scripted(request.param, broker, tmp_path)
    yield made
    made.close()


def test_late_updates_count_from_the_model_they_were_made_from_and_weigh_less(study):
    study.lead(FedBuff(buffer=1), "ab", rounds=3)
    first_a, first_b = study.fetch("a", 0), study.fetch("b", 0)
    study.train("a", first_a, to=1.0)
    second_a = study.fetch("a", 1)
    assert float(second_a.weights["w"]) == 1.0
    study.train("b", first_b, to=4.0)  # 4 from 0, one merge late
    assert float(study.fetch("b", 2).weights["w"]) == pytest.approx(1 + 4 / sqrt(2), rel=1e-12)
    study.train("a", second_a, to=2.0)  # 1 from 1, one merge late
    assert study.end("ab") == pytest.approx(1 + 4 / sqrt(2) + 1 / sqrt(2), rel=1e-12)
    merged = [[one.site for one in report.results if one.status == "merged"] for report in study.reports]
    assert merged == [["a"], ["b"], ["a"], []]


def test_two_updates_of_one_site_in_one_buffer_are_both_merged(study):
    study.lead(FedBuff(buffer=1), "abc", rounds=2)
    first = {site: study.fetch(site, 0) for site in "abc"}
    study.train("a", first["a"], to=2.0)
    assert float(study.fetch("a", 1).weights["w"]) == 2.0
    study.train("b", first["b"], to=4.0)  # one late: 2 + 4 / sqrt(2)
    study.fetch("b", 2)
    assert study.end("abc") == pytest.approx(2 + 4 / sqrt(2), rel=1e-12)


def test_a_site_that_stops_is_reported_and_the_others_go_on(study):
    study.lead(FedBuff(buffer=1), "ab", rounds=2)
    received, _ = study.fetch("a", 0), study.fetch("b", 0)
    study.sides["b"].drop_out("b", DropOut.DISK)
    study.train("a", received, to=1.0)
    study.train("a", study.fetch("a", 1), to=2.0)
    assert study.end("a") == 2.0
    results = [one for report in study.reports for one in report.results if one.site == "b"]
    assert "absent" in [one.status for one in results]


def test_a_hub_that_was_killed_after_a_merge_merges_no_update_twice(study, tmp_path):
    """Killed between its checkpoint and what it deletes then: the update still lies in the store."""
    if study.kind == "memory":
        pytest.skip("its hub's side ends with its process")
    run = tmp_path / "run"
    study.lead(FedBuff(buffer=1), "ab", rounds=3, folder=run)
    first_a, first_b = study.fetch("a", 0), study.fetch("b", 0)
    hub = study.hub

    def killed() -> None:
        if hub._late._stored:
            raise SystemExit

    hub._late.clear = killed
    study.train("a", first_a, to=1.0)
    second_a = study.fetch("a", 1)
    study.thread.join(PATIENCE_S)
    hub.disconnect()
    study.lead(FedBuff(buffer=1), "ab", rounds=3, folder=run)
    study.train("b", first_b, to=4.0)
    assert float(study.fetch("b", 2).weights["w"]) == pytest.approx(1 + 4 / sqrt(2), rel=1e-12)
    study.train("a", second_a, to=2.0)
    study.fetch("a", 3)
    assert study.end("ab") == pytest.approx(1 + 5 / sqrt(2), rel=1e-12)


def test_an_update_from_a_model_that_the_hub_no_longer_holds_is_refused(study, monkeypatch):
    if study.kind == "memory":
        pytest.skip("it holds each model from which a site trains")
    monkeypatch.setattr(late, "MAX_MODELS", 1)
    study.lead(FedBuff(buffer=1), "ab", rounds=3)
    first_a, first_b = study.fetch("a", 0), study.fetch("b", 0)
    study.train("a", first_a, to=1.0)
    second_a = study.fetch("a", 1)
    study.train("b", first_b, to=4.0)
    time.sleep(0.1)
    study.train("a", second_a, to=2.0)
    study.train("a", study.fetch("a", 2), to=3.0)
    study.fetch("a", 3)
    assert study.end("ab") == 3.0
    refused = [one for report in study.reports for one in report.results if one.status == "refused"]
    assert [one.site for one in refused] == ["b"]
    assert "trained from the model of round 0, which the hub no longer holds" in refused[0].reason

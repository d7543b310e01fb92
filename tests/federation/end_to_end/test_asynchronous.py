"""Merging without rounds: a scripted study by hand, and real Trainers."""

from __future__ import annotations

import threading
from math import sqrt

import pytest
import torch

import medfed
from medfed.aggregation.fedbuff import FedBuff
from medfed.errors import ExchangeError, StudyError
from medfed.exchange import DropOut, MemoryExchange
from medfed.federation.callback import FederatedCallback
from medfed.federation.config import HubConfig
from medfed.federation.hub import run_hub
from medfed.testing._local_training import Rows, net
from medfed.wire.update import Update
from medfed.wire.weights import Difference, load, weights_of


def model(value: float) -> dict[str, torch.Tensor]:
    return {"w": torch.tensor([value], dtype=torch.float64)}


class Scripted:
    """A hub in a thread, and sites that do what a test says."""

    def __init__(self, rule: FedBuff, sites: str, rounds: int, **plan) -> None:
        self.exchange = MemoryExchange(asynchronous=True)
        self.reports: list = []
        self.result: list = []
        plan = HubConfig(rounds=rounds, sites=tuple(sites), rule=rule, **plan)

        def lead() -> None:
            try:
                self.result.append(run_hub(plan, self.exchange, model(0.0), on_round=self.reports.append))
            except medfed.MedfedError as error:
                self.result.append(error)

        self.thread = threading.Thread(target=lead)
        self.thread.start()

    def fetch(self, site: str, round: int):
        return self.exchange.fetch(site, round)

    def train(self, site: str, received, to: float) -> None:
        self.exchange.send(Update(site, received.round + 1, Difference(model(to), received.weights), 1))

    def end(self, sites: str):
        for site in sites:
            final = self.exchange.fetch(site, 0)
            self.exchange.send(Update(site, final.round + 1, {}, 0))
        self.thread.join(10)
        return self.result[0]


def test_late_updates_count_from_the_model_they_were_made_from_and_weigh_less() -> None:
    study = Scripted(FedBuff(buffer=1), "ab", rounds=3)
    first_a, first_b = study.fetch("a", 0), study.fetch("b", 0)
    study.train("a", first_a, to=1.0)
    second_a = study.fetch("a", 1)
    assert float(second_a.weights["w"]) == 1.0
    study.train("b", first_b, to=4.0)  # 4 from 0, one merge late
    assert float(study.fetch("b", 2).weights["w"]) == pytest.approx(1 + 4 / sqrt(2), rel=1e-12)
    study.train("a", second_a, to=2.0)  # 1 from 1, one merge late
    study.fetch("a", 3)
    final = study.end("ab")
    assert float(final.weights["w"]) == pytest.approx(1 + 4 / sqrt(2) + 1 / sqrt(2), rel=1e-12)
    statuses = [{answer.site: answer.status for answer in report.results} for report in study.reports]
    assert statuses == [
        {"a": "merged", "b": "not sampled"},
        {"a": "not sampled", "b": "merged"},
        {"a": "merged", "b": "not sampled"},
        {"a": "reported", "b": "reported"},
    ]


def test_two_make_a_buffer_of_two_while_the_third_trains_on() -> None:
    study = Scripted(FedBuff(buffer=2), "abc", rounds=2)
    first = {site: study.fetch(site, 0) for site in "abc"}
    study.train("a", first["a"], to=2.0)
    study.train("b", first["b"], to=4.0)
    second = study.fetch("a", 1)
    assert float(second.weights["w"]) == 3.0
    study.train("c", first["c"], to=6.0)
    study.train("a", second, to=5.0)
    study.fetch("a", 2)
    # Half of 6 from 0, one late, and half of 2 from 3.
    assert float(study.end("abc").weights["w"]) == pytest.approx(3 + 0.5 * 6 / sqrt(2) + 0.5 * 2, rel=1e-12)


def test_a_buffer_that_the_sites_left_cannot_fill_is_merged_as_it_is() -> None:
    study = Scripted(FedBuff(buffer=3), "ab", rounds=1)
    received = {site: study.fetch(site, 0) for site in "ab"}
    for site in "ab":
        study.train(site, received[site], to=1.0)
    study.fetch("a", 1)
    assert float(study.end("ab").weights["w"]) == 1.0


def test_a_site_that_stops_is_reported_and_the_others_continue() -> None:
    study = Scripted(FedBuff(buffer=1), "ab", rounds=2)
    received = study.fetch("a", 0)
    study.exchange.drop_out("b", DropOut.DISK, "its disk is full")
    study.train("a", received, to=1.0)
    study.train("a", study.fetch("a", 1), to=2.0)
    study.fetch("a", 2)
    assert float(study.end("a").weights["w"]) == 2.0
    answers = [answer for report in study.reports for answer in report.results if answer.site == "b"]
    assert any("its disk is full" in answer.reason for answer in answers)


def test_models_that_nobody_trains_from_any_more_are_released() -> None:
    study = Scripted(FedBuff(buffer=1), "ab", rounds=5)
    study.fetch("b", 0)
    received = study.fetch("a", 0)
    for number in range(5):
        study.train("a", received, to=float(number))
        received = study.fetch("a", number + 1)
    study.end("ab")
    assert set(study.exchange._models) <= {0, 4, 5}


def test_an_exchange_that_carries_no_late_updates_is_refused() -> None:
    class Plain:
        def publish(self, sent, kept=lambda: None):
            return 0

    plan = HubConfig(rounds=1, sites=("a",), rule=FedBuff())
    with pytest.raises(ExchangeError, match="which this exchange does not carry; use 'memory', 'folder' or"):
        run_hub(plan, Plain(), model(0.0))  # type: ignore[arg-type]


@pytest.mark.parametrize("buffer", [1, 2])
def test_real_trainers_learn_without_rounds(buffer: int) -> None:
    import pytorch_lightning as pl

    reports: list = []

    def site(name: str):
        def work(exchange):
            trainer = pl.Trainer(
                max_epochs=6,
                callbacks=[FederatedCallback(name, exchange, 1, seed=0)],
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                accelerator="cpu",
            )
            trainer.fit(net(), datamodule=Rows(name))

        return work

    sites = {name: site(name) for name in ("east", "north", "south")}
    final = medfed.run_federation(
        sites, weights_of(net()), rule=FedBuff(buffer=buffer), rounds=6, on_round=reports.append
    )
    assert final.round == 6
    merged = [[a.site for a in report.results if a.status == "merged"] for report in reports[:6]]
    assert all(len(names) == buffer for names in merged)

    def loss(module) -> float:
        module.eval()
        rows = [Rows(name).rows.tensors for name in sites]
        with torch.no_grad():
            return sum(
                float(torch.nn.functional.cross_entropy(module.head(module.body(x)), y)) for x, y in rows
            )

    after = net()
    load(after, final.weights)
    assert loss(after) < loss(net())


def test_what_a_study_cannot_do_without_rounds_is_refused(tmp_path) -> None:
    from hospitals import write_study

    study = write_study(tmp_path)
    assert medfed.read_study(study, ["rule.kind=fedbuff"]).rule.buffer == 3
    folder = ["rule.kind=fedbuff", "exchange.kind=folder", "exchange.url=/tmp/x"]
    assert medfed.read_study(study, folder).exchange.url == "/tmp/x"  # which carries late updates, too
    with pytest.raises(
        StudyError, match=r"sampling\.fraction: with rule 'fedbuff' every site trains all the time"
    ):
        medfed.read_study(study, ["rule.kind=fedbuff", "sampling.fraction=0.5"])

"""Sites that share a process: what they raise is raised, and nobody is waited for without end."""

from __future__ import annotations

import ctypes
import logging
import random
import threading

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping
from torch.utils.data import DataLoader, TensorDataset

import medfed
from medfed.aggregation.fedavg import FedAvg
from medfed.errors import QuorumError, SiteError, StudyError
from medfed.exchange import MemoryExchange
from medfed.exchange._idle_threads import _openmp_libraries
from medfed.federation import simulation
from medfed.federation.callback import FederatedCallback
from medfed.federation.config import HubConfig
from medfed.federation.progress_bar import RoundsBar, replace_progress_bar, use_rounds_bar
from medfed.federation.simulation import SiteScheduler, _is_interruption, simulate
from medfed.wire.update import Update
from medfed.wire.weights import weights_of

WEIGHTS = {"w": torch.zeros(2)}


class Net(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Linear(3, 1)

    def training_step(self, batch, index):
        return self.net(batch[0]).square().mean()

    def validation_step(self, batch, index):
        self.log("val/loss", self.net(batch[0]).square().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def loader() -> DataLoader:
    return DataLoader(TensorDataset(torch.ones(8, 3)), 4)


def fit(name, *, module=Net, rounds=2, after=lambda: None, **settings):
    """Return a site that trains by Lightning and then runs `after`."""
    plain = {"logger": False, "enable_checkpointing": False, "accelerator": "cpu",
             "enable_progress_bar": False, "enable_model_summary": False}  # fmt: skip

    def work(exchange):
        callbacks = [FederatedCallback(name, exchange)]
        trainer = pl.Trainer(max_epochs=rounds, callbacks=callbacks, **{**plain, **settings})
        trainer.fit(module(), loader(), loader())
        after()

    return work


def by_hand(name, value=1.0, *, rounds=None, after=lambda: None):
    """Return a site that adds `value` to each weight and runs `after`; it leaves after so many rounds."""

    def work(exchange):
        received = exchange.fetch(name, 0)
        while not received.final and received.round != rounds:
            exchange.send(Update(name, received.round + 1, {"w": torch.full((2,), value)}, 10))
            received = exchange.fetch(name, received.round + 1)
        if received.final:
            exchange.send(Update(name, received.round + 1, {}, 0, {"val/dice": value}))
        after()

    return work


def raising(error):
    def fail():
        raise error

    return fail


def run(sites, rounds=2, **settings):
    return medfed.run_federation(sites, WEIGHTS, rule=FedAvg(), rounds=rounds, **settings)


class Faulty(Net):
    def training_step(self, batch, index):
        raise ValueError("my own bug")


def test_a_modules_exception_is_raised_with_its_site_and_logged_with_its_traceback(caplog):
    sites = {"a": fit("a"), "b": fit("b", module=Faulty)}
    with pytest.raises(QuorumError, match="site 'b', round 1: training stopped with ValueError") as caught:
        medfed.run_federation(sites, weights_of(Net()), rule=FedAvg(), rounds=2)
    assert isinstance(caught.value.__cause__, ValueError)
    assert str(caught.value.__cause__) == "my own bug"
    [record] = [record for record in caplog.records if record.name == "medfed.federation"]
    assert record.levelno == logging.ERROR
    assert "'b'" in record.getMessage()
    assert record.exc_info[1] is caught.value.__cause__
    assert record.exc_info[1].__traceback__ is not None


def test_the_others_stop_at_once_when_too_few_sites_are_left():
    failed = threading.Event()

    def never_sends(exchange):
        exchange.fetch("a", 0)
        failed.set()
        with pytest.raises(medfed.ExchangeError, match="hub has closed the study"):
            exchange.fetch("a", 1)  # without an end of the study this waits for b's round for ever

    def fails(exchange):
        exchange.fetch("b", 0)
        raise ValueError

    with pytest.raises(QuorumError, match=r"round 1: 0 of 2 sites.*a: absent \(the hub closed"):
        run({"a": never_sends, "b": fails})
    assert failed.is_set()


def test_with_enough_sites_left_the_exception_is_logged_only(caplog):
    final = run({"a": by_hand("a", 2.0), "b": by_hand("b", rounds=0, after=raising(ValueError()))}, minimum=1)
    assert final.weights["w"].tolist() == [4.0, 4.0]
    assert [r.getMessage() for r in caplog.records] == ["site 'b' stopped: its function raised ValueError"]


def test_an_exception_after_the_last_round_is_raised_with_the_final_model():
    sites = {"a": by_hand("a", 2.0), "b": by_hand("b", 2.0, after=raising(ValueError("late")))}
    with pytest.raises(SiteError, match="site 'b': training stopped with ValueError") as caught:
        run(sites)
    assert str(caught.value.__cause__) == "late"
    assert caught.value.model.round == 2
    assert caught.value.model.weights["w"].tolist() == [4.0, 4.0]


def test_the_last_merged_model_is_in_the_error():
    sites = {"a": by_hand("a", 2.0), "b": by_hand("b", 2.0, rounds=1)}
    with pytest.raises(QuorumError, match="round 2") as caught:
        run(sites, rounds=3)
    assert (caught.value.model.round, caught.value.model.weights["w"].tolist()) == (1, [2.0, 2.0])
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1)])
def test_an_interrupted_site_ends_all_whatever_the_minimum(error):
    sites = {"a": by_hand("a"), "b": by_hand("b", rounds=1, after=raising(error))}
    with pytest.raises(KeyboardInterrupt, match="a site was interrupted") as caught:
        run(sites, rounds=5, minimum=1)
    assert caught.value.__cause__ is error


def test_lightnings_own_answer_to_an_interruption_is_one():
    def lightnings():
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise ValueError("signal only works in main thread of the main interpreter")  # noqa: B904

    with pytest.raises(ValueError, match="signal") as caught:
        lightnings()
    assert _is_interruption(caught.value)
    assert not _is_interruption(ValueError())


@pytest.mark.parametrize("returned", [lambda exchange: None, by_hand("b", rounds=1)])
def test_a_function_that_returns_early_withdraws_its_site(returned):
    with pytest.raises(QuorumError, match=r"site 'b', round .: its function returned before"):
        run({"a": by_hand("a"), "b": returned})
    assert run({"a": by_hand("a"), "b": returned}, minimum=1).round == 2


def test_a_function_without_closing_scores_does_not_hold_up_the_end():
    reports = []

    def silent(exchange):
        for number in (1, 2):
            exchange.fetch("b", number - 1)
            exchange.send(Update("b", number, {"w": torch.ones(2)}, 10))
        exchange.fetch("b", 2)

    run({"a": by_hand("a"), "b": silent}, on_round=reports.append)
    last = {result.site: result for result in reports[-1].results}
    assert last["a"].status == "reported"
    assert last["b"].status == "absent"
    assert "returned without scores" in last["b"].reason


@pytest.mark.parametrize("wrong", ["nroth", "a"])
def test_another_name_than_the_functions_own_is_refused(wrong):
    with pytest.raises(QuorumError, match=f"site '{wrong}': this function is that of site 'b'"):
        run({"a": by_hand("a"), "b": by_hand(wrong)})


def test_a_name_that_is_none_of_the_studys_is_refused():
    exchange = MemoryExchange(parties=("north", "south"))
    with pytest.raises(medfed.StudyError, match="'nroth' is none of this study's, which are north, south"):
        exchange.fetch("nroth", 0)


def test_a_site_that_never_answers_is_waited_for_until_the_deadline(monkeypatch):
    monkeypatch.setattr(simulation, "MAX_STEP_S", 0.0)
    release = threading.Event()
    with pytest.raises(QuorumError, match=r"a: absent \(nothing came within the deadline of 0.1 s"):
        run({"a": lambda exchange: release.wait()}, deadline_s=0.1)
    release.set()


def test_a_function_that_never_returns_is_left_with_a_warning(caplog):
    release = threading.Event()
    final = run({"a": by_hand("a", after=release.wait)}, rounds=1, deadline_s=0.5)
    release.set()
    assert final.round == 1
    assert "after 0.5 s the functions of these sites still run: a" in caplog.text


def test_default_trainers_of_several_sites_all_go_on_after_fit(capfd):
    after = []
    sites = {
        name: fit(name, enable_progress_bar=True, after=lambda name=name: after.append(name))
        for name in "abc"
    }
    medfed.run_federation(sites, weights_of(Net()), rule=FedAvg(), rounds=2)
    assert sorted(after) == ["a", "b", "c"]
    written = capfd.readouterr()
    assert "2/2" in written.err  # one bar, of the rounds
    assert "Epoch" not in written.out + written.err


def test_a_replaced_bar_returns_after_fit_and_a_disabled_one_stays_disabled():
    shared = RoundsBar(3)
    use_rounds_bar(shared)
    try:
        shown, hidden = pl.Trainer(logger=False), pl.Trainer(logger=False, enable_progress_bar=False)
        assert not replace_progress_bar(hidden)
        assert not shared.shown
        callback = FederatedCallback("a", MemoryExchange())
        callback.setup(shown, Net(), "fit")
        assert shown.progress_bar_callback.is_disabled
        assert shared.shown
        callback.teardown(shown, Net(), "fit")
        assert shown.progress_bar_callback.is_enabled
    finally:
        use_rounds_bar(None)
        shared.close()


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002


def seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)


def test_a_site_that_waits_goes_on_with_its_own_random_states() -> None:
    scheduler, drawn, order = SiteScheduler(), {}, []
    north_waits, south_done = threading.Event(), threading.Event()

    def north() -> None:
        with scheduler.turn():
            seed_all(1)
            first = draw()
            with scheduler.idle():
                north_waits.set()
                assert south_done.wait(20)
            order.append("north")
            drawn["north"] = (first, draw())

    def south() -> None:
        assert north_waits.wait(20)
        with scheduler.turn():
            seed_all(2)
            order.append("south")
            drawn["south"] = (draw(), draw())
        south_done.set()

    seed_all(3)
    threads = [threading.Thread(target=site) for site in (north, south)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert order == ["south", "north"]
    after = draw()
    for seed, site in ((1, "north"), (2, "south")):
        seed_all(seed)
        assert drawn[site] == (draw(), draw())
    seed_all(3)
    assert after == draw()


def test_one_site_works_at_a_time() -> None:
    scheduler, working, most = SiteScheduler(), [0], [0]

    def site() -> None:
        with scheduler.turn():
            for _ in range(50):
                working[0] += 1
                most[0] = max(most[0], working[0])
                working[0] -= 1
                with scheduler.idle():
                    pass

    threads = [threading.Thread(target=site) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert most == [1]


def test_a_function_is_needed_for_each_site_of_the_hub() -> None:
    config = HubConfig(1, ("north", "south"), FedAvg())
    with pytest.raises(
        StudyError,
        match=r"^simulate: HubConfig\.sites are north, south, functions are given for north, west;",
    ):
        simulate({"west": lambda exchange: None, "north": lambda exchange: None}, {}, config)


class Constant(Net):
    """Has a validation loss that never improves."""

    def validation_step(self, batch, index):
        self.log("val/loss", torch.tensor(1.0))


@pytest.mark.parametrize(
    "settings, epochs",
    [
        # Two batches an epoch: four steps are two epochs.
        ({"max_steps": 4}, 2),
        # A first epoch sets the best loss, and a second without a better one ends patience 1.
        ({"callbacks": [EarlyStopping("val/loss", patience=1)]}, 2),
    ],
)
def test_a_site_that_stops_early_says_so_and_the_merged_model_is_in_the_error(settings, epochs):
    def stops(exchange):
        callbacks = [FederatedCallback("b", exchange), *settings.get("callbacks", [])]
        trainer = pl.Trainer(
            max_epochs=5, logger=False, enable_checkpointing=False, accelerator="cpu",
            enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
            **{**settings, "callbacks": callbacks},
        )  # fmt: skip
        trainer.fit(Constant(), loader(), loader())

    sites = {"a": fit("a", rounds=5), "b": stops}
    with pytest.raises(
        QuorumError, match=f"'b', round 3: its Trainer stopped in epoch {epochs} of 5"
    ) as caught:
        medfed.run_federation(sites, weights_of(Net()), rule=FedAvg(), rounds=5)
    assert caught.value.model.round == 2


def test_a_trainer_with_too_few_epochs_says_so():
    sites = {"a": fit("a", rounds=3), "b": fit("b", rounds=2)}
    with pytest.raises(QuorumError, match="round 3: its Trainer reached max_epochs before"):
        medfed.run_federation(sites, weights_of(Net()), rule=FedAvg(), rounds=3)


def test_a_site_computes_with_the_callers_number_of_threads():
    """oneDNN asks OpenMP itself, and a sum over other threads has other bits."""
    before, seen = torch.get_num_threads(), []
    libraries = [ctypes.CDLL(path) for path in _openmp_libraries()]

    def site(exchange):
        seen.extend(one.omp_get_max_threads() for one in libraries if hasattr(one, "omp_get_max_threads"))

    torch.set_num_threads(before + 1)
    try:
        with pytest.raises(QuorumError, match="round 1: 0 of 1 sites"):
            medfed.run_federation({"a": site}, WEIGHTS, rule="fedavg", rounds=1)
    finally:
        torch.set_num_threads(before)
    assert before + 1 in seen

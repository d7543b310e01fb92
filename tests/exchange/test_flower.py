"""Flower's exchange without Flower: its FedAvg over the hand-over folders, refusals, and what is imported."""

from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from network import ask_all, fedavg
from network_trainer import CASES, ROUNDS, Model, in_memory, largest_difference, train
from pytorch_lightning.callbacks import ModelCheckpoint

import medfed
from medfed.errors import ExchangeError, RegistryError, StudyError
from medfed.exchange.flower import Flower
from medfed.privacy.secure_sum import SecureSum
from medfed.registry import kind_named

# Flower merges in float32, site by site, and medfed in float64: each merge rounds a value of size 1 by at
# most 2^-23, and training carries that on. Measured: 3.4e-7 after three rounds.
BOUND = 5e-6


def test_two_hospitals_in_a_flower_network_train_what_they_train_in_medfeds(tmp_path):
    finals = {}

    def hospital(name):
        exchange = Flower(rounds=ROUNDS, handoff=str(tmp_path / f"{name}-handoff"), metrics=("val/loss",))
        with medfed.open_site(exchange, name, study="s", folder=tmp_path / name, timeout_s=60) as side:
            finals[name] = train(name, side)

    threads = [threading.Thread(target=hospital, args=(name,)) for name in CASES]
    for thread in threads:
        thread.start()
    folders = [tmp_path / f"{name}-handoff" for name in CASES]
    arrays = {name: tensor.numpy() for name, tensor in Model().state_dict().items()}
    for round in range(1, ROUNDS + 1):
        answers = ask_all(folders, "train", round, arrays)
        assert [answer.numbers["num-examples"] for answer in answers] == [*CASES.values()]
        arrays = fedavg(answers)
        scores = ask_all(folders, "evaluate", round, arrays)
    for thread in threads:
        thread.join(60)
    expected = in_memory()
    assert largest_difference(expected, arrays) < BOUND
    for module in finals.values():  # the last evaluation brought each site the merged model
        assert largest_difference({n: torch.as_tensor(arrays[n]) for n in expected}, module.state_dict()) == 0
    assert all(np.isfinite(answer.numbers["val/loss"]) for answer in scores)


def test_what_needs_medfeds_hub_is_refused_before_training(tmp_path):
    exchange = Flower(rounds=ROUNDS, handoff=str(tmp_path / "handoff"))
    for options, match in (
        ({"privacy": SecureSum()}, "site 'north': privacy: 'secure_sum' is half done by medfed's hub"),
        ({"local": "scaffold"}, "site 'north': local: 'scaffold' is half of a method whose other half is"),
        (
            {"compress": [kind_named("compression", "int8")]},
            "site 'north': compress: 'int8' is undone by",
        ),
    ):
        with (
            medfed.open_site(exchange, "north", study="s", folder=tmp_path / "north") as side,
            pytest.raises(StudyError, match=match),
        ):
            train("north", side, **options)
    (answer,) = ask_all([tmp_path / "handoff"], "train", 1, {"w": np.ones(1, np.float32)})
    assert answer.error == "it cannot run the study, or this hospital no longer approves it"


def test_it_is_no_hub_and_shows_no_study(tmp_path):
    exchange = Flower(rounds=1, handoff=str(tmp_path))
    with pytest.raises(ExchangeError, match=r"whose hub is not medfed's \(a Flower SuperLink and its"):
        exchange.open_hub("", tmp_path)
    with pytest.raises(ExchangeError, match="'flower' offers no study that a hospital could approve"):
        exchange.offered_studies("north")
    with pytest.raises(RegistryError, match="'flower' has settings without defaults"):
        kind_named("exchange", "flower")


def test_the_bridge_imports_no_torch():
    """A ClientApp's process starts for every message."""
    code = "import medfed.exchange.flower, sys; assert not {'torch', 'monai', 'numpy'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_trainer_that_was_killed_answers_the_round_that_waits_for_it(tmp_path):
    """It goes on from its Trainer's checkpoint, and the network ends with the undisturbed run's model."""

    class Killed(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == ROUNDS - 1:
                raise SystemExit

    def hospital(name, *callbacks, resume=None):
        exchange = Flower(rounds=ROUNDS, handoff=str(tmp_path / f"{name}-handoff"))
        with medfed.open_site(exchange, name, study="s", folder=tmp_path / name, timeout_s=60) as side:
            train(
                name, side, callbacks=[*callbacks, ModelCheckpoint(tmp_path / name / "models")], resume=resume
            )

    def disturbed():
        with pytest.raises(SystemExit):
            hospital("north", Killed())
        (checkpoint,) = (tmp_path / "north" / "models").glob("*.ckpt")
        hospital("north", resume=checkpoint)

    threads = [threading.Thread(target=disturbed), threading.Thread(target=hospital, args=("south",))]
    for thread in threads:
        thread.start()
    folders = [tmp_path / f"{name}-handoff" for name in CASES]
    arrays = {name: tensor.numpy() for name, tensor in Model().state_dict().items()}
    for round in range(1, ROUNDS + 1):
        arrays = fedavg(ask_all(folders, "train", round, arrays))
        ask_all(folders, "evaluate", round, arrays)
    for thread in threads:
        thread.join(60)
    assert largest_difference(in_memory(), arrays) < BOUND

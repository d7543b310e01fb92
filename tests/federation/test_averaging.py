"""The mean of the last rounds' models: by hand, over a resumed run, and what cannot have one."""

from __future__ import annotations

import json

import pytest
import torch
from torch.optim.swa_utils import AveragedModel

from medfed.aggregation.cyclic import Cyclic
from medfed.aggregation.fedavg import FedAvg
from medfed.aggregation.fedavgm import FedAvgM
from medfed.errors import RunError, StudyError
from medfed.exchange import ReceivedUpdate
from medfed.federation.averaging import averaged
from medfed.federation.config import HubConfig
from medfed.federation.hub import run_hub
from medfed.federation.model_selection import ModelSelection
from medfed.privacy.ckks import Ckks
from medfed.study.averaging import Ema
from medfed.wire.audit_log import AuditLog
from medfed.wire.update import GlobalModel, Update

SITES = ("north", "south")


class Squares:
    """An exchange whose sites move the weight of round r - 1 to r squared, whatever it was."""

    def __init__(self, stop_in: int | None = None) -> None:
        self.published, self.stop_in = [], stop_in

    def publish(self, model, ensure_saved=lambda: None):
        ensure_saved()
        self.published.append(model)
        return 100

    def newest_published(self, after):
        newest = self.published[-1] if self.published else None
        return newest if newest is not None and newest.round > after else None

    def collect(self, round, sites, deadline_s):
        if round == self.stop_in:
            raise KeyboardInterrupt
        model = self.published[-1]
        for site in sites:
            delta = {} if model.final else {"w": round**2 - model.weights["w"]}
            yield ReceivedUpdate(site, Update(site, round, delta, 0 if model.final else 5))


def run(exchange, *, folder=None, audit=None, on_round=lambda report: None, **settings):
    config = HubConfig(**{"rounds": 5, "sites": SITES, "rule": FedAvg(), **settings})
    start = {"w": torch.zeros(3)}
    return run_hub(config, exchange, start, folder=folder, audit=audit, on_round=on_round)


def test_the_last_model_is_the_mean_of_the_last_rounds_and_no_round_trains_from_a_mean(tmp_path):
    exchange, reports, log = Squares(), [], tmp_path / "audit.jsonl"
    final = run(exchange, average=3, audit=AuditLog(log), on_round=reports.append)
    # Rounds 3, 4 and 5 end at 9, 16 and 25: a mean of 50 / 3.
    torch.testing.assert_close(final.weights["w"], torch.full((3,), 50 / 3))
    assert [float(model.weights["w"][0]) for model in exchange.published[:5]] == [0, 1, 4, 9, 16]
    assert exchange.published[-1].final
    torch.testing.assert_close(exchange.published[-1].weights["w"], torch.full((3,), 50 / 3))
    sentence = "Training ended after 5 of 5 rounds; the model is the mean of the models of rounds 3 to 5."
    assert reports[-1].choice.sentence == sentence
    assert not reports[-1].choice.by_validation
    (line,) = [one for one in map(json.loads, log.read_text().splitlines()) if one["event"] == "averaged"]
    assert line["reason"] == sentence


def test_without_the_key_it_is_the_last_model():
    reports = []
    assert run(Squares(), on_round=reports.append).weights["w"].tolist() == [25.0] * 3
    assert reports[-1].choice is None


@pytest.mark.parametrize("rule", [FedAvg(), FedAvgM()])
@pytest.mark.parametrize("killed_in", [2, 4, 5])
def test_a_resumed_run_ends_with_the_same_bits(tmp_path, rule, killed_in):
    whole = run(Squares(), average=3, rule=rule)
    with pytest.raises(KeyboardInterrupt):
        run(Squares(stop_in=killed_in), average=3, rule=rule, folder=tmp_path)
    resumed = run(Squares(), average=3, rule=rule, folder=tmp_path)
    assert torch.equal(resumed.weights["w"], whole.weights["w"])


# The mean is of rounds 3 to 5: a checkpoint of round 4 holds a part of it, one of round 1 nothing.
@pytest.mark.parametrize(("stop_in", "published"), [(5, 5), (2, 4), (2, 3)])
def test_a_mean_that_only_a_lost_checkpoint_held_is_not_begun_anew(tmp_path, stop_in, published):
    with pytest.raises(KeyboardInterrupt):
        run(Squares(stop_in=stop_in), average=3, folder=tmp_path)
    exchange = Squares()
    exchange.published.append(GlobalModel(published, {"w": torch.full((3,), 25.0)}))
    with pytest.raises(
        RunError, match=r"What else this study's checkpoints hold \(average\) was not published"
    ):
        run(exchange, average=3, folder=tmp_path)


def test_a_back_up_from_before_the_first_round_of_the_mean_goes_on(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(Squares(stop_in=2), average=3, folder=tmp_path)
    exchange = Squares()
    exchange.published.append(GlobalModel(2, {"w": torch.full((3,), 4.0)}))
    final = run(exchange, average=3, folder=tmp_path)
    torch.testing.assert_close(final.weights["w"], torch.full((3,), 50 / 3))


def test_the_mean_is_torchs_and_keeps_the_type():
    models = [torch.nn.Linear(4, 3).half().float() for _ in range(4)]
    reference = AveragedModel(models[0])
    mean = None
    for number, model in enumerate(models, start=7):
        reference.update_parameters(model)
        merged = {name: value.half() for name, value in model.state_dict().items()}
        weights, mean = averaged(merged, mean, round=number, rounds=10, average=4)
    for name, value in reference.module.state_dict().items():
        assert weights[name].dtype == torch.float16
        torch.testing.assert_close(weights[name].float(), value, atol=1e-3, rtol=0)


def test_a_moving_average_weighs_a_model_by_its_age_and_its_weights_sum_to_one(tmp_path):
    exchange, reports = Squares(), []
    final = run(exchange, rounds=3, average=Ema(decay=0.5), on_round=reports.append)
    # Rounds 1, 2 and 3 end at 1, 4 and 9, with 1/4, 1/2 and 1 of the newest's weight: (1 + 8 + 36) / 7.
    torch.testing.assert_close(final.weights["w"], torch.full((3,), 45 / 7))
    assert [float(model.weights["w"][0]) for model in exchange.published[:3]] == [0, 1, 4]
    choice = reports[-1].choice
    assert not choice.by_validation
    assert choice.sentence == (
        "Training ended after 3 of 3 rounds; the model is the moving average of the models of rounds 1 to 3, "
        "with a decay of 0.5."
    )
    with pytest.raises(KeyboardInterrupt):
        run(Squares(stop_in=3), rounds=3, average=Ema(decay=0.5), folder=tmp_path)
    resumed = run(Squares(), rounds=3, average=Ema(decay=0.5), folder=tmp_path)
    assert torch.equal(resumed.weights["w"], final.weights["w"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"average": Ema(), "rule": Cyclic()}, "with rule 'cyclic' a round's model is of the hospitals"),
        ({"average": Ema(), "selection": ModelSelection()}, "a selection ends with one round's model"),
        ({"average": 6}, "the mean is to be over the last 6 rounds, and the study has 5"),
        (
            {"average": 2, "rule": Cyclic()},
            "with rule 'cyclic' a round's model is of the hospitals that answered",
        ),
        ({"average": 2, "privacy": Ckks()}, "privacy 'ckks' encrypts a part of the model"),
        ({"average": 2, "selection": ModelSelection()}, "a selection ends with one round's model"),
    ],
)
def test_a_hub_that_could_make_no_mean_is_refused(settings, message):
    with pytest.raises(StudyError, match=rf"HubConfig\.average: {message}"):
        run(Squares(), **settings)

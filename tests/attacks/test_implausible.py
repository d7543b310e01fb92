"""An update far too long to come from training is refused like one with NaN, and no honest one is."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from answering import SITES, answer, model
from simulated import simulated

from medfed.aggregation.fedavg import FedAvg
from medfed.aggregation.median import Median
from medfed.errors import QuorumError
from medfed.privacy import NoPrivacy
from medfed.privacy.client_dp import ClientDP
from medfed.privacy.secure_sum import SecureSum
from medfed.runs.rounds import RoundReport
from medfed.study.reading import read_study
from medfed.wire.audit_log import AuditLog
from medfed.wire.update import DEFAULT_OUTLIER_FACTOR
from medfed.wire.weights import digest, norm

# ---------------------------------------------------------------------------------------------- in a study


class Scales:
    """A hostile or broken site's exchange that multiplies the update of one round."""

    def __init__(self, exchange, round: int, factor: float) -> None:
        self._exchange, self._round, self._factor = exchange, round, factor

    def __getattr__(self, name: str):
        return getattr(self._exchange, name)

    def transmission(self, update):
        return self._exchange.transmission(update)

    def send(self, update):
        if update.round == self._round:
            delta = {name: tensor * self._factor for name, tensor in update.delta.items()}
            update = replace(update, delta=delta)
        self._exchange.send(update)


def study(tmp_path, rounds: int = 3, privacy=None, resumed: bool = False, **settings):
    """Return model, round reports and audit log; west's second update is multiplied by a million."""
    privacy, reports = privacy or NoPrivacy(), []
    log = tmp_path / "audit.jsonl"

    def site(name: str):
        def work(exchange):
            side = Scales(exchange, 2, 1e6) if name == "west" else exchange
            answer(side, privacy, name)

        return work

    def watch(report: RoundReport) -> None:
        reports.append(report)
        if resumed and report.round == 1:
            raise KeyboardInterrupt  # the hub is killed once the first round is merged

    def run(**more):
        return simulated(
            {name: site(name) for name in SITES},
            model(),
            rounds=rounds,
            privacy=privacy,
            audit=AuditLog(log),
            folder=tmp_path / "hub",
            **{"rule": FedAvg(), "minimum": 2, "on_round": watch, **settings, **more},
        )

    if resumed:
        with pytest.raises(KeyboardInterrupt):
            run()
    final = run(on_round=reports.append)
    return final, reports, [json.loads(line) for line in log.read_text().splitlines()]


def test_a_million_times_an_update_is_refused_and_the_study_goes_on(tmp_path):
    final, reports, lines = study(tmp_path)
    (second,) = [report for report in reports if report.round == 2]
    status = {one.site: one.status for one in second.results}
    assert status == {"north": "merged", "south": "merged", "west": "refused"}
    (why,) = [one.reason for one in second.results if one.site == "west"]
    assert "update of site 'west' for round 2: its norm is" in why
    (line,) = [line for line in lines if line["event"] == "refused"]
    assert (line["site"], line["round"], line["reason"]) == ("west", 2, why)
    merged = [line["sites"] for line in lines if line["event"] == "merged" and "sites" in line]
    assert merged == [["north", "south", "west"], ["north", "south"], ["north", "south", "west"]]
    # Each round adds random numbers of deviation 1: the multiplied update did not reach the model.
    assert float((final.weights["a"] - model()["a"]).abs().max()) < 10


def test_a_run_that_is_killed_and_resumed_ends_with_the_same_bytes(tmp_path):
    whole, _, _ = study(tmp_path / "whole")
    resumed, _, _ = study(tmp_path / "resumed", resumed=True)
    assert digest(whole.weights) == digest(resumed.weights)


def test_left_to_the_rule_it_is_merged(tmp_path):
    final, _, lines = study(tmp_path, outlier=None)
    assert not [line for line in lines if line["event"] == "refused"]
    # By hand: a third of a million times numbers of deviation 1.
    assert float((final.weights["a"] - model()["a"]).abs().max()) > 1e5
    robust, _, _ = study(tmp_path / "robust", outlier=None, rule=Median())
    assert float((robust.weights["a"] - model()["a"]).abs().max()) < 10


def test_what_refusals_leave_must_still_be_enough(tmp_path):
    with pytest.raises(
        QuorumError, match=r"2 of 3 sites sent a valid update.*west: refused \(update of site 'west'"
    ):
        study(tmp_path, minimum=3)


def test_where_the_hub_clips_each_update_it_need_not_judge_any(tmp_path):
    final, _, lines = study(tmp_path, rounds=2, privacy=ClientDP(noise_multiplier=1e-9, clip=3.0))
    assert not [line for line in lines if line["event"] == "refused"]
    # By hand: two rounds of a mean of updates of norm 3 each, and almost no noise.
    far = {name: tensor - model()[name] for name, tensor in final.weights.items()}
    assert norm(far) <= 6.001


def test_where_the_hub_sees_no_single_update_it_judges_none(tmp_path):
    _, _, lines = study(tmp_path, rounds=1, privacy=SecureSum(bits=32, limit=16))
    assert not [line for line in lines if line["event"] == "refused"]


def test_a_study_says_it_and_can_set_it_off(tmp_path):
    text = (
        "name: s\ntask: {kind: classify, classes: [a, b]}\nnetwork: {kind: densenet121}\ndata: {kind: "
        "images}\n"
        "train: {rounds: 1}\nsites: [a, b]\n"
    )
    (tmp_path / "study.yaml").write_text(text)
    assert read_study(tmp_path / "study.yaml").sampling.outlier == DEFAULT_OUTLIER_FACTOR
    assert read_study(tmp_path / "study.yaml", ["sampling.outlier=null"]).sampling.outlier is None
    with pytest.raises(Exception, match=r"--set sampling.outlier: found 2; expected a number .*>= 10"):
        read_study(tmp_path / "study.yaml", ["sampling.outlier=2"])

"""An update far too long to come from training is refused like one with NaN, and no honest one is."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import pytest
import torch
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
from medfed.wire.update import DEFAULT_OUTLIER_FACTOR, Update, outlier_errors
from medfed.wire.weights import Difference, digest, norm

# 100 weights of 3 give a model of norm 30. An update of n / 10 at each weight has norm n.
WEIGHTS = {"a": torch.full((100,), 3.0)}


def of_length(site: str, length: float) -> Update:
    return Update(site, 3, {"a": torch.full((100,), length / 10, dtype=torch.float64)}, 5)


def refused(*lengths: float, weights=WEIGHTS, times: float = DEFAULT_OUTLIER_FACTOR) -> list[int]:
    """Return which updates of these norms are refused."""
    sent = [of_length(f"s{number}", length) for number, length in enumerate(lengths)]
    return [number for number, why in enumerate(outlier_errors(sent, weights, times)) if why is not None]


@pytest.mark.parametrize(
    "lengths, expected",
    [
        ((1, 2, 1e6), [2]),
        ((1, 2, 3e6, 1e6, 2), [2, 3]),
        # 1,000 times the median of 1, 2 and the long one is 2,000.
        ((1, 2, 1999.9), []),
        ((1, 2, 2000.1), [2]),
        # Of an even number of updates, the lower middle one counts, so one of two sites cannot
        # raise the limit.
        ((1, 1e6), [1]),
        ((1e6, 1), [0]),
        # Two tiny updates do not make an honest one too long: up to 10 times the model, 300,
        # all are accepted.
        ((1e-9, 1e-9, 299), []),
        ((0, 0, 301), [2]),
        # A single update is compared with the model: 1,000 times 30.
        ((29_999,), []),
        ((30_001,), [0]),
    ],
)
def test_what_is_refused_by_hand(lengths, expected):
    assert refused(*lengths) == expected


def test_a_model_of_zeros_counts_as_one_of_tenths():
    zeros = {"a": torch.zeros(100)}  # 100 weights of 0.1 have norm 1, and 10 times that is always allowed
    assert refused(0, 0, 9.9, weights=zeros) == []
    assert refused(0, 0, 10.1, weights=zeros) == [2]
    assert refused(999, weights=zeros) == []
    assert refused(1001, weights=zeros) == [0]


def test_it_does_not_depend_on_who_comes_first():
    lengths = (1, 2, 3, 1e6, 1e7)
    for order in itertools.permutations(range(5)):
        found = refused(*(lengths[number] for number in order))
        assert {lengths[order[number]] for number in found} == {1e6, 1e7}


def test_the_reason_names_who_what_and_the_setting():
    (_, _, why) = outlier_errors(
        [of_length("a", 1), of_length("b", 2), of_length("north", 1e6)], WEIGHTS, 1000
    )
    assert str(why).startswith(
        "update of site 'north' for round 3: its norm is 1e+06, the median of this round's 2; more than "
        "2e+03 is not from "
        "training (sampling.outlier)"
    )


def test_numbers_that_overflow_a_norm_are_refused():
    huge = Update("north", 3, {"a": torch.full((100,), 1e200, dtype=torch.float64)}, 5)
    (_, _, why) = outlier_errors([of_length("a", 1), of_length("b", 2), huge], WEIGHTS, 1000)
    assert "its norm is inf" in str(why)


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


def test_a_difference_has_the_length_of_its_numbers():
    generator = torch.Generator().manual_seed(1)
    one = {"a": torch.randn(300, 400, generator=generator), "b": torch.randn((), generator=generator)}
    two = {"a": torch.randn(300, 400, generator=generator), "b": torch.randn((), generator=generator)}
    plain = torch.cat([(one[name].double() - two[name].double()).reshape(-1) for name in one])
    assert norm(Difference(one, two)) == pytest.approx(float(torch.linalg.vector_norm(plain)), rel=1e-12)
    assert norm({"a": torch.tensor([3.0]), "b": torch.tensor([[4.0]]), "empty": torch.zeros(0)}) == 5

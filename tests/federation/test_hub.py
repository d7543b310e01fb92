"""Which sites the hub asks in a round, and the order of a study's models and reports."""

from __future__ import annotations

import re
import shutil

import pytest
import torch

from medfed.aggregation.cyclic import Cyclic
from medfed.aggregation.fedavg import FedAvg
from medfed.aggregation.fedavgm import FedAvgM
from medfed.aggregation.feddyn import FedDyn
from medfed.errors import ExchangeError, QuorumError, RunError, SiteError, StudyError
from medfed.exchange import ReceivedUpdate
from medfed.federation.checkpoints import keep_report
from medfed.federation.config import HubConfig
from medfed.federation.hub import run_hub, sample_sites
from medfed.federation.membership import first_rounds, recorded_joins
from medfed.privacy.secure_sum import SecureSum
from medfed.runs.rounds import RoundReport
from medfed.wire.update import GlobalModel, Update


def test_sampling_is_drawn_from_seed_and_round_alone():
    config = HubConfig(rounds=1, sites=tuple("abcdef"), rule=FedAvg(), fraction=0.5, minimum=2, seed=4)
    drawn = [sample_sites(config, number) for number in range(1, 200)]
    assert drawn == [sample_sites(config, number) for number in range(1, 200)]
    assert {len(sites) for sites in drawn} == {3}
    counts = [sum(site in sites for sites in drawn) for site in "abcdef"]
    # 199 draws of 3 of 6: 99.5 each on average, standard deviation 7; five of them is far outside chance.
    assert all(abs(count - 99.5) < 35 for count in counts)
    assert sample_sites(
        HubConfig(rounds=1, sites=tuple("ab"), rule=FedAvg(), fraction=0.1, minimum=2), 1
    ) == ("a", "b")


def test_a_rule_of_one_site_asks_each_in_turn():
    config = HubConfig(rounds=5, sites=("south", "north", "west"), rule=Cyclic())
    assert [sample_sites(config, round) for round in (1, 2, 3, 4)] == [
        ("north",), ("south",), ("west",), ("north",),
    ]  # fmt: skip


def test_a_share_is_rounded_up_and_never_below_the_minimum():
    def asked(sites: int, fraction: float, minimum: int) -> int:
        names = tuple(str(number) for number in range(sites))
        config = HubConfig(rounds=1, sites=names, rule=FedAvg(), fraction=fraction, minimum=minimum)
        return len(sample_sites(config, 1))

    # 0.3 * 10 is 3, although 0.1 * 3 is above it in binary; 0.31 * 10 is rounded up to 4.
    assert [asked(10, fraction, 1) for fraction in (0.1 * 3, 0.31, 1.0)] == [3, 4, 10]
    assert [asked(10, 0.1, minimum) for minimum in (1, 5, 20)] == [1, 5, 10]


class Script:
    """An exchange whose sites answer at once: each adds its own number to every weight."""

    def __init__(self, adds: dict[str, float]) -> None:
        self.adds, self.published = adds, []

    def publish(self, model, ensure_saved=lambda: None):
        ensure_saved()
        self.published.append(model)
        return 100

    def newest_published(self, after):
        newest = self.published[-1] if self.published else None
        return newest if newest is not None and newest.round > after else None

    def collect(self, round, sites, deadline_s):
        final = self.published[-1].final
        for site in sites:
            if site not in self.adds:
                yield ReceivedUpdate(site, None, SiteError(f"site '{site}' stopped"))
            elif final:
                yield ReceivedUpdate(site, Update(site, round, {}, 0, {"val/dice": self.adds[site]}))
            else:
                delta = {"w": torch.full((1,), self.adds[site])}
                yield ReceivedUpdate(site, Update(site, round, delta, 5))


def run(adds, **settings):
    exchange, reports, models = Script(adds), [], []
    config = HubConfig(**{"rounds": 2, "sites": ("north", "south"), "rule": FedAvg(), **settings})
    weights = {"w": torch.zeros(1)}
    final = run_hub(config, exchange, weights, on_round=reports.append, on_model=models.append)
    return final, exchange, reports, models


def test_a_study_publishes_each_model_and_collects_scores_of_the_last():
    final, exchange, reports, models = run({"north": 1.0, "south": 3.0, "far": 9.0}, evaluating=("far",))
    # By hand: each round adds (1 + 3) / 2.
    assert [float(model.weights["w"]) for model in exchange.published] == [0.0, 2.0, 4.0]
    assert [model.final for model in exchange.published] == [False, False, True]
    assert [model.participants for model in exchange.published] == [None, None, ()]
    assert (final.round, float(final.weights["w"])) == (2, 4.0)
    assert [model.round for model in models] == [0, 1, 2]
    assert [report.round for report in reports] == [1, 2, 3]
    # A site that only evaluates is asked at the end, and not before.
    assert [result.site for result in reports[0].results] == ["north", "south"]
    assert {result.site: (result.status, dict(result.scalars)) for result in reports[2].results} == {
        "far": ("reported", {"val/dice": 9.0}),
        "north": ("reported", {"val/dice": 1.0}),
        "south": ("reported", {"val/dice": 3.0}),
    }


def test_a_site_that_was_not_asked_and_one_that_reports_nothing_are_in_the_report():
    _, exchange, reports, _ = run({"north": 1.0, "west": 1.0}, sites=("north", "west", "gone"), fraction=0.5)
    for model, report in zip(exchange.published, reports[:2], strict=False):
        asked = set(model.participants)
        assert len(asked) == 2
        for result in report.results:
            expected = "not sampled" if result.site not in asked else "merged"
            assert result.status == ("absent" if result.site == "gone" and result.site in asked else expected)
    closing = {result.site: (result.status, result.reason) for result in reports[2].results}
    assert closing["gone"] == ("absent", "site 'gone' stopped")


def restored_from(folder, exchange, rule, rounds=3):
    config = HubConfig(rounds=rounds, sites=("north", "south"), rule=rule)
    return run_hub(config, exchange, {"w": torch.zeros(1)}, folder=folder)


def test_a_hub_restored_from_a_back_up_goes_on_from_the_model_that_it_published(tmp_path, caplog):
    exchange = Script({"north": 1.0, "south": 3.0})
    restored_from(tmp_path / "run", exchange, FedAvg(), rounds=1)  # (1 + 3) / 2 a round: 2
    shutil.copytree(tmp_path / "run", tmp_path / "back-up")
    exchange.published.append(GlobalModel(2, {"w": torch.tensor([7.0])}))
    final = restored_from(tmp_path / "back-up", exchange, FedAvg())
    assert [model.round for model in exchange.published][-2:] == [2, 3]
    assert float(final.weights["w"]) == 9.0  # the published 7 and one round
    assert "of round 1, but it has published the model of round 2" in caplog.text


@pytest.mark.parametrize("killed_in", [1, 2, 3])
def test_a_hub_killed_between_checkpoint_and_record_leaves_no_round_out_of_the_record(tmp_path, killed_in):
    exchange, reports = Script({"north": 1.0, "south": 3.0}), []
    config = HubConfig(rounds=3, sites=("north", "south"), rule=FedAvg())

    def recording(report):
        if report.round == killed_in and not killed:
            killed.append(report)
            raise KeyboardInterrupt
        reports.append(report)

    killed: list = []
    start = {"w": torch.zeros(1)}
    with pytest.raises(KeyboardInterrupt):
        run_hub(config, exchange, start, folder=tmp_path, on_round=recording)
    run_hub(config, exchange, start, folder=tmp_path, on_round=recording)
    assert [report.round for report in reports] == [1, 2, 3, 4]
    assert reports[killed_in - 1] == killed[0]
    assert not (tmp_path / "unrecorded.json").exists()
    # A report of a round whose checkpoint was not written is none of a round that was merged.
    keep_report(tmp_path, RoundReport(4, (), 0.0, 0))
    run_hub(config, exchange, start, folder=tmp_path, on_round=recording)
    assert [report.round for report in reports] == [1, 2, 3, 4, 4]
    assert reports[-1].final


def test_a_back_up_of_a_rule_with_a_state_is_refused(tmp_path):
    exchange = Script({"north": 1.0, "south": 3.0})
    restored_from(tmp_path, exchange, FedAvgM(), rounds=1)
    exchange.published.append(GlobalModel(2, {"w": torch.tensor([7.0])}))
    with pytest.raises(
        RunError, match=r"What else this study's checkpoints hold \(.+\) was not published; restore"
    ):
        restored_from(tmp_path, exchange, FedAvgM())


def test_a_site_joins_in_its_round_and_is_asked_from_then_on():
    final, exchange, reports, _ = run({"north": 1.0, "south": 3.0}, rounds=3, joins={"south": 2})
    # By hand: round 1 adds 1, rounds 2 and 3 add (1 + 3) / 2.
    assert [float(model.weights["w"]) for model in exchange.published] == [0.0, 1.0, 3.0, 5.0]
    assert [model.participants for model in exchange.published[:3]] == [
        ("north",),
        ("north", "south"),
        ("north", "south"),
    ]
    assert [[one.site for one in report.results] for report in reports[:2]] == [["north"], ["north", "south"]]
    assert float(final.weights["w"]) == 5.0


class Joined(Script):
    """An exchange to which south has come once the model of a round is published."""

    def __init__(self, adds, after: int) -> None:
        super().__init__(adds)
        self.after = after

    def joined_sites(self):
        return {"south"} if len(self.published) > self.after else set()


def test_a_site_that_the_exchange_brings_is_asked_from_the_next_round_on_and_after_a_restart(tmp_path):
    config = HubConfig(rounds=3, sites=("north",), rule=FedAvg(), joining=True)
    start = {"w": torch.zeros(1)}

    def stop(report):
        if report.round == 2:
            raise KeyboardInterrupt

    exchange = Joined({"north": 1.0, "south": 3.0}, after=0)
    with pytest.raises(KeyboardInterrupt):
        run_hub(config, exchange, start, folder=tmp_path, on_round=stop)
    assert exchange.published[0].participants == ("north",)  # south would wait although it is here already
    assert recorded_joins(tmp_path) == {"south": 2}
    silent = Joined({"north": 1.0, "south": 3.0}, after=99)
    final = run_hub(config, silent, start, folder=tmp_path)
    assert float(final.weights["w"]) == 5.0
    assert silent.published[0].participants == ("north", "south")
    assert first_rounds(tmp_path) == {"north": 1, "south": 2}


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"joins": {"west": 2}}, "'west' is none of the sites, which are north, south"),
        ({"joins": {"south": 9}}, "'south' is to join in round 9, expected 1 to 2"),
        ({"joins": {"north": 2, "south": 2}}, "no site is left that trains in the first round"),
        (
            {"joining": True, "privacy": SecureSum()},
            "a sum over hospitals that each of them agreed to by name",
        ),
        ({"joining": True, "rule": FedDyn()}, "carries a sum over a fixed number of sites"),
        ({"joining": True}, "which this exchange does not carry"),
    ],
)
def test_sites_cannot_join_where_that_would_be_wrong(settings, why):
    with pytest.raises((StudyError, ExchangeError), match=re.escape(why)):
        run({"north": 1.0, "south": 3.0}, **settings)


class Returning(Script):
    """An exchange at which south has stopped, until the hub waits for it; `returns` says whether it comes."""

    def __init__(self, returns: bool) -> None:
        super().__init__({"north": 1.0})
        self.returns, self.waits = returns, []

    def wait_for_return(self, round, sites, max_wait_s, why):
        self.waits.append((round, tuple(sites), max_wait_s, why))
        if self.returns:
            self.adds["south"] = 3.0
        return self.returns


def test_a_hub_with_too_few_sites_waits_for_one_that_stopped_and_repeats_the_round():
    exchange = Returning(returns=True)
    config = HubConfig(rounds=2, sites=("north", "south"), rule=FedAvg(), minimum=2, return_s=60.0)
    final = run_hub(config, exchange, {"w": torch.zeros(1)})
    assert float(final.weights["w"]) == 4.0
    ((round, sites, wait_s, why),) = exchange.waits
    assert (round, sites, wait_s) == (1, ("north", "south"), 60.0)
    assert "south: absent (site 'south' stopped)" in why


@pytest.mark.parametrize(("return_s", "waits"), [(0.0, 0), (60.0, 1)])
def test_a_hub_whose_site_does_not_come_back_ends(return_s, waits):
    exchange = Returning(returns=False)
    config = HubConfig(rounds=2, sites=("north", "south"), rule=FedAvg(), minimum=2, return_s=return_s)
    with pytest.raises(QuorumError, match="round 1: 1 of 2 sites sent a valid update"):
        run_hub(config, exchange, {"w": torch.zeros(1)})
    assert len(exchange.waits) == waits

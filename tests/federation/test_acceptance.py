"""One site that lies about its examples or numbers buys no weight, ends no run and makes no headline."""

from __future__ import annotations

import re

import pytest
import torch

from medfed.aggregation.fedavg import FedAvg
from medfed.aggregation.fednoro import FedNoRo
from medfed.aggregation.fednova import FedNova
from medfed.aggregation.ifca import IFCA
from medfed.aggregation.qfedavg import QFedAvg
from medfed.aggregation.scaffold import Scaffold
from medfed.errors import ForgedError, RuleError, SiteError, UpdateError, WireError
from medfed.exchange import DropOut, ReceivedUpdate
from medfed.exchange._update_store import UpdateStore
from medfed.federation.acceptance import (
    EXAMPLES,
    MAX_NUMBERS,
    accept_numbers,
    check_examples,
    check_needs,
    dominance,
    factor_dominance,
    factor_errors,
    first_examples,
    group_errors,
    keep_examples,
    without_examples,
)
from medfed.federation.config import HubConfig
from medfed.federation.round import _admit
from medfed.federation.simulation import simulate
from medfed.privacy.client_dp import ClientDP
from medfed.runs.progress import PlainProgress
from medfed.wire.audit_log import AuditLog, entries
from medfed.wire.update import GlobalModel, Update

WEIGHTS = {"w": torch.zeros(2), "b": torch.zeros(1)}
DELTA = {name: torch.ones_like(tensor) for name, tensor in WEIGHTS.items()}
BEGAN = {EXAMPLES: {"evil": torch.tensor(100)}, "momentum": WEIGHTS}


def update(examples: int = 100, site: str = "evil", **more) -> Update:
    return Update(site, 2, DELTA, examples, **more)


def config(**more) -> HubConfig:
    return HubConfig(3, ("evil", "north"), FedAvg(), **more)


# ------------------------------------------------------------------------------------------------- examples


@pytest.mark.parametrize("stated, fits", [(1_000_000, True), (1_000_001, False), (10**18, False)])
def test_a_study_bounds_the_examples_of_a_site(stated, fits):
    if fits:
        assert check_examples(update(stated), config(), {}) == ()
        return
    with pytest.raises(
        UpdateError,
        match=rf"site 'evil' for round 2: states {stated} examples, this study takes at most 1000000",
    ):
        check_examples(update(stated), config(), {})
    assert check_examples(update(stated), config(max_examples=None), {}) == ()


@pytest.mark.parametrize("stated", [60, 99, 110])
def test_another_number_than_the_first_is_told(stated):
    assert check_examples(update(stated), config(), BEGAN) == (
        f"states {stated} examples, and began with 100",
    )


@pytest.mark.parametrize(
    ("stated", "notes"), [(100, 0), (150, 0), (200, 0), (99, 1), (220, 1), (221, None), (120, 0)]
)
def test_where_validation_cases_train_twice_the_first_number_is_nothing_to_tell(stated, notes):
    # A tenth beyond twice 100: cases of either split may have been repaired.
    if notes is None:
        with pytest.raises(UpdateError, match="states 221 examples, and began this run with 100"):
            check_examples(update(stated), config(on_all_from=2), BEGAN)
        return
    assert len(check_examples(update(stated), config(on_all_from=2), BEGAN)) == notes
    if stated > 110:
        with pytest.raises(UpdateError, match=f"states {stated} examples"):
            check_examples(update(stated), config(on_all_from=3), BEGAN)  # not yet in round 2


def test_more_than_a_tenth_beyond_the_first_is_refused_and_cannot_creep():
    with pytest.raises(UpdateError, match="states 111 examples, and began this run with 100"):
        check_examples(update(111), config(), BEGAN)
    # The first number stays the bound, whatever was stated since.
    assert first_examples(keep_examples(BEGAN, [update(110), update(7, "north")])) == {
        "evil": 100,
        "north": 7,
    }


def test_the_first_number_is_told_nobody_and_a_hidden_one_is_not_kept():
    assert check_examples(update(100), config(), BEGAN) == ()
    assert keep_examples({}, [update(0)]) == {}
    assert without_examples(BEGAN) == {"momentum": WEIGHTS}


def test_where_all_weigh_the_same_a_site_states_one_example():
    private = config(privacy=ClientDP(noise_multiplier=1.0, clip=1.0))
    assert check_examples(update(1), private, {}) == ()
    with pytest.raises(
        UpdateError, match="states 1000 examples; under this privacy mechanism every site states 1"
    ):
        check_examples(update(1000), private, {})


def test_a_first_update_that_outweighs_all_others_is_told():
    honest = [update(100, "north"), update(50, "south")]
    assert dominance([*honest, update(1500)], {}) == {}
    assert dominance([*honest, update(1501)], {}) == {
        "evil": "states 1501 examples, all other sites of this round together 150: the merge is almost its "
        "update alone"
    }
    assert dominance([*honest, update(1501)], BEGAN) == {}
    assert dominance([update(1501)], {}) == {}


@pytest.mark.parametrize("stated", [2**63, 10**30, 1 << 13_000], ids=["2^63", "10^30", "2^13000"])
def test_a_number_that_no_computer_counts_is_refused_where_a_study_has_no_bound_too(stated, tmp_path):
    """`torch.tensor(2**63)` raises ValueError, which ended the hub."""
    _, results, _ = run(lying("evil", 9.0, (stated, 1)), tmp_path, max_examples=None)
    assert [one["evil"].status for one in results] == ["refused", "merged", "reported"]
    why = f"states a number of examples of {stated.bit_length()} bits, expected at most 62"
    assert why in results[0]["evil"].reason


# ---------------------------------------------------------------------------------------------- a whole run


def lying(name: str, value: float, counts, **more):
    """Return a site that states these examples round by round."""

    def work(exchange):
        received = exchange.fetch(name, 0)
        while not received.final:
            number = received.round + 1
            delta = {key: torch.full_like(tensor, value) for key, tensor in received.weights.items()}
            exchange.send(Update(name, number, delta, counts[number - 1], **more))
            received = exchange.fetch(name, number)
        exchange.send(Update(name, received.round + 1, {}, 0, {"val/dice": value}))

    return work


def run(evil, tmp_path, **more):
    reports: list = []
    log = AuditLog(tmp_path / "audit.jsonl")
    settings = {"minimum": 1, "deadline_s": None, **more}
    folder = settings.pop("folder", None)
    final = simulate(
        {"north": lying("north", 1.0, (100, 100)), "evil": evil},
        WEIGHTS,
        HubConfig(2, ("evil", "north"), FedAvg(), **settings),
        folder=folder,
        on_round=reports.append,
        audit=log,
    )
    results = [{one.site: one for one in report.results} for report in reports]
    return final, results, list(entries(tmp_path / "audit.jsonl"))


def test_a_claim_of_a_million_million_buys_nothing_and_the_round_goes_on(tmp_path):
    final, rounds, log = run(lying("evil", 9.0, (10**18, 100)), tmp_path)
    # By hand: 1 from north alone, then (1 + 9) / 2.
    assert torch.equal(final.weights["b"], torch.tensor([6.0]))
    assert rounds[0]["evil"].status == "refused"
    assert "states 1000000000000000000 examples" in rounds[0]["evil"].reason
    assert [e["site"] for e in log if e["event"] == "refused"] == ["evil"]


def test_a_jump_after_an_honest_first_round_is_refused(tmp_path):
    final, rounds, _ = run(lying("evil", 9.0, (100, 10_000)), tmp_path)
    assert torch.equal(final.weights["b"], torch.tensor([6.0]))
    assert rounds[1]["evil"].status == "refused"
    assert "began this run with 100" in rounds[1]["evil"].reason


def test_a_change_is_a_note_and_a_line_of_the_audit_log(tmp_path):
    _, rounds, log = run(lying("evil", 9.0, (100, 90)), tmp_path)
    assert rounds[1]["evil"].status == "merged"
    assert rounds[1]["evil"].notes == ("states 90 examples, and began with 100",)
    (warned,) = [e for e in log if e["event"] == "warning"]
    assert (warned["site"], warned["round"], warned["reason"]) == ("evil", 2, rounds[1]["evil"].notes[0])


def test_a_resumed_hub_still_knows_the_first_numbers(tmp_path):
    first, _, _ = run(lying("evil", 9.0, (100, 100)), tmp_path, folder=tmp_path / "hub")
    from medfed.federation.checkpoints import load_latest_checkpoint

    saved = load_latest_checkpoint(tmp_path / "hub")
    assert saved is not None
    assert first_examples(saved[1]) == {"evil": 100, "north": 100}
    assert torch.equal(saved[0].weights["b"], first.weights["b"])


@pytest.mark.parametrize(
    "report, why",
    [
        (Update("north", 3, {}, 0, {"val/dice": 1.0}), "sent an update of site 'north' for round 3"),
        (Update("evil", 3, DELTA, 10, {"val/dice": 1.0}), "holds weights; only scores of the final model"),
    ],
)
def test_scores_of_the_final_model_are_the_sites_own_and_numbers_alone(tmp_path, report, why):
    def work(exchange):
        received = exchange.fetch("evil", 0)
        while not received.final:
            received = exchange.fetch("evil", received.round + 1)
        exchange._updates[3, "evil"] = (UpdateStore().store(report, "", 1 << 20), 0.0)
        exchange.send(Update("evil", 3, {}, 0))

    _, rounds, log = run(work, tmp_path, minimum=1, deadline_s=0.5)
    assert rounds[2]["evil"].status == "refused"
    assert why in rounds[2]["evil"].reason
    assert rounds[2]["evil"].scalars == {}
    assert rounds[2]["north"].status == "reported"
    assert why in [e for e in log if e["event"] == "refused"][-1]["reason"]


@pytest.mark.parametrize(
    "error, status",
    [
        (ForgedError("a pipe stands in its update's place"), "refused"),
        (SiteError("it stopped"), "absent"),
        (WireError("it never came whole"), "absent"),
    ],
    ids=["forged", "stopped", "late"],
)
def test_what_stands_in_a_sites_place_is_refused_and_not_called_absent(error, status, tmp_path):
    """Nothing of it was read, so no bytes are counted."""
    received = ReceivedUpdate("evil", None, error)
    current = GlobalModel(0, WEIGHTS)
    _, result = _admit(received, current, config(), None, {}, AuditLog(tmp_path / "audit.jsonl"))
    assert (result.status, result.reason) == (status, str(error))


# ------------------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    "name, value, why",
    [
        ("val/auroc", float("nan"), "not finite"),
        ("val/auroc", float("inf"), "not finite"),
        ("val/auroc", 1e16, "beyond 1e+15"),
        ("val/auroc", True, "a bool, expected a number"),
        ("val/\x1b[2J", 0.5, "characters that do not show"),
        ("val/\u202e", 0.5, "characters that do not show"),
        ("v" * 201, 0.5, "too long"),
        ("row/x", float("inf"), "not finite"),
    ],
)
def test_a_number_that_no_report_can_show_is_left_out_with_a_note(name, value, why):
    accepted, (note,) = accept_numbers(update(scalars={name: value, "train/loss": 0.5}))
    assert accepted.scalars == {"train/loss": 0.5}
    assert note.startswith("1 of its numbers are left out: ")
    assert why in note
    assert note.isprintable()


def test_a_site_sends_a_bounded_number_of_numbers():
    accepted, (note,) = accept_numbers(update(scalars={f"val/x{i}": 1.0 for i in range(MAX_NUMBERS + 9)}))
    assert len(accepted.scalars) == MAX_NUMBERS
    assert note.startswith("9 of its numbers are left out: ")
    assert note.endswith(", and 6 more")


def test_honest_numbers_and_rows_pass_as_they_are():
    scalars = {
        "train/class_loss/größe µ": 0.5,
        "row/test/federated/dice///value": 0.5,
        "left_out/damaged": 3.0,
    }
    honest = update(scalars=scalars)
    assert accept_numbers(honest) == (honest, ())


# ------------------------------------------------------------------------------------------------- rules


@pytest.mark.parametrize(
    "rule, scalars, why",
    [
        (QFedAvg(), {}, "has no finite scalar 'train/loss_before'"),
        (QFedAvg(), {"train/loss_before": -1.0}, "'train/loss_before' is -1"),
        (FedNova(), {"train/steps": 0.5}, "'train/steps' is 0.5"),
        (IFCA(clusters=2), {"train/cluster": 2.0}, "'train/cluster' is 2"),
        (FedNoRo(), {"train/class_loss": 1.0, "train/class_loss/a": -1.0}, "'train/class_loss/a' is -1"),
    ],
    ids=str,
)
def test_what_a_rule_cannot_merge_is_refused_when_it_arrives(rule, scalars, why):
    with pytest.raises(RuleError, match=f"site 'evil' for round 2.*{why}"):
        check_needs(update(scalars=scalars), rule, WEIGHTS)


@pytest.mark.parametrize(
    "groups, why",
    [
        ({}, "has no group 'control', which the study's rule merges"),
        ({"control": {"x": torch.zeros(1)}}, "'x' of group 'control' does not fit the global model"),
        ({"control": {"w": torch.zeros(3)}}, "'w' of group 'control' does not fit the global model"),
        (
            {"control": {"w": torch.ones(2).bool()}},
            "'w' of group 'control' has dtype torch.bool, expected a fl",
        ),
    ],
    ids=str,
)
def test_a_group_that_the_rule_merges_fits_the_model(groups, why):
    with pytest.raises(UpdateError, match=why):
        check_needs(update(groups=groups), Scaffold(), WEIGHTS)
    check_needs(update(groups={"control": DELTA}), Scaffold(), WEIGHTS)


def test_a_site_that_leaves_out_what_the_rule_needs_stops_no_merge():
    reports: list = []
    loss = {"scalars": {"train/loss_before": 1.0}}
    sites = {"north": lying("north", 1.0, (100,), **loss), "evil": lying("evil", 9.0, (100,))}
    settings = HubConfig(1, ("evil", "north"), QFedAvg())
    final = simulate(sites, WEIGHTS, settings, on_round=reports.append)
    assert torch.equal(final.weights["b"], torch.tensor([1.0]))
    evil, north = reports[0].results
    assert (evil.status, north.status) == ("refused", "merged")
    assert "has no finite scalar 'train/loss_before'" in evil.reason


def weighed(name: str, *values: float) -> list[Update]:
    """Return updates that state these numbers: the first one's is evil's."""
    sites = ("evil", "north", "south")
    return [update(site=site, scalars={name: value}) for site, value in zip(sites, values, strict=True)]


@pytest.mark.parametrize(
    "rule, values, refused",
    [
        (QFedAvg(), (1e15, 1.0, 2.0), True),
        (QFedAvg(), (2000.0, 1.0, 2.0), False),  # a thousand times the median 2, and no more
        (QFedAvg(), (2001.0, 1.0, 2.0), True),
        (QFedAvg(), (0.0, 1.0, 2.0), False),  # a site that fits perfectly weighs nothing
        (QFedAvg(), (5.0, 0.0, 0.0), False),
        (QFedAvg(q=0.0), (1e15, 1.0, 2.0), False),  # it is FedAvg, and does not look at it
        (FedNova(), (1e15, 100.0, 50.0), True),
        (FedNova(), (1.0, 1001.0, 1001.0), True),  # its own update would count a thousandfold
        (FedNova(), (1.0, 1000.0, 1000.0), False),
        (FedAvg(), (1e15, 1.0, 1.0), False),
    ],
    ids=str,
)
def test_a_number_by_which_the_rule_weights_is_compared_with_the_others(rule, values, refused):
    name = (rule.needs_scalars or ("train/loss",))[0]
    evil, *others = factor_errors(weighed(name, *values), rule, 1000.0)
    assert others == [None, None]
    assert (evil is not None) is refused
    if refused:
        assert re.search(
            f"site 'evil' for round 2: states .* for '{name}', by which the rule weights", str(evil)
        )


def test_a_number_that_outweighs_all_others_is_told():
    assert factor_dominance(weighed("train/loss_before", 30.0, 1.0, 2.0), QFedAvg()) == {}
    assert factor_dominance(weighed("train/loss_before", 31.0, 1.0, 2.0), QFedAvg()) == {
        "evil": "states 31 for 'train/loss_before', all other sites of this round together 3: the rule "
        "weights updates by it"
    }
    assert factor_dominance(weighed("train/loss", 31.0, 1.0, 2.0), FedAvg()) == {}


def test_no_site_multiplies_the_others_updates_by_its_number_of_steps():
    """With 1e15 steps of one site, FedNova merged the others' updates times 1e13."""
    reports: list = []
    steps = {name: {"scalars": {"train/steps": count}} for name, count in
             {"north": 10.0, "south": 10.0, "evil": 1e15}.items()}  # fmt: skip
    sites = {name: lying(name, 1.0, (100,), **steps[name]) for name in steps}
    final = simulate(sites, WEIGHTS, HubConfig(1, tuple(sorted(steps)), FedNova()), on_round=reports.append)
    # By hand: the mean of north's and south's.
    assert torch.equal(final.weights["b"], torch.tensor([1.0]))
    assert [one.status for one in reports[0].results] == ["refused", "merged", "merged"]
    assert "states 1e+15 for 'train/steps'" in reports[0].results[0].reason


def controlled(site: str, *names: str) -> Update:
    return update(site=site, groups={"control": {name: WEIGHTS[name] for name in names}})


@pytest.mark.parametrize(
    "sent, odd, why",
    [
        ({"evil": "w", "north": "wb", "south": "wb"}, "evil", "'b' of group 'control' is not sent; of this"),
        (
            {"evil": "wb", "north": "w", "south": "w"},
            "evil",
            "'b' of group 'control' is sent; of this round's",
        ),
        ({"evil": "", "north": "w", "south": "w"}, "evil", "other sites 2 send 1 tensors in it, this one 0"),
        # Of as many, the longer list.
        ({"evil": "w", "north": "wb"}, "evil", "other sites 1 send 2 tensors in it, this one 1"),
        ({"evil": "w", "north": "w"}, None, ""),
    ],
    ids=str,
)
def test_a_site_that_sends_other_tensors_of_a_group_than_the_rest_is_named(sent, odd, why):
    updates = [controlled(site, *names) for site, names in sent.items()]
    reasons = group_errors(updates, Scaffold())
    assert [u.site for u, reason in zip(updates, reasons, strict=True) if reason] == [odd][: odd is not None]
    assert all(
        reason is None or re.search(f"site '{odd}' for round 2: .*{why}", str(reason)) for reason in reasons
    )
    # The order of arrival decides nothing, and a rule that merges no group asks for none.
    backwards = group_errors(updates[::-1], Scaffold())[::-1]
    assert [str(one) for one in backwards] == [str(one) for one in reasons]
    assert group_errors(updates, FedAvg()) == [None] * len(sent)


def test_fewer_control_tensors_at_one_site_stop_no_merge(tmp_path):
    reports: list = []

    def site(name: str, value: float, *names: str):
        return lying(name, value, (100,), groups={"control": {one: DELTA[one] for one in names}})

    sites = {
        "evil": site("evil", 9.0, "w"),
        "north": site("north", 1.0, "w", "b"),
        "south": site("south", 1.0, "w", "b"),
    }
    log = AuditLog(tmp_path / "audit.jsonl")
    settings = HubConfig(1, tuple(sites), Scaffold(), minimum=2)
    final = simulate(sites, WEIGHTS, settings, on_round=reports.append, audit=log)
    assert torch.equal(final.weights["w"], torch.ones(2))
    assert {one.site: one.status for one in reports[0].results} == {
        "evil": "refused",
        "north": "merged",
        "south": "merged",
    }
    (refused,) = [line for line in entries(tmp_path / "audit.jsonl") if line["event"] == "refused"]
    assert refused["site"] == "evil"
    assert "'b' of group 'control' is not sent" in refused["reason"]


def hasty(exchange):
    """Send for the third round in the first, and what is asked in the second; then no more."""
    exchange.fetch("evil", 0)
    exchange.send(Update("evil", 3, {name: 9 * delta for name, delta in DELTA.items()}, 100))
    exchange.fetch("evil", 1)
    exchange.send(Update("evil", 2, DELTA, 100))
    exchange.fetch("evil", 2)
    exchange.drop_out("evil", DropOut.ENDED)


def test_an_update_for_a_later_round_is_refused_in_report_audit_log_and_progress(tmp_path, capsys):
    reports: list = []
    sites = {"evil": hasty, "north": lying("north", 1.0, (100, 100, 100))}
    log, shown = AuditLog(tmp_path / "audit.jsonl"), PlainProgress()
    settings = HubConfig(3, tuple(sites), FedAvg())
    final = simulate(sites, WEIGHTS, settings, on_round=reports.append, audit=log)
    assert torch.equal(final.weights["w"], torch.full((2,), 3.0))  # each merge adds 1, whoever is in it
    of_evil = [one for report in reports for one in report.results if one.site == "evil"]
    assert [one.status for one in of_evil] == ["refused", "merged", "absent", "absent"]
    why = "site 'evil', round 1: it has already sent an update for round 3 of this run"
    assert of_evil[0].reason.startswith(why)
    written = [line for line in entries(tmp_path / "audit.jsonl") if line.get("site") == "evil"]
    assert [line["event"] for line in written] == ["refused", "merged", "absent", "absent"]
    assert written[0]["reason"] == of_evil[0].reason
    shown.round(reports[0])
    assert f"round 1: evil refused: {why}" in capsys.readouterr().out

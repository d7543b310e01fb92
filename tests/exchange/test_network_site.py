"""A site in another network: what it receives and sends by value, and what it refuses."""

from __future__ import annotations

import hashlib
import logging
import math

import numpy as np
import pytest
import torch
from network import ScriptedLink, evaluate, train
from safetensors.numpy import load

from medfed.errors import ExchangeError, StudyError, UpdateError
from medfed.exchange import DropOut
from medfed.exchange._handoff import encode
from medfed.exchange._network_site import Agreement, NetworkSite
from medfed.wire.update import Encoded, Update
from medfed.wire.weights import Difference


def site(tmp_path, *tasks, **agreement):
    link = ScriptedLink(*tasks)
    side = NetworkSite(link, "north", tmp_path, Agreement(**{"rounds": 3, **agreement}))
    side.max_wait_s = 0.1
    return side, link


def update(round=1, plus=0.5, examples=12, scalars=None, name="w"):
    start = {name: torch.ones(2)}
    local = {name: start[name] + plus}
    return Update("north", round, Difference(local, start), examples, scalars or {})


def test_training_begins_from_the_model_before_the_round(tmp_path):
    side, _ = site(tmp_path, train(1, w=np.array([1.5, -2.0], np.float32)))
    model = side.fetch("north", 0)
    assert (model.round, model.final, model.rule) == (0, False, "fedavg")
    assert torch.equal(model.weights["w"], torch.tensor([1.5, -2.0]))
    assert side.fetch("north", 0).round == 0  # asked twice


def test_an_update_is_sent_as_the_sites_own_bits(tmp_path):
    """Even where float32 global + (local - global) is another number: 1e8 + float32(0.3 - 1e8) is 0."""
    start = {"w": torch.tensor([1e8, 0.1, 3.0])}
    local = {"w": torch.tensor([0.3, 0.7, 3e-20])}
    assert not torch.equal(start["w"] + (local["w"] - start["w"]), local["w"])
    side, link = site(tmp_path, train(1, w=start["w"].numpy()))
    side.fetch("north", 0)
    side.send(Update("north", 1, Difference(local, start), 12, {"train/loss": 0.5}))
    np.testing.assert_array_equal(link.last.arrays["w"], local["w"].numpy())
    assert link.last.arrays["w"].dtype == np.float32
    assert link.last.numbers == {"num-examples": 12}


def test_a_rounded_difference_costs_one_rounding(tmp_path):
    """What a privacy mechanism changed is a float32 difference: the sum is rounded once, to half a unit."""
    start, delta = {"w": torch.tensor([1.0])}, {"w": torch.tensor([2.0**-25])}
    side, link = site(tmp_path, train(1, w=start["w"].numpy()))
    side.fetch("north", 0)
    side.send(Update("north", 1, delta, 12))
    assert link.last.arrays["w"][0] == 1.0  # the nearest float32 to 1 + 2^-25


def test_names_may_have_a_prefix_and_what_is_not_merged_is_returned_as_it_came(tmp_path):
    arrays = {
        "w": np.ones(2, np.float32),
        "index": np.array([3, 1]),
        "norm.weight": np.full(2, 5, np.float32),
        "bn.num_batches_tracked": np.array(9.0),
    }
    side, link = site(tmp_path, train(1, **arrays), prefix="net.", unchanged=("norm", "num_batches_tracked"))
    assert sorted(side.fetch("north", 0).weights) == ["net.w"]
    side.send(update(name="net.w"))
    np.testing.assert_array_equal(link.last.arrays["w"], np.full(2, 1.5, np.float32))
    for name in ("index", "norm.weight", "bn.num_batches_tracked"):
        np.testing.assert_array_equal(link.last.arrays[name], arrays[name])
        assert link.last.arrays[name].dtype == arrays[name].dtype
    assert list(link.last.arrays) == list(arrays)


def test_integers_that_fedavg_turned_into_floats_are_known_after_a_restart(tmp_path):
    side, _ = site(tmp_path, train(1, w=np.ones(2, np.float32), index=np.array([3, 1])))
    side.fetch("north", 0)
    side, link = site(tmp_path, train(2, w=np.ones(2, np.float32), index=np.array([3.0, 1.0])))
    assert sorted(side.fetch("north", 1).weights) == ["w"]
    side.send(update(round=2))
    np.testing.assert_array_equal(link.last.arrays["index"], [3.0, 1.0])


def test_a_dtype_that_is_not_merged_is_refused_by_name(tmp_path):
    side, _ = site(tmp_path, train(1, w=np.ones(2, np.complex64)))
    with pytest.raises(StudyError, match="'w' of the test network's model has dtype complex64, expected one"):
        side.fetch("north", 0)


def test_an_evaluation_before_the_last_is_answered_at_once_by_the_examples(tmp_path):
    side, link = site(tmp_path, train(1), evaluate(1), train(2))
    side.fetch("north", 0)
    side.send(update())
    assert side.fetch("north", 1).round == 1
    assert (link.last.arrays, link.last.numbers) == ({}, {"num-examples": 12})


def test_the_last_evaluation_brings_the_final_model_and_takes_its_scores(tmp_path):
    side, link = site(tmp_path, train(3), evaluate(3, w=np.zeros(2, np.float32)), metrics=("val/dice",))
    side.fetch("north", 2)
    side.send(update(round=3, scalars={"val/dice": 0.25}))
    model = side.fetch("north", 3)
    assert (model.round, model.final) == (3, True)
    assert torch.equal(model.weights["w"], torch.zeros(2))
    side.send(Update("north", 4, {}, 0, {"val/dice": 0.75, "val/other": 1.0}))
    assert link.last.numbers == {"num-examples": 12, "val/dice": 0.75}
    side.close()
    assert link.stopped == "this site has trained all rounds that it agreed to"
    assert link.is_closed


def test_a_last_evaluation_that_nobody_scored_is_answered_when_the_site_leaves(tmp_path):
    side, link = site(tmp_path, evaluate(3))
    side.fetch("north", 3)
    side.close()
    assert link.last.numbers == {"num-examples": 1}


def test_a_number_that_is_missing_is_sent_as_nan_and_told_once(tmp_path, caplog):
    side, link = site(tmp_path, train(1), train(2), metrics=("val/dice", "train/loss"))
    with caplog.at_level(logging.WARNING, "medfed.exchange"):
        for round in (1, 2):
            side.fetch("north", round - 1)
            side.send(update(round, scalars={"train/loss": 0.5}))
    assert link.last.numbers["train/loss"] == 0.5
    assert math.isnan(link.last.numbers["val/dice"])
    assert [r.getMessage() for r in caplog.records if "round 1" in r.getMessage()] == [
        "site 'north': the update of round 1 has no number 'val/dice', which it agreed to send (exchange: "
        "metrics): it is sent as NaN, because the network merges no numbers of which one is missing"
    ]


def test_an_update_that_comes_too_late_is_not_sent_and_the_site_goes_on(tmp_path, caplog):
    side, link = site(tmp_path, train(1), train(3))
    side.fetch("north", 0)
    link.given_up.add(link.tasks[0][0].id)
    link.given_up = {side._open[0].id}  # the network went on without it
    described = side.transmission(update(scalars={"train/loss": 0.5}))
    assert described.to == "nobody: the test network waits no more for this round"
    assert (described.bytes, described.scalars) == (0, ())
    side.send(update())
    assert link.answers == []
    assert "no longer waits for the update of round 1, which is not sent" in caplog.text
    assert side.fetch("north", 1).round == 2


def test_a_site_that_restarted_answers_the_round_that_still_waits_for_it(tmp_path):
    side, link = site(tmp_path, train(2))
    side.send(update(round=2))  # its checkpoint held the model
    np.testing.assert_array_equal(link.last.arrays["w"], np.full(2, 1.5, np.float32))


def test_sending_twice_equals_sending_once(tmp_path):
    side, link = site(tmp_path, train(1), train(2))
    side.fetch("north", 0)
    side.send(update(plus=0.5))
    side.send(update(plus=2.0))
    assert len(link.answers) == 1
    np.testing.assert_array_equal(link.last.arrays["w"], np.full(2, 1.5, np.float32))
    assert link.tasks  # the next round's task waits for its own update


def test_a_round_that_is_behind_is_refused(tmp_path):
    side, link = site(tmp_path, train(1), train(2))
    assert side.fetch("north", 1).round == 1
    assert link.last.error == "this site has trained in that round already"


def test_another_run_is_refused_with_what_to_do(tmp_path):
    site(tmp_path, train(2))[0].fetch("north", 1)
    side, link = site(tmp_path, train(1, run="run-2"))
    with pytest.raises(
        ExchangeError, match=r"begun another run \(run-2\) than the one that this site trains"
    ):
        side.fetch("north", 1)
    assert link.last.error == "this site's trainer takes part in another run"


def test_more_rounds_than_agreed_are_refused(tmp_path):
    side, link = site(tmp_path, train(4))
    with pytest.raises(ExchangeError, match="begins round 4, and this site agreed to 3"):
        side.fetch("north", 3)
    assert link.last.error == "more rounds than this site agreed to"


def test_a_wait_ends_and_says_for_what(tmp_path):
    side, link = site(tmp_path)
    with pytest.raises(ExchangeError, match="waited 0 s for the model of round 0; nothing came from the"):
        side.fetch("north", 0)
    link.ended = True
    with pytest.raises(ExchangeError, match="has ended its run without sending it: the merged model is with"):
        side.fetch("north", 3)


def test_a_site_that_stops_says_so_in_fixed_words_now_and_later(tmp_path):
    side, link = site(tmp_path, train(1))
    side.fetch("north", 0)
    side.drop_out("north", DropOut.DATA, "a detail of this hospital")
    assert link.last.error == link.stopped == "this hospital's data cannot be used in the study"


def test_what_leaves_is_described_by_its_bytes_and_numbers(tmp_path):
    side, link = site(tmp_path, train(1), metrics=("train/loss",))
    side.fetch("north", 0)
    numbers = {"train/loss": 0.5, "train/seconds": 7.0}
    described = side.transmission(update(scalars=numbers))
    side.send(update(scalars=numbers))
    assert described.scalars == ("train/loss",)
    data = encode(link.last)
    assert (described.to, described.bytes) == ("the test network (described as safetensors)", len(data))
    assert described.sha256 == hashlib.sha256(data).hexdigest()
    np.testing.assert_array_equal(load(data)["w"], np.full(2, 1.5, np.float32))


def test_compressed_and_grouped_updates_are_refused(tmp_path):
    side, _ = site(tmp_path, train(1))
    side.fetch("north", 0)
    delta = {"w": torch.ones(2)}
    with pytest.raises(UpdateError, match="it holds further groups of tensors, and the test network carries"):
        side.send(Update("north", 1, delta, 12, groups={"control": delta}))
    with pytest.raises(UpdateError, match="it holds compressed tensors"):
        side.send(Update("north", 1, {}, 12, encoded=Encoded({"int8": delta})))


@pytest.mark.parametrize(
    "call",
    [
        lambda side: side.send_message("north", 1, 1, "keys", b""),
        lambda side: side.receive_message("north", 1, {"keys": 1}),
        lambda side: side.open_message("north", b"", "south"),
        lambda side: side.retract("north", 1),
    ],
)
def test_no_keys_are_agreed_on(tmp_path, call):
    with pytest.raises(ExchangeError, match="carries models and updates only, and this privacy mechanism's"):
        call(site(tmp_path)[0])


def test_secrets_stay_in_the_sites_folder(tmp_path):
    site(tmp_path)[0].store_secret("north", "seed", b"\x00\xff")
    side, _ = site(tmp_path)
    assert side.load_secret("north", "seed") == b"\x00\xff"
    assert side.load_secret("north", "other") is None
    assert (tmp_path / "exchange" / "seed.secret").stat().st_mode & 0o777 == 0o600

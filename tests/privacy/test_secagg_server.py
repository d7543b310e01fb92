"""The hub of a secure sum: whom it waits for, what it refuses, and how a round goes on."""

from __future__ import annotations

import json
import threading

import msgspec
import pytest
import torch
from secure_round import EXAMPLES, PATIENCE_S, SITES, STEPS, Round, plainly, same, update

from medfed.errors import QuorumError
from medfed.exchange import MemoryExchange
from medfed.privacy._key_exchange import to_bytes
from medfed.privacy._secagg import Shares
from medfed.privacy._secagg_server import HubAttempt, HubSum
from medfed.privacy.secure_sum import SecureSum
from medfed.wire.audit_log import AuditLog
from medfed.wire.messages import HubChannel, Statement
from medfed.wire.update import Update


def test_a_site_that_falls_silent_is_not_waited_for_longer_than_the_patience():
    privacy = SecureSum(patience_s=4)
    round = Round(privacy)
    round.start(*SITES, dies={"south": "updates"}, silent=True)
    round.run_round()
    same(round.given[0], plainly(["east", "north", "west"], privacy, 4))


@pytest.mark.parametrize("step", STEPS[:3])
def test_too_few_sites_stop_the_round_and_say_why(step):
    round = Round(SecureSum())
    round.start(*SITES, dies={"south": step, "west": step})
    with pytest.raises(QuorumError, match=r"round 1: 2 of 4 sites .*, 3 are needed for a secure sum"):
        round.run_round()
    round.exchange.close()


@pytest.mark.parametrize("step", STEPS)
def test_a_round_that_failed_goes_on_when_the_sites_are_back_with_new_masks(step):
    privacy = SecureSum()
    seen: list[bytes] = []
    round = Round(privacy, exchange=MemoryExchange("study", on_bytes=seen.append))
    round.start(*SITES, dies={"south": step, "west": step})
    with pytest.raises(QuorumError, match="round 1"):
        round.run_round()
    round.start("south", "west")  # as after a restart: what they had in memory is gone
    round.run_round()
    same(round.given[0], plainly(SITES, privacy, 4))
    masked = [data for data in seen if b'"site\\":\\"north' in data and b"secure_sum" in data]
    assert len(masked) == len(set(masked)) == (2 if step in STEPS[2:] else 1)


def parse(data, kind):
    return msgspec.json.decode(data, type=kind)


def test_a_wrong_share_is_named_and_the_sum_comes_out(tmp_path):
    sites = (*SITES, "centre")
    EXAMPLES["centre"] = 9
    privacy = SecureSum()
    round = Round(privacy, sites)
    post, first = round.exchange.send_message, threading.Event()

    def forged(site, number, attempt, step, data):
        if step == "unmask" and site != "centre":
            first.wait(PATIENCE_S)  # the hub looks no further once it has enough
        if (site, step) == ("centre", "unmask"):
            statement = parse(data, Statement)
            shares = parse(statement.content, Shares)
            seeds = {owner: bytes(2) + share[2:-1] + b"\x01" for owner, share in shares.seeds.items()}
            data = msgspec.json.encode(Statement(statement.model, to_bytes(Shares(seeds, shares.keys))))
        post(site, number, attempt, step, data)
        if (site, step) == ("centre", "unmask"):
            first.set()

    round.exchange.send_message = forged
    round.start(*sites)
    audit = AuditLog(tmp_path / "audit.jsonl")
    round.run_round(audit=audit)
    same(round.given[0], plainly(sites, privacy, 5))
    refused = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    refused = [one for one in refused if one["event"] == "message refused"]
    assert {one["site"] for one in refused} == {"centre"}
    assert "its share of site 'east' is wrong" in {one["reason"] for one in refused}


def test_an_unmasked_update_is_refused_and_the_others_are_summed():
    privacy = SecureSum()
    round = Round(privacy)
    send = round.exchange.send
    round.exchange.send = lambda one: send(update("west") if one.site == "west" else one)
    round.start(*SITES)
    outcome = round.run_round()
    answer = {answer.site: answer for answer in outcome.results}["west"]
    assert answer.status == "refused"
    assert "expected masked numbers: torch.int64" in answer.reason
    same(round.given[0], plainly(["east", "north", "south"], privacy, 4))


def test_an_update_that_comes_after_the_final_list_is_not_in_the_sum() -> None:
    """A restarted hub has sent the list of who is in the sum already: sites unmask that sum and no other."""
    exchange, sites = MemoryExchange("5e" * 32), ("east", "north", "south")
    channel = HubChannel(exchange, sites, 1)
    session = HubSum(HubAttempt(SecureSum()._settings, channel, 1), {}, sites)
    channel.send(1, "members", dict.fromkeys(("east", "north"), b"x"))
    for number, site in enumerate(sites, start=1):
        count = {"secure_sum": {"examples": torch.tensor([number])}}
        masked = {"w": torch.tensor([10**number])}
        admitted = session.admit(Update(site, 1, masked, 0, groups=count), {"w": torch.zeros(1)})
        assert (admitted.delta, admitted.groups) == ({}, {})
    assert session.total.sites == session.total_examples.sites == ["east", "north"]
    assert session.total.numbers["w"].tolist() == [110]
    assert session.total_examples.numbers["examples"].tolist() == [3]

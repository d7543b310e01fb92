"""A site of a secure sum: what it refuses of a hub that lies, and what it never sends twice."""

from __future__ import annotations

import base64
import threading

import msgspec
import pytest
from secure_round import PATIENCE_S, SITES, Round, model, plainly, same, update

from medfed.errors import MedfedError, PrivacyError, QuorumError
from medfed.exchange import MemoryExchange
from medfed.federation.round import SiteConnection, send_update
from medfed.privacy._key_exchange import RelayedMessages, to_bytes
from medfed.privacy._secagg import Keys, Members, UnmaskRequest
from medfed.privacy._secagg_server import HubSum
from medfed.privacy.secure_sum import SecureSum
from medfed.wire.audit_log import AuditLog, entries
from medfed.wire.update import Update


def test_a_site_that_restarts_within_a_round_sends_nothing_under_the_old_masks():
    privacy = SecureSum(patience_s=6)
    round = Round(privacy)
    sent: list[Update] = []
    round.exchange.send, send = lambda update: (sent.append(update), send(update)), round.exchange.send
    hub = threading.Thread(target=round.run_round, daemon=True)
    round.start(*SITES, dies={"south": "shares"})
    hub.start()
    round.threads[SITES.index("south")].join(PATIENCE_S)
    round.start("south")
    hub.join(PATIENCE_S)
    round.join()
    assert sorted(one.site for one in sent) == ["east", "north", "west"]
    same(round.given[0], plainly(["east", "north", "west"], privacy, 3))


def test_messages_without_signatures_are_not_enough():
    round = Round(SecureSum())
    round.exchange.signed = False
    with pytest.raises(
        PrivacyError, match=r"site 'north': privacy.kind: secure_sum needs messages with signatures"
    ):
        send_update(SiteConnection("north", round.exchange, round.privacy), update("north"), model())


class Lies(MemoryExchange):
    """A hub that changes its messages: `change(site, data)` returns what a step sends instead."""

    def __init__(self, changes) -> None:
        super().__init__("study")
        self._changes = changes

    def send_messages(self, round, attempt, step, channel):
        change = self._changes.get(step, lambda site, data: data)
        super().send_messages(
            round, attempt, step, {site: change(site, data) for site, data in channel.items()}
        )
        return channel


def lied_to(log: AuditLog | None = None, closes: bool = True, **changes) -> Round:
    round = Round(SecureSum(), exchange=Lies(changes))
    round.log = log or round.log
    round.start(*SITES)
    with pytest.raises(MedfedError, match="round 1"):
        round.run_round()
    if closes:
        round.exchange.close()
    round.join()
    return round


def nothing_unmasked(round: Round) -> bool:
    return not any(step == "unmask" for _, _, step in round.exchange._messages)


def refusals(round: Round) -> dict[str, str]:
    return {site: str(end) for site, end in round.ends.items() if isinstance(end, PrivacyError)}


def written(log: AuditLog) -> dict[str, str]:
    """Return why each site said no more to the hub, as its audit log has it."""
    return {line["site"]: line["reason"] for line in entries(log._path) if line["event"] == "hub refused"}


def goes_on(round: Round) -> None:
    """The sites are started again, the hub tells the truth, and the sum comes out."""
    round.exchange._changes.clear()
    round.start(*SITES)
    round.run_round()
    same(round.given[0], plainly(SITES, round.privacy, 4))


def parse(data, kind):
    return msgspec.json.decode(data, type=kind)


def two_lists(site: str) -> list[str]:
    return list(SITES) if site in ("east", "north") else ["east", "south", "west"]


def test_a_hub_that_sends_sites_different_members_gets_no_shares():
    """East and north think north is in the sum, the others that it dropped out; nothing is unmasked."""
    round = lied_to(members=lambda site, data: to_bytes(Members(two_lists(site))))
    assert nothing_unmasked(round)


@pytest.mark.parametrize(
    "handed, message",
    [
        (
            lambda site, other: True,
            "signed another list of who is in the sum than this site: the hub sent them",
        ),
        (
            lambda site, other: two_lists(site) == two_lists(other),
            "2 of 4 sites signed the list, 3 are needed",
        ),
    ],
)
def test_different_members_are_noticed_by_the_signatures(tmp_path, monkeypatch, handed, message):
    def without_looking(self, sites):
        received = self.attempt.channel.collect(self.attempt.number, "signed", sites, PATIENCE_S)
        return {message.site: message.sealed for message in received}

    monkeypatch.setattr(HubSum, "_signed", without_looking)

    def asks(site, data):
        channel = {o: raw for o, raw in parse(data, UnmaskRequest).messages.items() if handed(site, o)}
        return to_bytes(UnmaskRequest(channel, two_lists(site), sorted(set(SITES) - set(two_lists(site)))))

    log = AuditLog(tmp_path / "audit.jsonl")
    round = lied_to(log, members=lambda site, data: to_bytes(Members(two_lists(site))), signed=asks)
    assert written(log) == refusals(round)
    assert nothing_unmasked(round)
    assert all(message in reason for reason in refusals(round).values())
    assert sorted(refusals(round)) == sorted(SITES)


def test_a_hub_that_asks_for_shares_of_both_kinds_of_one_site_is_refused(tmp_path):
    def change(site, data):
        request = parse(data, UnmaskRequest)
        return to_bytes(UnmaskRequest(request.messages, request.seeds_of, ["west"]))

    log = AuditLog(tmp_path / "audit.jsonl")
    round = lied_to(log, closes=False, signed=change)
    assert written(log) == refusals(round)
    reasons = refusals(round)
    assert sorted(reasons) == sorted(SITES)
    assert "the hub asks for shares of both kinds of site 'west'" in reasons["north"]
    assert nothing_unmasked(round)
    goes_on(round)


def test_a_hub_that_asks_for_shares_of_others_than_signed_is_refused():
    def change(site, data):
        request = parse(data, UnmaskRequest)
        return to_bytes(UnmaskRequest(request.messages, ["east", "north", "south"], ["west"]))

    assert "of other sites than the list that this site signed" in refusals(lied_to(signed=change))["north"]


def test_a_hub_that_leaves_out_signatures_is_refused(tmp_path):
    def change(site, data):
        request = parse(data, UnmaskRequest)
        two = dict(list(request.messages.items())[:2])
        return to_bytes(UnmaskRequest(two, request.seeds_of, request.keys_of))

    log = AuditLog(tmp_path / "audit.jsonl")
    round = lied_to(log, closes=False, signed=change)
    assert "2 of 4 sites signed the list, 3 are needed" in refusals(round)["north"]
    assert written(log) == refusals(round)
    goes_on(round)


def test_a_hub_that_puts_its_own_keys_in_a_sites_place_is_refused(tmp_path):
    def change(site, data):
        messages = dict(parse(data, RelayedMessages).messages)
        head, _, text = messages["west"].partition(b"\n")
        own = to_bytes(Keys(b"1" * 32, b"2" * 32, b"3" * 32))
        message = msgspec.json.decode(text)
        messages["west"] = (
            head + b"\n" + msgspec.json.encode({**message, "data": base64.b64encode(own).decode()})
        )
        return to_bytes(RelayedMessages(messages))

    log = AuditLog(tmp_path / "audit.jsonl")
    round = lied_to(log, closes=False, keys=change)
    reasons = refusals(round)
    assert "the hub forwards a message in the name of 'west' that is not from it" in reasons["north"]
    assert "its signature by 'west' is invalid" in reasons["north"]
    assert written(log) == reasons
    goes_on(round)


def test_a_hub_that_shows_too_few_sites_is_refused():
    def change(site, data):
        messages = parse(data, RelayedMessages).messages
        return to_bytes(RelayedMessages({one: messages[one] for one in ("north", site)}))

    reasons = refusals(lied_to(keys=change))
    assert "2 of 4 hospitals showed keys, 3 are needed" in reasons["south"]


def test_a_second_sum_of_a_round_over_other_sites_is_refused():
    """After a failed attempt only the same list is signed: two sums' difference is one site's update."""
    privacy = SecureSum()
    round = Round(privacy)
    round.start(*SITES, dies={"south": "unmask", "west": "unmask"})
    with pytest.raises(QuorumError, match="the sum cannot be unmasked"):
        round.run_round()
    round.start("west")
    with pytest.raises(QuorumError, match="signed who is in the sum"):
        round.run_round()
    assert "a second sum of this round over other sites" in refusals(round)["north"]

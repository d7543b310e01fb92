"""The sum comes out bit for bit, whoever drops out and when; and what a hub that lies is told."""

from __future__ import annotations

import base64
import json
import threading

import msgspec
import pytest
import torch

from medfed.aggregation.fedavg import FedAvg
from medfed.errors import MedfedError, PrivacyError, QuorumError
from medfed.exchange import MemoryExchange
from medfed.federation.config import HubConfig
from medfed.federation.round import SiteConnection, aggregate_round, send_update
from medfed.privacy._key_exchange import RelayedMessages, to_bytes
from medfed.privacy._masks import FixedPoint
from medfed.privacy._secagg import Keys, Members, Shares, UnmaskRequest
from medfed.privacy._secagg_server import HubSum
from medfed.privacy.secure_sum import SecureSum
from medfed.wire.audit_log import AuditLog, entries
from medfed.wire.messages import Statement
from medfed.wire.update import GlobalModel, Update
from medfed.wire.weights import Difference

SITES = ("east", "north", "south", "west")
EXAMPLES = {"east": 7, "north": 12, "south": 30, "west": 51}
PATIENCE_S = 60
# In order: what a site says before it is killed. `updates` is no message: it is the masked update.
STEPS = ("keys", "shares", "updates", "signed", "unmask")


class Killed(Exception):
    pass


class DiesBefore:
    """A site's exchange that stops at one step, as after kill -9, without any further message."""

    def __init__(self, exchange: MemoryExchange, step: str) -> None:
        self._exchange, self._step = exchange, step

    def __getattr__(self, name: str):
        return getattr(self._exchange, name)

    def send_message(self, site, round, attempt, step, data):
        if step == self._step:
            raise Killed
        self._exchange.send_message(site, round, attempt, step, data)

    def send(self, update):
        if self._step == "updates":
            raise Killed
        self._exchange.send(update)


def model() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {"a.weight": torch.randn(70, 1100, generator=generator), "b": torch.randn(3, generator=generator)}


def trained(site: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(EXAMPLES.get(site, 5))
    return {name: tensor + torch.randn(tensor.shape, generator=generator) for name, tensor in model().items()}


def update(site: str, round: int = 1) -> Update:
    scalars = {"val/dice": 0.5, "train/steps": 4.0}
    return Update(site, round, Difference(trained(site), model()), EXAMPLES.get(site, 5), scalars)


def plainly(sites, privacy: SecureSum, terms: int) -> dict[str, torch.Tensor]:
    """Return the mean that whole numbers give without any mask: 64-bit integers, nothing hidden."""
    scale = FixedPoint(privacy.bits, privacy.limit, terms).scale
    total = sum(EXAMPLES[site] for site in sites)
    found = {}
    for name in model():
        whole = sum(
            (update(site).delta[name] * (EXAMPLES[site] / privacy.max_examples * scale)).round().long()
            for site in sites
        )
        found[name] = whole.double() / scale * (privacy.max_examples / total)
    return found


class Round:
    """One round over the memory exchange, every site a thread; what the hub's rule is given is kept."""

    def __init__(self, privacy: SecureSum, sites=SITES, exchange: MemoryExchange | None = None) -> None:
        self.privacy, self.sites = privacy, sites
        self.log = AuditLog(None)
        self.exchange = exchange or MemoryExchange("study")
        self.exchange.publish(GlobalModel(0, model(), study="study"))
        self.ends: dict[str, BaseException | None] = {}
        self.given: list[Update] = []
        self.threads: list[threading.Thread] = []

    def start(self, *sites: str, dies: dict[str, str] | None = None, silent: bool = False) -> None:
        """Start sites; one that dies or is deceived drops out, unless `silent`."""
        for site in sites:
            self.exchange._dropped_out.pop(site, None)

        def work(site: str) -> None:
            side = DiesBefore(self.exchange, (dies or {})[site]) if site in (dies or {}) else self.exchange
            try:
                send_update(
                    SiteConnection(site, side, self.privacy, audit=self.log, parties=tuple(self.sites)),
                    update(site),
                    model(),
                )
                self.ends[site] = None
            except BaseException as error:
                self.ends[site] = error
                if not silent or not isinstance(error, Killed):
                    self.exchange.drop_out(site, "it stopped")

        for site in sites:
            self.threads.append(threading.Thread(target=work, args=(site,), daemon=True))
            self.threads[-1].start()

    def run_round(self, minimum: int = 2, audit: AuditLog | None = None, deadline_s: float | None = None):
        given = self.given

        class Keeps(FedAvg, frozen=True, tag="keeps"):
            def merge(self, updates, state, weights):
                given[:] = updates
                return super().merge(given, state, weights)

        outcome = aggregate_round(
            self.exchange,
            HubConfig(
                1,
                tuple(self.sites),
                Keeps(),
                self.privacy,
                minimum=minimum,
                deadline_s=deadline_s,
                outlier=None,
            ),
            {},
            GlobalModel(0, model(), study="study"),
            self.sites,
            audit or AuditLog(None),
        )
        self.exchange.publish(GlobalModel(1, outcome.weights, study="study"))
        self.join()
        return outcome

    def join(self) -> None:
        for thread in self.threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive(), "a site waited for ever"


def same(found: Update, expected: dict[str, torch.Tensor]) -> None:
    assert set(found.delta) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(found.delta[name], tensor), name


@pytest.mark.parametrize("bits", [32, 64])
def test_the_hub_is_given_the_plain_sum_bit_for_bit(bits):
    privacy = SecureSum(bits=bits, limit=16, max_examples=100)
    round = Round(privacy)
    round.start(*SITES)
    outcome = round.run_round()
    (given,) = round.given
    assert given.examples == 100
    same(given, plainly(SITES, privacy, 4))
    # By another path: the weighted mean of the sites' own models, to within the bound that
    # the docstring states.
    bound = 4 * 100 / (2 * FixedPoint(bits, 16, 4).scale * 100) + 1e-12
    for name, tensor in model().items():
        mean = sum(trained(site)[name].double() * EXAMPLES[site] for site in SITES) / 100
        assert float((given.delta[name] - (mean - tensor.double())).abs().max()) <= bound
        assert torch.allclose(outcome.weights[name], mean.float(), atol=bound + 1e-6)
    assert {answer.status for answer in outcome.results} == {"merged"}
    assert all(end is None for end in round.ends.values())


@pytest.mark.parametrize("step", STEPS)
def test_a_site_that_drops_out_at_any_step_leaves_an_exact_sum_of_the_rest(step):
    privacy = SecureSum()
    round = Round(privacy)
    round.start(*SITES, dies={"south": step})
    outcome = round.run_round()
    assert isinstance(round.ends.pop("south"), Killed)
    assert all(end is None for end in round.ends.values())
    rest = [site for site in SITES if site != "south"]
    counted = SITES if step in ("signed", "unmask") else rest  # its masked update was there already
    terms = 3 if step in ("keys", "shares") else 4
    same(round.given[0], plainly(counted, privacy, terms))
    status = {answer.site: answer.status for answer in outcome.results}
    assert status["south"] == ("merged" if "south" in counted else "absent")


def test_a_site_that_falls_silent_is_not_waited_for_longer_than_the_patience():
    privacy = SecureSum(patience_s=4)
    round = Round(privacy)
    round.start(*SITES, dies={"south": "updates"}, silent=True)
    round.run_round()
    same(round.given[0], plainly(["east", "north", "west"], privacy, 4))


def test_sites_that_drop_out_at_different_steps_leave_an_exact_sum():
    sites = ("a", "b", "c", "d", "e", "f", "g", "h", "i")
    EXAMPLES.update({site: 3 + place for place, site in enumerate(sites)})
    privacy = SecureSum(threshold=0.6)
    round = Round(privacy, sites)
    round.start(*sites, dies={"b": "updates", "d": "updates", "f": "signed"})
    round.run_round()
    rest = [site for site in sites if site not in "bd"]
    same(round.given[0], plainly(rest, privacy, 9))


def test_on_a_ring_of_neighbours_the_sum_is_exact_too():
    sites = tuple(f"s{number:02d}" for number in range(12))
    EXAMPLES.update({site: 3 + place for place, site in enumerate(sites)})
    privacy = SecureSum(neighbours=8)
    round = Round(privacy, sites)
    round.start(*sites, dies={"s03": "updates", "s07": "shares"})
    round.run_round()
    same(round.given[0], plainly([site for site in sites if site not in ("s03", "s07")], privacy, 11))


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


def test_what_leaves_tells_nothing_of_the_update_and_no_examples():
    seen: list[bytes] = []
    round = Round(SecureSum(bits=32, limit=16), exchange=MemoryExchange("study", on_bytes=seen.append))
    sent: list[Update] = []
    round.exchange.send, send = lambda update: (sent.append(update), send(update)), round.exchange.send
    round.start(*SITES)
    round.run_round()
    for one in sent:
        assert one.examples == 0
        assert set(one.scalars) == {"val/dice"}  # train/steps would tell the examples
        values = one.delta["a.weight"].double().flatten()
        true = update(one.site).delta["a.weight"].flatten()
        # 77,000 independent values: the correlation has a standard deviation of 0.0036.
        assert abs(float(torch.corrcoef(torch.stack([values, true]))[0, 1])) < 0.02
        # Uniform modulo 2^32: each of the top four bits' 16 values is as likely.
        counts = torch.histc(values / 2**32, 16, -0.5, 0.5)
        assert (
            float(((counts - 4812.5) ** 2 / 4812.5).sum()) < 50
        )  # chi-squared, 15 degrees of freedom, p = 1e-5
    assert not any(b"train/steps" in data for data in seen)


def test_a_change_too_large_for_the_fixed_point_is_named_and_not_cut():
    round = Round(SecureSum(limit=2))
    round.start(*SITES)
    with pytest.raises(QuorumError):
        round.run_round()
    assert isinstance(round.ends["north"], PrivacyError)
    assert "site 'north', round 1: 'a.weight' changes by up to" in str(round.ends["north"])
    assert "privacy.limit" in str(round.ends["north"])


def test_a_million_times_an_update_stays_at_its_site_and_the_others_are_summed(tmp_path):
    """The hub could not see it; the site does, says why in its log, and drops out."""
    privacy, log = SecureSum(), AuditLog(tmp_path / "audit.jsonl")
    round = Round(privacy)
    round.start(*SITES[:3])

    def west() -> None:
        far = {name: tensor * 1e6 for name, tensor in update("west").delta.items()}
        try:
            channel = SiteConnection("west", round.exchange, privacy, audit=log, parties=SITES)
            send_update(channel, Update("west", 1, far, EXAMPLES["west"]), model())
        except PrivacyError as error:
            round.ends["west"] = error
            round.exchange.drop_out("west", "it stopped")

    round.threads.append(threading.Thread(target=west, daemon=True))
    round.threads[-1].start()
    round.run_round()
    same(round.given[0], plainly(SITES[:3], privacy, 4))
    (line,) = [line for line in entries(log._path) if line["event"] == "withheld"]
    assert (line["site"], line["round"], line["reason"]) == ("west", 1, str(round.ends["west"]))
    assert "secure_sum adds changes of at most 1024" in line["reason"]


def test_messages_without_signatures_are_not_enough():
    round = Round(SecureSum())
    round.exchange.signed = False
    with pytest.raises(
        PrivacyError, match=r"site 'north': privacy.kind: secure_sum needs messages with signatures"
    ):
        send_update(SiteConnection("north", round.exchange, round.privacy), update("north"), model())


# -------------------------------------------------------------------------------------------- a hub that lies


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


def test_a_hub_that_tells_sites_different_members_gets_no_shares():
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
def test_and_is_seen_by_the_signatures_when_it_asks_all_the_same(tmp_path, monkeypatch, handed, message):
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
    assert all(message in found for found in refusals(round).values())
    assert sorted(refusals(round)) == sorted(SITES)


def test_a_hub_that_asks_for_shares_of_both_kinds_of_one_site_is_refused(tmp_path):
    def change(site, data):
        request = parse(data, UnmaskRequest)
        return to_bytes(UnmaskRequest(request.messages, request.seeds_of, ["west"]))

    log = AuditLog(tmp_path / "audit.jsonl")
    round = lied_to(log, closes=False, signed=change)
    assert written(log) == refusals(round)
    found = refusals(round)
    assert sorted(found) == sorted(SITES)
    assert "the hub asks for shares of both kinds of site 'west'" in found["north"]
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
    found = refusals(round)
    assert "the hub forwards a message in the name of 'west' that is not from it" in found["north"]
    assert "its signature by 'west' is invalid" in found["north"]
    assert written(log) == found
    goes_on(round)


def test_a_hub_that_shows_too_few_sites_is_refused():
    def change(site, data):
        messages = parse(data, RelayedMessages).messages
        return to_bytes(RelayedMessages({one: messages[one] for one in ("north", site)}))

    found = refusals(lied_to(keys=change))
    assert "2 of 4 hospitals showed keys, 3 are needed" in found["south"]


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

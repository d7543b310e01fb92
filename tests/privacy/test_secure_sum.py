"""The secure sum comes out bit for bit, whoever drops out and when, and tells nothing else."""

from __future__ import annotations

import threading

import pytest
import torch
from secure_round import EXAMPLES, SITES, STEPS, Killed, Round, model, plainly, same, trained, update

from medfed.errors import PrivacyError, QuorumError
from medfed.exchange import DropOut, MemoryExchange
from medfed.federation.round import SiteConnection, send_update
from medfed.privacy._masks import FixedPoint
from medfed.privacy.secure_sum import SecureSum
from medfed.wire.audit_log import AuditLog, entries
from medfed.wire.update import Update


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


def test_what_leaves_reveals_neither_the_update_nor_the_examples():
    seen: list[bytes] = []
    round = Round(SecureSum(bits=32, limit=16), exchange=MemoryExchange("study", on_bytes=seen.append))
    sent: list[Update] = []
    round.exchange.send, send = lambda update: (sent.append(update), send(update)), round.exchange.send
    round.start(*SITES)
    outcome = round.run_round()
    assert outcome.state == {}  # no site's count of examples is kept: the hub knows none
    for one in sent:
        assert one.examples == 0
        assert set(one.scalars) == {"val/loss"}  # train/steps would tell the examples
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
            round.exchange.drop_out("west", DropOut.ERROR)

    round.threads.append(threading.Thread(target=west, daemon=True))
    round.threads[-1].start()
    round.run_round()
    same(round.given[0], plainly(SITES[:3], privacy, 4))
    (line,) = [line for line in entries(log._path) if line["event"] == "withheld"]
    assert (line["site"], line["round"], line["reason"]) == ("west", 1, str(round.ends["west"]))
    assert "secure_sum adds changes of at most 1024" in line["reason"]

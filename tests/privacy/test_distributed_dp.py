"""Noise that the sites add together: how much the opened sum has, who may drop out, and what is refused."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace

import msgspec
import pytest
import torch
import yaml
from answering import STUDY, answer
from hospitals import make_hospital
from simulated import simulated

import medfed
from medfed.aggregation.fedavg import FedAvg
from medfed.errors import PrivacyError, QuorumError, StudyError
from medfed.privacy import distributed_dp
from medfed.privacy._clipping import clipped
from medfed.privacy._noise import MAX_DEVIATIONS
from medfed.privacy.accounting.accountant import epsilon
from medfed.privacy.accounting.ledger import Ledger
from medfed.privacy.distributed_dp import MAX_SITES, DistributedDP
from medfed.study.reading import read_study
from medfed.wire.update import Update
from medfed.wire.weights import norm

SITES = ("east", "north", "south", "west")
NUMBERS = 60_000

OPENED: list[Update] = []


class Keeps(FedAvg, tag="keeps", frozen=True):
    """FedAvg that keeps what the hub opened."""

    def merge(self, updates, state, weights):
        OPENED[:] = list(updates)
        return super().merge(OPENED, state, weights)


def weights() -> dict[str, torch.Tensor]:
    return {"a": torch.zeros(200, NUMBERS // 200), "b": torch.zeros(7)}


def changed(site: str) -> dict[str, torch.Tensor]:
    """Return what `answer` adds to the weights in the first round."""
    generator = torch.Generator().manual_seed(sum(site.encode()))
    return {
        name: torch.randn(tensor.shape, generator=generator) for name, tensor in sorted(weights().items())
    }


def conducted(privacy, stops=(), rounds=1, **more):
    sites = {
        name: lambda exchange, name=name: answer(exchange, privacy, name, stops=1 if name in stops else None)
        for name in SITES
    }
    return simulated(
        sites,
        weights(),
        rule=Keeps(),
        rounds=rounds,
        privacy=privacy,
        minimum=privacy.min_sites,
        study_digest=STUDY,
        **more,
    )


def noise_of(sites, clip: float) -> torch.Tensor:
    """Return the opened sum less the plain one of the sites' clipped updates, all its numbers."""
    (opened,) = OPENED
    assert opened.examples == len(sites)
    total = {name: tensor * len(sites) for name, tensor in opened.delta.items()}
    for site in sites:
        for name, tensor in clipped(changed(site), clip).items():
            total[name] = total[name] - tensor
    return torch.cat([total[name].reshape(-1) for name in sorted(total)])


@pytest.mark.parametrize(
    "min_sites, colluding, stops, variance",
    [
        # In units of (z clip)^2: sites in the sum over (min_sites - colluding).
        (3, 0, ("south",), 3 / 3),  # as many drop out as may: exactly the promised
        (4, 0, (), 4 / 4),
        (3, 0, (), 4 / 3),  # one more than needed: more than was counted
        (3, 1, ("south",), 3 / 2),  # of which any two sites' shares are the promised
    ],
)
def test_the_opened_sum_less_the_plain_one_has_the_promised_variance(min_sites, colluding, stops, variance):
    privacy = DistributedDP(noise_multiplier=1.5, clip=2.0, min_sites=min_sites, colluding=colluding)
    conducted(privacy, stops)
    drawn = noise_of([site for site in SITES if site not in stops], 2.0)
    # The deviation of a sample variance of n Gaussians is sqrt(2 / n) of it.
    assert float(drawn.var()) == pytest.approx(3.0**2 * variance, rel=5 * math.sqrt(2 / NUMBERS))
    assert abs(float(drawn.mean())) < 5 * 3 * math.sqrt(variance / NUMBERS)


def test_the_share_of_each_is_the_whole_over_the_root_of_those_that_are_left():
    assert DistributedDP(noise_multiplier=2.0, clip=0.5, min_sites=9, colluding=0).deviation == pytest.approx(
        1 / 3
    )
    assert DistributedDP(noise_multiplier=2.0, clip=0.5, min_sites=5).deviation == pytest.approx(1 / 2)


def test_without_noise_the_sum_is_that_of_the_rounded_clipped_updates_bit_for_bit(monkeypatch):
    asked: list[float] = []

    def silent(shape, deviation):
        asked.append(deviation)
        return torch.zeros(tuple(shape), dtype=torch.float64)

    monkeypatch.setattr(distributed_dp, "gaussian", silent)
    privacy = DistributedDP(noise_multiplier=1.0, clip=3.0)
    conducted(privacy)
    assert asked == [pytest.approx(3 / math.sqrt(2))] * (2 * len(SITES))
    grid = privacy.grid
    shorter = 3.0 - math.sqrt(NUMBERS + 7) / (2 * grid)
    for name in weights():
        whole = sum(torch.round(clipped(changed(site), shorter)[name] * grid) for site in SITES)
        assert torch.equal(OPENED[0].delta[name] * len(SITES) * grid, whole)


def test_rounding_carries_no_update_over_the_clip(monkeypatch):
    monkeypatch.setattr(distributed_dp, "gaussian", lambda shape, _: torch.zeros(tuple(shape)).double())
    step = 1 / DistributedDP(noise_multiplier=1.0, clip=0.1).grid
    # Every number ends a little below the clip, and rounding up would bring every one above it.
    whole = math.floor(0.1 / math.sqrt(NUMBERS) / step)
    privacy = DistributedDP(noise_multiplier=1.0, clip=(whole + 0.75) * step * math.sqrt(NUMBERS))
    assert 1 / privacy.grid == step
    short = {"a": torch.full((NUMBERS,), (whole + 0.6) * step, dtype=torch.float64)}
    assert norm(short) < privacy.clip < norm({"a": torch.full((NUMBERS,), (whole + 1) * step).double()})
    assert norm(privacy.noised(Update("x", 1, short, 1))) <= privacy.clip


@pytest.mark.parametrize("bits", [32, 64])
def test_the_largest_noise_of_as_many_sites_as_may_be_fits(bits):
    privacy = DistributedDP(noise_multiplier=30.0, clip=7.0, bits=bits)
    largest = (7.0 + MAX_DEVIATIONS * privacy.deviation) * privacy.grid
    assert largest * MAX_SITES < 2 ** (bits - 1)
    assert largest < 2**53  # so that float64 holds every step


def test_all_weigh_the_same_and_say_nothing_of_their_cases():
    seen: list[bytes] = []
    conducted(DistributedDP(noise_multiplier=1.0), on_bytes=seen.append)
    assert not any(b"val/loss" in data for data in seen)  # `answer` reports it
    # `answer` counts 14 and 15 cases; the sum of the counts that the hub opens is that of ones.
    assert OPENED[0].examples == len(SITES)


def test_a_sum_of_too_few_is_never_opened():
    OPENED.clear()
    with pytest.raises(QuorumError, match="3 are needed for a secure sum"):
        conducted(DistributedDP(noise_multiplier=1.0), stops=("south", "west"))
    assert OPENED == []


class Channel:
    """What `protectors` hands to the secure sum, which these tests take the place of."""

    site, round = "north", 1


def test_a_round_that_is_tried_again_sends_the_same_noise(monkeypatch):
    sent: list[Update] = []

    class Attempt:
        def protect(self, update, weights):
            sent.append(replace(update, delta=dict(update.delta)))
            return update

    def twice(settings, channel):
        yield Attempt()
        yield Attempt()

    monkeypatch.setattr(distributed_dp, "protectors", twice)
    privacy = DistributedDP(noise_multiplier=1.0)
    update = Update("north", 1, changed("north"), 14)
    for protector in privacy.protectors(Channel()):
        protector.protect(update, weights())
    for protector in privacy.protectors(Channel()):  # the next round
        protector.protect(update, weights())
    first, again, later, _ = [one.delta["a"] for one in sent]
    assert torch.equal(first, again)
    assert not torch.equal(first, later)
    assert {one.examples for one in sent} == {1}


def test_what_would_leave_beside_the_update_is_refused():
    privacy = DistributedDP(noise_multiplier=1.0)
    update = Update("north", 1, weights(), 14, groups={"control": weights()})
    protector = distributed_dp._NoisedUpdate(privacy, protector=None)  # type: ignore[arg-type]
    with pytest.raises(PrivacyError, match="the groups control would leave besides the noised update"):
        protector.protect(update, weights())


def test_a_grid_too_coarse_is_refused():
    privacy = DistributedDP(noise_multiplier=1e-4)
    with pytest.raises(PrivacyError, match=r"steps of the fixed point, fewer than the 1024.*bits to 64"):
        privacy.noised(Update("north", 1, weights(), 1))
    assert msgspec.structs.replace(privacy, bits=64).noised(Update("north", 1, weights(), 1))


def test_a_model_too_large_for_the_grid_is_refused(monkeypatch):
    monkeypatch.setattr(distributed_dp, "MAX_ROUNDING", 1e-9)
    with pytest.raises(PrivacyError, match="rounding the model's 60007 numbers moves an update by up to"):
        DistributedDP(noise_multiplier=1.0).noised(Update("north", 1, weights(), 1))


# ---------------------------------------------------------------------------------------------- in a study


STUDY_FILE = """\
name: tiny
seed: 1
task: {kind: segment, classes: [background, lesion]}
network: {kind: unet, channels: [4, 8], residual_units: 0, norm: batch}
data: {kind: images, spacing_mm: [2, 2, 2], patch: [16, 16, 16], samples: 2}
train: {rounds: 2, epochs: 1, batch: 2, optimiser: {kind: adamw, lr: 0.01}}
evaluation: {draws: 20, smallest_group: 1, local_models: false, pooled_model: false, robustness: false}
sampling: {minimum: 3}
sites: {east: east, north: north, south: south, west: west}
"""


def study_file(folder, privacy: dict, **sections):
    plain = {**yaml.safe_load(STUDY_FILE), "privacy": {"kind": "distributed_dp", **privacy}, **sections}
    for site in plain["sites"]:
        (folder / site).mkdir(exist_ok=True)
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(plain))
    return path


@pytest.mark.parametrize(
    "privacy, sections, words",
    [
        ({}, {}, "give noise_multiplier, or epsilon and delta"),
        ({"epsilon": 1, "colluding": 3}, {}, "of min_sites: 3 sites colluding: 3 may reveal their noise"),
        ({"epsilon": 1, "min_sites": 4}, {}, "needs 4 sites per round, but the study continues with 3"),
        ({"epsilon": 1}, {"rule": {"kind": "median"}}, "'median' compares the sites' single updates"),
        ({"epsilon": 1}, {"rule": {"kind": "cyclic"}}, "'cyclic' merges one site at a time"),
        (
            {"epsilon": 1},
            {"compress": [{"kind": "int8"}]},
            "compress: privacy 'distributed_dp' masks each update",
        ),
        ({"epsilon": 1, "scores": "send"}, {"rule": {"kind": "fednova"}}, "needs each site's 'train/steps'"),
        (
            {"epsilon": 1},
            {"sites": {f"s{number}": "north" for number in range(12)}},
            # ceil(0.67 * 12) = 9; sqrt((9 - 1) / (3 - 1)) = 2.
            "of 12 sites a round 9 must stay anyway .*noise would be 2.0 times what is needed; set it to 9",
        ),
    ],
)
def test_what_it_cannot_hold_with_is_refused_when_the_study_is_read(tmp_path, privacy, sections, words):
    with pytest.raises(StudyError, match=words):
        read_study(study_file(tmp_path, privacy, **sections))


def test_scaffolds_control_variates_are_refused(tmp_path):
    train = {**yaml.safe_load(STUDY_FILE)["train"], "local": {"kind": "scaffold"}}
    with pytest.raises(StudyError, match="the group 'control' would leave beside it"):
        read_study(study_file(tmp_path, {"epsilon": 1}, train=train, rule={"kind": "scaffold"}))


def test_the_sum_is_accounted_as_central_gaussian_noise(tmp_path):
    study = read_study(study_file(tmp_path, {"epsilon": 3, "accountant": "rdp"}))
    planned = study.privacy.planned(10)
    # By Mironov 2017: a step of noise multiplier z costs alpha / (2 z^2) at order alpha; converted as
    # Balle 2020 does.
    orders = [1 + tenth / 10 for tenth in range(1, 2000)]
    z = planned.multiplier
    bound = min(
        10 * a / (2 * z * z) + math.log1p(-1 / a) - (math.log(1e-5) + math.log(a)) / (a - 1) for a in orders
    )
    assert bound == pytest.approx(3, rel=0.01)


@pytest.mark.slow
def test_a_whole_study_goes_on_without_the_site_that_drops_out(tmp_path):
    for site in SITES:
        make_hospital(tmp_path / site)
    file = study_file(tmp_path, {"epsilon": 5, "accountant": "rdp", "clip": 0.5})
    # More of its images are damaged than a hospital bears.
    for image in sorted((tmp_path / "west").glob("*.nii*"))[:4]:
        image.write_bytes(b"no image any more")
    done = medfed.train(file, out=tmp_path / "run")
    rounds = [json.loads(line) for line in done.rounds.read_text().splitlines()]
    status = {(one["round"], one["site"]): one["status"] for one in rounds}
    assert all(status[number, site] == "merged" for number in (1, 2) for site in ("east", "north", "south"))
    assert status[1, "west"] != "merged"
    facts = done.read_facts().privacy
    assert (facts.kind, facts.unit, facts.delta) == ("distributed_dp", "site", 1e-5)
    assert any(re.search("every hospital adds a share of the noise", note) for note in facts.notes)
    for site in ("east", "north", "south"):
        assert 4.98 < facts.sites[site].epsilon <= 5
        (account,) = Ledger(done.path / "sites" / site).accounts()
        assert account.closed
        assert sum(charge.steps for charge in account.spent) == 2
        assert epsilon(account.spent, 1e-5, "rdp") == pytest.approx(facts.sites[site].epsilon, abs=1e-4)
    assert "epsilon spent for each hospital, at delta 1e-05" in done.report.read_text()
    assert all("val/dice" not in one["scalars"] and not one["examples"] for one in rounds)

"""Client-level privacy: the bounds, the noise, the clip that adapts, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from simulated import simulated

from medfed.aggregation.fedavg import FedAvg
from medfed.errors import PrivacyError, UpdateError
from medfed.exchange import MemoryExchange
from medfed.privacy import NoPrivacy, _noise
from medfed.privacy.client_dp import CLIP, CLIPPED, Adaptive, ClientDP
from medfed.wire.messages import HubChannel, SiteChannel
from medfed.wire.update import GlobalModel, Update
from medfed.wire.weights import Difference, norm

WEIGHTS = {"a": torch.zeros(2), "b": torch.zeros(2, 1)}


def update(site: str, *values: float, examples: int = 7, **more) -> Update:
    a, b, c, d = values
    return Update(site, 1, {"a": torch.tensor([a, b]), "b": torch.tensor([[c], [d]])}, examples, **more)


@pytest.fixture
def no_noise(monkeypatch):
    asked = []

    def silent(shape, deviation):
        asked.append(deviation)
        return torch.zeros(tuple(shape), dtype=torch.float64)

    monkeypatch.setattr(_noise, "gaussian", silent)
    return asked


def test_a_difference_on_the_wire_is_no_longer_the_sites_own_weights():
    local = {"a": torch.tensor([30.0, 0.0]), "b": torch.tensor([[0.0], [40.0]])}
    kind = ClientDP(where="site", noise_multiplier=1.0)
    protected = kind.protect(Update("x", 1, Difference(local, WEIGHTS), 7), WEIGHTS)
    assert not isinstance(protected.delta, Difference)


def test_at_the_site_the_noise_is_the_multiplier_times_twice_the_clip(no_noise):
    # Two updates of length 0.5 may be 1 apart.
    kind = ClientDP(where="site", noise_multiplier=3.0, clip=0.5)
    protected = kind.protect(update("x", 3, 0, 0, 4), WEIGHTS)
    assert no_noise == [3.0, 3.0]
    assert norm(protected.delta) == pytest.approx(0.5, rel=2e-5)
    assert protected.examples == 1


def test_the_noise_at_the_site_is_measured():
    weights = {"w": torch.zeros(200_000)}
    kind = ClientDP(where="site", noise_multiplier=2.0, clip=0.5)
    drawn = kind.protect(Update("x", 1, weights, 3), weights).delta["w"]
    assert float(drawn.std()) == pytest.approx(2.0, rel=5 / math.sqrt(2 * 200_000))
    other = kind.protect(Update("x", 1, weights, 3), weights).delta["w"]
    assert not torch.equal(drawn, other)


def test_at_the_hub_all_sites_weigh_the_same_and_the_noise_is_on_the_sum(no_noise):
    # Clip 1: (0.6, 0, 0, 0.8) and (0, 0.5, 0, 0); their mean; noise of 2 on the sum of each tensor.
    kind = ClientDP(where="hub", noise_multiplier=2.0)
    updates = [update("y", 0, 0.5, 0, 0, examples=1), update("x", 3, 0, 0, 4, examples=1000)]
    (mean,), state = kind.prepare_merge(updates, {}, WEIGHTS)
    torch.testing.assert_close(mean.delta["a"], torch.tensor([0.3, 0.25]), rtol=2e-5, atol=0)
    torch.testing.assert_close(mean.delta["b"], torch.tensor([[0.0], [0.4]]), rtol=2e-5, atol=0)
    assert no_noise == [2.0, 2.0]
    assert (mean.examples, state) == (1, {})


def test_one_site_more_or_less_changes_the_sum_by_at_most_the_clip(no_noise):
    kind = ClientDP(where="hub", noise_multiplier=1.0, clip=0.7)
    updates = [update(site, *(torch.randn(4) * 3).tolist()) for site in "abcde"]

    def total(some):
        (mean,), _ = kind.prepare_merge(some, {}, WEIGHTS)
        return torch.cat([mean.delta[name].reshape(-1) for name in WEIGHTS]).double() * len(some)

    for gone in range(5):
        left = [one for number, one in enumerate(updates) if number != gone]
        assert float((total(updates) - total(left)).norm()) <= 0.7 * (1 + 1e-5)


def test_the_noise_on_the_mean_of_many_sites_is_measured():
    weights = {"w": torch.zeros(200_000)}
    kind = ClientDP(where="hub", noise_multiplier=2.0, clip=0.5)
    (mean,), _ = kind.prepare_merge([Update(site, 1, weights, 3) for site in "abcd"], {}, weights)
    assert float(mean.delta["w"].std()) == pytest.approx(2.0 * 0.5 / 4, rel=5 / math.sqrt(2 * 200_000))


def test_the_clip_follows_the_quantile_by_hand(no_noise):
    # Clip 1; lengths 0.5, 0.5, 0.5, 5: three of four are short. C exp(-0.2 (0.75 - 0.5)).
    kind = ClientDP(
        where="hub", noise_multiplier=0.1, adaptive=Adaptive(quantile=0.5, rate=0.2, count_noise=0.2)
    )
    state = kind.init(WEIGHTS)
    updates = [kind.protect(update(site, 0.5, 0, 0, 0), WEIGHTS) for site in "abc"]
    updates.append(kind.protect(update("d", 3, 0, 0, 4), WEIGHTS))
    # The hub sees the long one clipped, and that it was too long.
    assert norm(updates[3].delta) == pytest.approx(1.0, rel=2e-5)
    _, state = kind.prepare_merge(updates, state, WEIGHTS)
    assert float(state[CLIP]["clip"]) == pytest.approx(math.exp(-0.05))
    # Theorem 1: z_delta = (z^-2 - (2 s)^-2)^(-1/2), here (100 - 6.25)^(-1/2), times the clip.
    assert no_noise == [pytest.approx((100 - 6.25) ** -0.5)] * 2 + [0.2]


def test_the_clip_arrives_at_the_quantile():
    kind = ClientDP(where="hub", clip=20.0, noise_multiplier=0.05, adaptive=Adaptive(quantile=0.5, rate=0.5))
    state = kind.init(WEIGHTS)
    updates = [update(f"s{n}", n + 1, 0, 0, 0) for n in range(21)]
    for _ in range(60):
        bound = kind.for_round(GlobalModel(0, WEIGHTS, groups=state))
        sent = [bound.protect(one, WEIGHTS) for one in updates]
        assert max(norm(one.delta) for one in sent) <= float(state[CLIP]["clip"])
        _, state = kind.prepare_merge(sent, state, WEIGHTS)
    assert 8 <= float(state[CLIP]["clip"]) <= 14  # the median is 11


def test_a_count_noise_that_leaves_nothing_is_refused_with_the_cure():
    kind = ClientDP(noise_multiplier=2.0, adaptive=Adaptive(count_noise=0.5))
    with pytest.raises(PrivacyError, match=r"count_noise: 0.5 is too small .* must be above 1"):
        kind.prepare_merge([update("a", 1, 0, 0, 0)], kind.init(WEIGHTS), WEIGHTS)


ADAPTIVE = ClientDP(clip=2.0, noise_multiplier=0.1, adaptive=Adaptive(count_noise=0.2))


def said(**numbers: float) -> dict:
    return {CLIPPED: {name: torch.tensor(value, dtype=torch.float64) for name, value in numbers.items()}}


@pytest.mark.parametrize(
    "groups, words",
    [
        ({}, "does not say how it was clipped"),
        (said(clip=2.0), "does not say how it was clipped"),
        (said(clip=3.0, within=1.0), "was clipped to 3, this round's clip is 2"),
        (said(clip=2.0, within=40.0), "holds 40, expected 0 or 1"),
    ],
)
def test_an_update_that_lies_about_its_clip_is_refused_by_name(groups, words):
    session = ADAPTIVE.open_session(
        HubChannel(None, ("x",), 1, model=GlobalModel(0, WEIGHTS, groups=ADAPTIVE.init(WEIGHTS))), None
    )
    with pytest.raises(UpdateError, match=rf"update of site 'x' for round 1: .*{words}"):
        session.admit(update("x", 1.0, 0.0, 0.0, 0.0, groups=groups), WEIGHTS)
    good = update("x", 1.0, 0.0, 0.0, 0.0, groups=said(clip=2.0, within=1.0))
    assert session.admit(good, WEIGHTS) is good


def test_without_a_published_clip_nothing_is_sent():
    with pytest.raises(PrivacyError, match="the hub published no clip with the model of round 4"):
        ADAPTIVE.for_round(GlobalModel(4, WEIGHTS))
    fixed = ClientDP(noise_multiplier=0.1)
    assert fixed.for_round(GlobalModel(4, WEIGHTS)) is fixed


def test_a_site_that_only_evaluates_reads_a_model_with_a_clip():
    received = GlobalModel(1, WEIGHTS, groups=ADAPTIVE.init(WEIGHTS))
    assert NoPrivacy().decrypt(received, SiteChannel(MemoryExchange(), "x", 1)) is received


@pytest.mark.parametrize("where", ["site", "hub"])
def test_groups_beside_the_update_do_not_leave(where):
    with_group = update("x", 1, 0, 0, 0, groups={"control": {"a": torch.ones(2)}})
    with pytest.raises(PrivacyError, match="site 'x', round 1: the groups control would leave beside"):
        ClientDP(where=where, noise_multiplier=1.0).protect(with_group, WEIGHTS)


def test_only_the_noised_mean_reaches_the_rule_and_a_resumed_hub_keeps_its_clip(tmp_path):
    from medfed.federation.checkpoints import load_latest_checkpoint
    from medfed.federation.round import SiteConnection, receive, send_update

    kind = ClientDP(clip=5.0, noise_multiplier=1e-6, adaptive=Adaptive(count_noise=1e-3, rate=1.0))

    def site(length: float):
        def work(exchange: MemoryExchange) -> None:
            name = f"s{length:g}"
            channel = SiteConnection(name, exchange, kind)
            current = receive(channel, 0)
            while not current.final:
                delta = {"w": torch.tensor([length, 0.0])}
                sent = Update(name, current.round + 1, delta, 9, {"train/loss": 1.0})
                send_update(channel, sent, current.weights)
                current = receive(channel, current.round + 1)
            closing = Update(name, current.round + 1, {}, 0, {"val/dice": 0.5})
            send_update(channel, closing, current.weights)

        return work

    reports = []
    final = simulated(
        {"s1": site(1.0), "s3": site(3.0)}, {"w": torch.zeros(2)}, rule=FedAvg(), rounds=1, privacy=kind,
        folder=tmp_path, on_round=reports.append,
    )  # fmt: skip
    torch.testing.assert_close(final.weights["w"], torch.tensor([2.0, 0.0]), rtol=0, atol=1e-3)
    saved = load_latest_checkpoint(tmp_path)
    assert saved is not None
    # Both lengths are within 5, quantile 0.5: C exp(-(1 - 0.5)).
    assert float(saved[1][CLIP]["clip"]) == pytest.approx(5 * math.exp(-0.5), rel=0.01)
    for report in reports:
        for answer in report.results:
            assert dict(answer.scalars) == {}
            assert answer.examples in (0, 1)

"""Inversion brings a real case back from an unprotected update, and nothing from a clipped and noised one."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from medfed.privacy.attacks.inversion import Prior, first_linear, from_linear, invert, recovered

SIDE = 8


def blobs(count: int, seed: int) -> torch.Tensor:
    """Return images (count, 1, SIDE, SIDE) of a bright disc at a random place on a dark ground."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.rand(count, 2, generator=generator) * 4 + 2
    x, y = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    squared_distances = (x - places[:, 0, None, None]) ** 2 + (y - places[:, 1, None, None]) ** 2
    return torch.exp(-squared_distances / 3)[:, None]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.LeakyReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.LeakyReLU(),
        nn.Flatten(),
        nn.Linear(8 * SIDE * SIDE, 3),
    )


def gradient_of(net: nn.Module, targets: torch.Tensor):
    def of(inputs):
        loss = nn.functional.cross_entropy(net(inputs), targets)
        result = torch.autograd.grad(loss, list(net.parameters()), create_graph=True)
        return dict(zip(dict(net.named_parameters()), result, strict=True))

    return of


def protected(gradient: dict, clip: float, multiplier: float) -> dict:
    """Clip to a norm and add Gaussian noise (multiplier * clip) to each value, as DP-SGD does."""
    norm = math.sqrt(sum(float(g.square().sum()) for g in gradient.values()))
    generator = torch.Generator().manual_seed(1)
    return {
        name: g * min(1.0, clip / norm) + multiplier * clip * torch.randn(g.shape, generator=generator)
        for name, g in gradient.items()
    }


def test_an_image_comes_back_from_an_unprotected_update_and_not_from_a_protected_one():
    victim, others = blobs(1, seed=3), blobs(32, seed=4)
    of = gradient_of(network(), torch.tensor([1]))
    gradient = {name: value.detach() for name, value in of(victim).items()}
    prior = Prior(others.mean(0), torch.tensor(0.0), torch.tensor(1.0))
    bare = recovered(invert(gradient, of, 1, prior, steps=100), victim, prior.mean)[0]
    noised = recovered(invert(protected(gradient, 1.0, 1.0), of, 1, prior, steps=100), victim, prior.mean)[0]
    assert bare > 0.9
    # Of noise as of other patients some is alike by chance: with free contrast and a blur 0.15 here,
    # and no more.
    chance = max(recovered(other[None], victim, prior.mean)[0] for other in others[:8])
    assert noised < 0.2
    assert chance < bare


def test_a_linear_layer_gives_its_one_input_away_exactly():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
    row = torch.randn(1, 6)
    gradient = {n: g.detach() for n, g in gradient_of(net, torch.tensor([1]))(row).items()}
    assert first_linear(net) == ("0.weight", "0.bias")
    torch.testing.assert_close(from_linear(gradient, "0.weight", "0.bias"), row, rtol=1e-4, atol=1e-5)
    noised = from_linear(protected(gradient, 1.0, 1.0), "0.weight", "0.bias")
    assert recovered(noised, row, torch.zeros(6))[0] < 0.5


def test_only_the_layer_that_sees_the_input_counts():
    assert first_linear(network()) is None
    assert first_linear(nn.Sequential(nn.Linear(2, 2, bias=False))) is None


def test_recovered_by_hand():
    mean = torch.zeros(2)
    true = torch.tensor([[3.0, 4.0], [0.0, 2.0]])  # 25 and 4 from the mean, squared
    result = torch.tensor([[0.0, 1.0], [3.0, 3.0]])  # the other way round: 1 and 1 wrong, squared
    assert recovered(result, true, mean) == pytest.approx([1 - 1 / 25, 1 - 1 / 4])
    assert recovered(mean[None], true[:1], mean) == [0.0]
    assert recovered(true, true, mean) == [1.0, 1.0]


def test_a_lesion_in_the_wrong_contrast_came_back():
    mean, true = torch.zeros(1, 9, 9), torch.zeros(1, 1, 9, 9)
    true[..., 3:6, 3:6] = 1
    assert recovered(5 + 40 * true, true, mean) == pytest.approx([1.0])
    assert recovered(-true, true, mean) == [0.0]
    # By hand, over 81 pixels: the lesion has 9 and what was found 18 of them, all of the lesion's. With 81 *
    # 9 - 9 * 18 over the root of (81 * 9 - 9 * 9) (81 * 18 - 18 * 18), the correlation's square is 7 / 16.
    half = true.clone()
    half[..., 6:9, 3:6] = 1
    assert recovered(3 * half, true, mean)[0] == pytest.approx(7 / 16)
    # Noise as strong as the lesion hides it from no eye, and not from this.
    noise = torch.randn(true.shape, generator=torch.Generator().manual_seed(0))
    assert recovered(true + 0.5 * noise, true, mean)[0] > 0.4
    assert recovered(noise, true, mean)[0] < 0.1

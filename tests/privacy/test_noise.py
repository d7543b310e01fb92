"""The noise has the distribution it says, and cannot be repeated."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from scipy import stats

from medfed.errors import PrivacyError
from medfed.privacy import _noise as noise


def test_it_is_gaussian_of_the_deviation_asked_for():
    drawn = noise.gaussian((400_001,), 2.5)
    assert drawn.dtype == torch.float64
    values = drawn.numpy()
    count = len(values)
    # Five standard errors of each moment: one draw in a million fails by chance.
    assert abs(values.mean()) < 5 * 2.5 / math.sqrt(count)
    assert abs(values.var() / 2.5**2 - 1) < 5 * math.sqrt(2 / count)
    assert abs(stats.skew(values)) < 5 * math.sqrt(6 / count)
    assert abs(stats.kurtosis(values)) < 5 * math.sqrt(24 / count)
    assert stats.kstest(values / 2.5, "norm").pvalue > 1e-6


def test_values_beside_one_another_and_far_apart_are_unrelated():
    values = noise.gaussian((300_000,), 1.0).numpy()
    for lag in (1, 2, noise.BLOCK):
        related = float(np.corrcoef(values[:-lag], values[lag:])[0, 1])
        assert abs(related) < 5 / math.sqrt(len(values) - lag)


def test_a_seed_changes_nothing():
    drawn = []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002 - the point of the test
        drawn.append(noise.gaussian((8,), 1.0))
    assert not torch.equal(*drawn)


@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3, 4)])
def test_shapes(shape):
    assert noise.gaussian(shape, 1.0).shape == shape


def test_uniform_numbers_are_never_zero_and_may_be_one(monkeypatch):
    class Ends:
        def update(self, zeros):
            return b"\x00" * (len(zeros) // 2) + b"\xff" * (len(zeros) // 2)

    uniform = noise.Uniform()
    monkeypatch.setattr(uniform, "_cipher", Ends())
    low, high = uniform.draw(2).tolist()
    assert low == 2.0**-53
    assert high == 1.0
    monkeypatch.setattr(noise, "Uniform", lambda: uniform)
    # By hand: lengths of 2^-53 and angles of a whole turn give two radii of sqrt(-4 ln 2^-53), over two.
    drawn = noise.gaussian((4,), 1.0)
    assert drawn.tolist() == pytest.approx([math.sqrt(4 * 53 * math.log(2))] * 4)
    assert float(drawn[0]) < noise.MAX_DEVIATIONS


def test_uniform_numbers_are_the_stream_of_a_key_of_the_operating_system(monkeypatch):
    asked = []

    def urandom(count):
        asked.append(count)
        return bytes(range(32))

    monkeypatch.setattr(noise.os, "urandom", urandom)
    drawn = noise.Uniform().draw(6)
    assert asked == [32]
    # Counter mode by hand: the blocks 0, 1 and 2, each through the bare cipher.
    cipher = Cipher(algorithms.AES256(bytes(range(32))), modes.ECB()).encryptor()
    stream = b"".join(cipher.update(number.to_bytes(16, "big")) for number in range(3))
    # The upper 53 of each 8 bytes, the lowest first.
    whole = [int.from_bytes(stream[at : at + 8], "little") >> 11 for at in range(0, 48, 8)]
    assert drawn.tolist() == [(number + 1) / 2**53 for number in whole]


def test_each_call_has_a_key_of_its_own(monkeypatch):
    keys, urandom = [], noise.os.urandom
    monkeypatch.setattr(noise.os, "urandom", lambda count: keys.append(urandom(count)) or keys[-1])
    first, second = noise.gaussian((8,), 1.0), noise.gaussian((8,), 1.0)
    noise.poisson_sample(8, 0.5)
    assert [len(key) for key in keys] == [32] * 3
    assert len(set(keys)) == 3
    assert not torch.equal(first, second)


def test_within_a_call_nothing_comes_twice():
    drawn = noise.gaussian((3 * noise.BLOCK,), 1.0)
    assert len(set(drawn.tolist())) == len(drawn)


def test_each_is_drawn_by_itself_with_the_chance_given():
    counts = np.zeros(20)
    sizes = []
    for _ in range(3000):
        drawn = noise.poisson_sample(20, 0.3)
        counts[drawn] += 1
        sizes.append(len(drawn))
    # Binomial: 900 of 3000 with standard deviation 25 each; sizes 6 with variance 20 * 0.3 * 0.7 = 4.2.
    assert np.all(np.abs(counts - 900) < 5 * 25.1)
    assert abs(np.mean(sizes) - 6) < 5 * math.sqrt(4.2 / 3000)
    assert abs(np.var(sizes) - 4.2) < 0.8
    assert noise.poisson_sample(5, 1.0) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "deviation, sensitivity, contributions", [(1.0, 1.0, 1), (30.0, 0.1, 500), (0.7, 2, 10**6)]
)
def test_value_and_noise_are_added_on_one_grid_without_error(
    monkeypatch, deviation, sensitivity, contributions
):
    drawn = noise.gaussian((200,), deviation)
    monkeypatch.setattr(noise, "gaussian", lambda shape, asked: drawn.clone())
    values = torch.rand(200, dtype=torch.float64) * sensitivity * contributions
    noisy = noise.add_gaussian(values, deviation, sensitivity, contributions)
    step = noise.grid_step(deviation, sensitivity, contributions)
    assert math.log2(step) == int(math.log2(step))
    # By exact arithmetic: each rounded to whole steps, and added.
    for value, one, result in zip(values.tolist(), drawn.tolist(), noisy.tolist(), strict=True):
        exact = round(Fraction(value) / Fraction(step)) + round(Fraction(one) / Fraction(step))
        assert Fraction(result) == exact * Fraction(step)


def test_neighbours_results_have_the_same_low_bits():
    """Haney 2022: noise on 0 has bits below those that noise on 1 can have; on a grid neither has."""
    step = noise.grid_step(1.0, 1.0, 1)

    def finest(value):
        noised = noise.add_gaussian(torch.full((20_000,), value), 1.0, 1.0).numpy()
        return bool(np.all(noised / step == np.round(noised / step)))

    assert finest(0.0)
    assert finest(1.0)
    off_grid = noise.gaussian((1000,), 1.0).numpy() / step
    assert not np.all(off_grid == np.round(off_grid))


def test_the_grid_is_a_power_of_two_from_public_settings_by_hand():
    assert noise.grid_step(1.0, 1.0, 1) == 2.0**-36
    assert noise.grid_step(8.0, 1.0, 1) == noise.grid_step(1.0, 1.0, 1)
    assert noise.grid_step(0.25, 1.0, 1) == 2.0**-38
    # 10^6 contributions of length 1 and noise of 12: more than 2^19, less than 2^20, at 2^52 steps.
    assert noise.grid_step(1.0, 1.0, 10**6) == 2.0**-32


def test_what_does_not_fit_into_64_bits_is_refused():
    with pytest.raises(PrivacyError, match=r"up to 100000000 contributions of length 1 does not fit"):
        noise.add_gaussian(torch.zeros(2), 1.0, 1.0, 10**8)

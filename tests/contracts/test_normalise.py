"""What normalisations keep: shape, dtype, the input itself; a constant stays finite; channels are apart.

The kinds are those the folder holds, so a new file is held to this without an edit here.
"""

from __future__ import annotations

import numpy as np
import pytest

from medfed.data.normalise import Normalise
from medfed.registry import kinds, summary

KINDS = kinds("normalise")


@pytest.fixture(params=sorted(KINDS))
def normalise(request: pytest.FixtureRequest) -> Normalise:
    kind = KINDS[request.param]
    return getattr(kind, "example", kind)()  # a kind without defaults says what one looks like


@pytest.fixture
def volume() -> np.ndarray:
    rng = np.random.default_rng(1)
    return rng.normal(60, 200, (2, 9, 8, 7)).astype(np.float32)


def test_shape_and_dtype_stay(normalise: Normalise, volume: np.ndarray) -> None:
    found = normalise.image(volume)
    assert (found.shape, found.dtype) == (volume.shape, np.float32)
    assert np.isfinite(found).all()


def test_the_input_is_not_changed(normalise: Normalise, volume: np.ndarray) -> None:
    before = volume.copy()
    normalise.image(volume)[:] = 7
    np.testing.assert_array_equal(volume, before)


def test_a_constant_image_becomes_a_finite_constant(normalise: Normalise) -> None:
    found = normalise.image(np.full((1, 4, 4, 4), 1.7e6, np.float32))
    assert np.isfinite(found).all()
    assert np.ptp(found) == 0


def test_order_of_intensities_stays(normalise: Normalise, volume: np.ndarray) -> None:
    order = np.argsort(volume[0], axis=None)
    assert (np.diff(normalise.channel(volume[0]).ravel()[order]) >= 0).all()


def test_one_channel_does_not_change_another(normalise: Normalise, volume: np.ndarray) -> None:
    alone = normalise.image(volume[:1])
    np.testing.assert_array_equal(normalise.image(volume)[:1], alone)


def test_it_says_what_it_does(normalise: Normalise) -> None:
    assert len(summary(type(normalise))) > 20


@pytest.mark.parametrize("kind", ["zscore", "percentile"])
def test_a_scanners_gain_does_not_matter(kind: str, volume: np.ndarray) -> None:
    found = KINDS[kind]()
    np.testing.assert_allclose(found.channel(volume[0] * 1000 + 5e5), found.channel(volume[0]), atol=0.02)  # type: ignore[attr-defined]


def test_zscore_by_hand() -> None:
    # 1, 3: mean 2, deviation 1. With `foreground` the smallest value, 0, is not counted.
    found = KINDS["zscore"](foreground=True).channel(np.array([[[0.0, 1.0, 3.0]]], np.float32))  # type: ignore[attr-defined]
    np.testing.assert_allclose(found.ravel(), [-2, -1, 1])


def test_zscore_clips() -> None:
    found = KINDS["zscore"](clip=0.5).channel(np.array([[[1.0, 3.0]]], np.float32))  # type: ignore[attr-defined]
    np.testing.assert_allclose(found.ravel(), [-0.5, 0.5])


def test_percentile_by_hand() -> None:
    # 0 to 100: the 10th percentile is 10, the 90th 90; 50 lies in the middle, 0 and 100 are clipped.
    values = np.arange(101, dtype=np.float32).reshape(1, 1, -1)
    found = KINDS["percentile"](low=10, high=90).channel(values).ravel()  # type: ignore[attr-defined]
    np.testing.assert_allclose(found[[0, 10, 50, 70, 90, 100]], [-1, -1, 0, 0.5, 1, 1], atol=1e-6)


def test_window_by_hand() -> None:
    found = KINDS["window"](low=-100, high=300).channel(
        np.array([[[-1000.0, -100, 0, 100, 300, 3000]]], np.float32)
    )  # type: ignore[attr-defined]
    np.testing.assert_allclose(found.ravel(), [-1, -1, -0.5, 0, 1, 1])


@pytest.mark.parametrize("kind", ["percentile", "window"])
def test_low_above_high_is_refused(kind: str) -> None:
    from medfed.errors import DataError

    with pytest.raises(DataError, match="low must lie below high"):
        KINDS[kind](low=60, high=40)  # type: ignore[call-arg]

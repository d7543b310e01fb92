"""Every normalisation of the registry keeps the contract of medfed.testing; some are computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
from contract import checks_of, run

from medfed.errors import DataError
from medfed.registry import kinds
from medfed.testing import check_normalise
from medfed.testing._normalise import volume

KINDS = kinds("normalise")


@checks_of(check_normalise)
@pytest.mark.parametrize("name", sorted(KINDS))
def test_it_keeps_the_contract(name: str, check: str) -> None:
    kind = KINDS[name]
    run(check_normalise, check, getattr(kind, "example", kind)())  # a kind without defaults has an example


@pytest.mark.parametrize("kind", ["zscore", "percentile"])
def test_a_scanners_gain_does_not_matter(kind: str) -> None:
    normalise, voxels = KINDS[kind](), volume()[0]
    scaled = normalise.channel(voxels * 1000 + 5e5)  # type: ignore[attr-defined]
    np.testing.assert_allclose(scaled, normalise.channel(voxels), atol=0.02)  # type: ignore[attr-defined]


def test_zscore_by_hand() -> None:
    # 1, 3: mean 2, deviation 1. With `foreground` the smallest value, 0, is not counted.
    normalised = KINDS["zscore"](foreground=True).channel(np.array([[[0.0, 1.0, 3.0]]], np.float32))  # type: ignore[attr-defined]
    np.testing.assert_allclose(normalised.ravel(), [-2, -1, 1])


def test_zscore_clips() -> None:
    normalised = KINDS["zscore"](clip=0.5).channel(np.array([[[1.0, 3.0]]], np.float32))  # type: ignore[attr-defined]
    np.testing.assert_allclose(normalised.ravel(), [-0.5, 0.5])


def test_percentile_by_hand() -> None:
    # 0 to 100: the 10th percentile is 10, the 90th 90; 50 lies in the middle, 0 and 100 are clipped.
    values = np.arange(101, dtype=np.float32).reshape(1, 1, -1)
    normalised = KINDS["percentile"](low=10, high=90).channel(values).ravel()  # type: ignore[attr-defined]
    np.testing.assert_allclose(normalised[[0, 10, 50, 70, 90, 100]], [-1, -1, 0, 0.5, 1, 1], atol=1e-6)


def test_window_by_hand() -> None:
    normalised = KINDS["window"](low=-100, high=300).channel(
        np.array([[[-1000.0, -100, 0, 100, 300, 3000]]], np.float32)
    )  # type: ignore[attr-defined]
    np.testing.assert_allclose(normalised.ravel(), [-1, -1, -0.5, 0, 1, 1])


@pytest.mark.parametrize("kind", ["percentile", "window"])
def test_low_above_high_is_refused(kind: str) -> None:
    with pytest.raises(DataError, match="low must lie below high"):
        KINDS[kind](low=60, high=40)  # type: ignore[call-arg]

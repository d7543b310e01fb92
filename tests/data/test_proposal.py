"""The settings that are proposed from a merged fingerprint."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from medfed.data.fingerprint import merge
from medfed.data.normalise.fingerprint import FederatedFingerprint
from medfed.data.proposal import propose_patch, propose_settings
from medfed.data.settings import Images

from .site_in_memory import Site


@pytest.fixture(scope="module")
def sites() -> list[Site]:
    # One large site and two small ones far off: where averages of percentiles fail.
    return [Site(1, 30, 40.0), Site(2, 10, 300.0), Site(3, 12, -100.0)]


def test_a_proposal_is_settings_that_a_study_takes(sites: list[Site]) -> None:
    merged = merge([site.fingerprint() for site in sites])
    proposed = propose_settings(merged)
    settings = msgspec.convert({k: v for k, v in proposed.items() if k != "kind"}, Images)
    assert isinstance(settings.normalise, FederatedFingerprint)
    np.testing.assert_allclose(settings.spacing_mm, (1, 1, 3), rtol=0.005)
    values = np.concatenate([site.foreground for site in sites]).astype(np.float64)
    clipped = values.clip(settings.normalise.low, settings.normalise.high)
    expected = (clipped - values.mean()) / values.std()
    np.testing.assert_allclose(settings.normalise.channel(values.astype(np.float32)), expected, atol=2e-3)


def test_a_patch_fits_the_image_and_the_budget() -> None:
    # Whole when it fits: 64 x 64 x 48 is below 96 cubed.
    assert propose_patch(np.array([64.0, 64, 48]), np.ones(3), 96**3) == [64, 64, 48]
    # A large CT of 0.8 x 0.8 x 3 mm: fewer voxels along the coarse axis.
    patch = propose_patch(np.array([512.0, 512, 130]), np.array([0.8, 0.8, 3.0]), 96**3)
    assert np.prod(patch) <= 96**3
    assert patch[0] == patch[1] > 2 * patch[2]
    assert all(number % 8 == 0 for number in patch)

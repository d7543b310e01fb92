"""Every normalisation of the registry keeps the contract of medfed.testing."""

from __future__ import annotations

import numpy as np
import pytest
from contract import checks_of, run

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

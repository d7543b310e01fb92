"""A window of fixed units becomes -1 to 1, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from medfed.data.normalise.window import Window
from medfed.errors import DataError


def test_values_in_the_window_are_mapped_and_the_others_clipped() -> None:
    values = np.array([[[-1000.0, -100, 0, 100, 300, 3000]]], np.float32)
    normalised = Window(low=-100, high=300).channel(values)
    np.testing.assert_allclose(normalised.ravel(), [-1, -1, -0.5, 0, 1, 1])
    assert normalised.dtype == np.float32


def test_the_default_is_the_window_of_soft_tissue() -> None:
    values = np.array([[[-160.0, 40, 240]]], np.float32)
    np.testing.assert_allclose(Window().channel(values).ravel(), [-1, 0, 1])


def test_low_above_high_is_refused() -> None:
    with pytest.raises(DataError, match="normalise 'window': low is 40, high is 40; low must lie below high"):
        Window(low=40, high=40)

"""The figure of an audit: which slice is drawn, which way round, and a column for each picture."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.image import imread

from medfed.pipeline.leakage.figure import _slice, _title, draw_figure
from medfed.pipeline.leakage.findings import Findings


def findings(true, mean, **pictures):
    return Findings("heart", "north", "segment", (), (), pictures={"true": true, "mean": mean, **pictures})


def test_the_middle_slice_is_drawn_with_the_front_up():
    # (C, X, Y, Z): brightness 10 x + y in the middle slice, where x runs to the right and y to the front.
    image = torch.zeros(1, 2, 3, 5)
    image[0, :, :, 2] = torch.tensor([[0.0, 1, 2], [10, 11, 12]])
    # Rows run from front to back, columns from the patient's right to the left.
    np.testing.assert_array_equal(_slice(image), [[12, 2], [11, 1], [10, 0]])
    np.testing.assert_array_equal(_slice(image[..., 2]), [[12, 2], [11, 1], [10, 0]])


def test_what_was_done_without_protection_is_called_so():
    assert _title("none") == "reconstructed, no protection"
    assert _title("client_dp") == "reconstructed, under the study's client_dp"


def test_a_column_per_picture(tmp_path):
    """Each column is 3.2 inches wide at 120 dots per inch."""
    true, mean = torch.rand(2, 1, 4, 4), torch.rand(1, 4, 4)
    draw_figure(findings(true, mean, none=true, client_dp=true), tmp_path / "four.png")
    assert imread(tmp_path / "four.png").shape[:2] == (432, 4 * 384)


def test_rows_of_a_table_are_drawn(tmp_path):
    true, mean = torch.rand(1, 6), torch.rand(6)
    draw_figure(findings(true, mean, none=true * 1e9), tmp_path / "rows.png")
    assert imread(tmp_path / "rows.png").shape[:2] == (432, 3 * 384)

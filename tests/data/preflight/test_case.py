"""The examination of one case: the scanner's name, and text in the picture."""

from __future__ import annotations

import numpy as np

from medfed.data.preflight.case import overlay_pixels, scanner


def test_scanner_tells_only_manufacturers_that_are_known() -> None:
    assert scanner({"manufacturer": "SIEMENS Healthineers", "tesla": "1.494"}) == "Siemens, 1.5 T"
    assert scanner({"manufacturer": "Ann Example's scanner"}) == "another manufacturer"
    assert scanner({"manufacturer": "GE MEDICAL SYSTEMS", "kv": "Ann"}) == "GE"


def test_overlay_counts_text_in_every_slice_but_not_a_bright_background() -> None:
    array = np.random.default_rng(0).normal(0, 1, (40, 40, 6)).astype(np.float32)
    assert overlay_pixels(array) == 0
    array[3:8, 3:9] = 50  # 30 of 1600 pixels
    assert overlay_pixels(array) == 30
    array[:20] = 50
    assert overlay_pixels(array) == 0

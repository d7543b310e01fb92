"""What comparing the cases of a site with each other shows."""

from __future__ import annotations

import re

import numpy as np

from medfed.data.preflight.preflight import Preflight, check

from .conftest import SIZE, Hospital, body

SECRET = b"0123456789abcdef" * 2


def rows(found: Preflight, code: str) -> set[int]:
    """The rows that a problem names."""
    names = [name for problem in found.problems if problem.code == code for name, _ in problem.cases]
    return {int(re.match(r"row (\d+) \([0-9a-f]{12}\)$", name)[1]) for name in names}


def test_a_patient_in_two_splits_and_an_image_in_two(hospital: Hospital) -> None:
    hospital.add(split="train", patient="one")
    twice = hospital.add(split="test", patient="one")
    hospital.add(body(50), split="train")
    copied = hospital.add(body(50), split="val")
    preflight = check(hospital.write(), site_secret=SECRET, processes=1)
    assert rows(preflight, "patient_in_two_splits") == {twice}
    assert rows(preflight, "duplicate_across_splits") == {copied}


def test_an_empty_label_of_a_case_with_target_0_is_only_noted(hospital: Hospital) -> None:
    nothing = np.zeros((SIZE,) * 3, np.uint8)
    healthy = hospital.add(label=nothing, target="0")
    lost = hospital.add(label=nothing, target="1")
    preflight = check(hospital.write(), site_secret=SECRET, processes=1)
    assert rows(preflight, "label_healthy") == {healthy}
    assert rows(preflight, "label_empty") == {lost}

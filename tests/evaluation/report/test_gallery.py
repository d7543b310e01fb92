"""Pictures that stay: the right cases, the right slice, the right side, the right proportions."""

from __future__ import annotations

import re

import numpy as np
import pytest

from medfed.errors import RunError
from medfed.evaluation import rows
from medfed.evaluation.report.gallery import (
    CaseImages,
    canonical,
    choose_cases,
    outlines,
    planes,
    write_gallery,
)
from medfed.evaluation.rows import CaseRow


def case(name, dice, note=None, **more):
    about = {"model": "federated", "site": "north", "split": "test", "structure": "lesion", **more}
    return CaseRow(case=name, patient=name, metric="dice", value=dice, note=note, **about)


CASES = [
    case("a", 0.9),
    case("b", 0.1),
    case("c", 0.5),
    case("d", 0.6),
    case("e", 0.0, "missed"),
    case("f", 0.95),
]


def test_worst_median_best_and_failures_are_chosen():
    result = {choice.why: choice.token for choice in choose_cases(CASES)}
    assert result == {"worst; lesion missed": "e", "median": "c", "best": "f"}
    assert choose_cases([case("x", 0.5, model="pooled")]) == []


def shown(affine=None):
    image = np.random.default_rng(0).normal(100, 10, (12, 10, 8))
    reference = np.zeros((12, 10, 8), np.uint8)
    reference[2:5, 3:6, 4:6] = 1
    prediction = np.roll(reference, 1, axis=0)
    return CaseImages(
        image, prediction, reference, np.diag([1.0, 2.0, 3.0, 1.0]) if affine is None else affine
    )


def test_arrays_are_turned_to_right_anterior_superior_with_their_spacing():
    affine = np.array([[0, 0, -3.0, 9], [-1.0, 0, 0, 4], [0, 2.0, 0, 0], [0, 0, 0, 1]])
    image, prediction, reference, spacing_mm = canonical(shown(affine))
    # Voxel axis 0 runs to posterior by 1 mm, axis 1 to superior by 2 mm, axis 2 to the left by 3 mm.
    assert image.shape == (8, 12, 10)
    assert spacing_mm == (3.0, 1.0, 2.0)
    source = shown(affine)
    assert image[0, 0, 0] == source.image[11, 0, 7]
    assert reference[2, 7, 3] == source.reference[4, 3, 5] == 1
    assert prediction.sum() == source.prediction.sum()


def test_the_outline_lies_on_the_pixels_edges():
    mask = np.zeros((6, 6), bool)
    mask[2:4, 1:5] = True
    (line,) = outlines(mask)
    assert line.min(axis=0) == pytest.approx([1, 2], abs=0.51)
    assert line.max(axis=0) == pytest.approx([5, 4], abs=0.51)
    assert (line[0] == line[-1]).all()


def test_planes_have_true_proportions_and_the_patients_right_on_the_left():
    result = dict(planes(shown(), "x", {1: "lesion"}))
    width, height = map(float, re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', result["axial"]).groups())
    assert width / height == pytest.approx(12 * 1 / (10 * 2), rel=0.01)
    width, height = map(float, re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', result["coronal"]).groups())
    assert width / height == pytest.approx(12 * 1 / (8 * 3), rel=0.01)
    # The lesion is at x 2 to 5 of 12, so seen from the feet it is in the picture's right half.
    points = re.search(r'class="reference-line" points="([^"]+)"', result["axial"]).group(1)
    across = [float(point.split(",")[0]) for point in points.split()]
    scale = 300 / 20
    assert min(across) == pytest.approx((12 - 5) * scale, abs=0.55 * scale)
    assert max(across) == pytest.approx((12 - 2) * scale, abs=0.55 * scale)


def test_the_page_says_that_it_stays_and_is_one_file(tmp_path):
    rows.write(tmp_path / "cases.jsonl", CASES)
    asked = []

    def load(site, token):
        asked.append((site, token))
        return shown()

    text = write_gallery(tmp_path, load, {1: "lesion"}).read_text()
    assert asked == [("north", "e"), ("north", "c"), ("north", "f")]
    assert "this file stays in the hospital" in text
    assert text.count("<svg") == 9
    assert not re.search(r"https?://|<script", text)
    assert text == write_gallery(tmp_path, load, {1: "lesion"}).read_text()


def test_case_without_a_reference_is_shown_where_the_prediction_is(tmp_path):
    empty = shown()._replace(reference=np.zeros((12, 10, 8), np.uint8))
    assert all("prediction-line" in svg for _, svg in planes(empty, "x", {1: "lesion"}))


def test_without_case_rows_there_are_no_pages(tmp_path):
    with pytest.raises(
        RunError, match=r"no cases\.jsonl in this folder; local pages are made in the hospital"
    ):
        write_gallery(tmp_path, lambda site, token: shown(), {1: "lesion"})

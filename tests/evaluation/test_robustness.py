"""Perturbations do what their names say, and their rows are paired differences from the unchanged images."""

from __future__ import annotations

import numpy as np
import pytest

from medfed.evaluation import robustness
from medfed.evaluation.patients import SummarySettings
from medfed.evaluation.rows import CaseRow

SPACING_MM = (1.0, 1.0, 3.0)


@pytest.fixture
def image():
    return np.random.default_rng(0).normal(100, 20, (2, 12, 11, 10)).astype(np.float32)


def changed(name, image, spacing_mm=SPACING_MM, seed=0):
    return robustness.IMAGE_CHANGES[name](image, spacing_mm, np.random.default_rng(seed))


@pytest.mark.parametrize("name", robustness.IMAGE_CHANGES)
def test_each_change_changes_leaves_its_input_alone_and_repeats(name, image):
    before = image.copy()
    perturbed = changed(name, image)
    assert np.array_equal(image, before)
    assert perturbed.shape == image.shape
    assert perturbed.dtype == np.float32
    assert np.isfinite(perturbed).all()
    assert not np.array_equal(perturbed, image)
    assert np.array_equal(changed(name, image), perturbed)
    # A constant image, such as an empty crop, breaks nothing.
    assert np.isfinite(changed(name, np.zeros_like(image))).all()


def test_the_shift_is_a_fifth_of_the_range(image):
    low, high = np.percentile(image[1], (0.5, 99.5))
    assert changed("intensity shifted by 20 %", image)[1] - image[1] == pytest.approx(
        0.2 * (high - low), abs=1e-3
    )


def test_the_noise_is_a_tenth_of_the_range():
    image = np.random.default_rng(1).uniform(0, 1, (1, 60, 60, 60)).astype(np.float32)
    noise = changed("noise of 10 %", image) - image
    assert noise.std() == pytest.approx(0.1 * 0.99, rel=0.02)


def test_every_fourth_slice_along_the_widest_spacing_is_its_neighbours_mean(image):
    perturbed = changed("every 4th slice lost", image)
    for z in range(10):
        expected = (image[..., z - 1] + image[..., z + 1]) / 2 if z in (3, 7) else image[..., z]
        assert np.allclose(perturbed[..., z], expected), z
    turned = changed("every 4th slice lost", image, (3.0, 1.0, 1.0))
    assert np.allclose(turned[:, 3], (image[:, 2] + image[:, 4]) / 2)
    # Equal spacing: along the last axis, as a stack of axial slices is stored.
    assert np.allclose(changed("every 4th slice lost", image, (1, 1, 1)), perturbed)


def test_contrast_keeps_order_and_ends(image):
    perturbed = changed("contrast bent (power 1.5)", image)
    order = np.argsort(image[0], axis=None)
    assert (np.diff(perturbed[0].ravel()[order]) >= -1e-3).all()
    low, high = np.percentile(image[0], (0.5, 99.5))
    middle = np.full((1, 4, 4, 4), 0.5, np.float32)
    middle[0, 0, 0, 0], middle[0, 0, 0, 1] = 0.0, 1.0
    lowest, highest = np.percentile(middle, (0.5, 99.5))
    unit = (0.5 - lowest) / (highest - lowest)
    bent = changed("contrast bent (power 1.5)", middle)[0, 2, 2, 2]
    assert bent == pytest.approx(lowest + (highest - lowest) * unit**1.5, abs=1e-6)
    assert low < high


def test_a_tables_categories_are_left_as_they_are():
    generator = np.random.default_rng(0)
    features = np.stack([generator.normal(0, 2, 50), generator.integers(0, 2, 50)], axis=1).astype(np.float32)
    for change in robustness.TABLE_CHANGES.values():
        perturbed = change(features, np.random.default_rng(1))
        assert np.array_equal(perturbed[:, 1], features[:, 1])
        assert not np.allclose(perturbed[:, 0], features[:, 0])
    shift = robustness.table_shifted(features, generator)[:, 0] - features[:, 0]
    assert shift == pytest.approx(0.25 * features[:, 0].std(), rel=1e-4)


def case(site, patient, value, condition=None):
    return CaseRow(
        model="federated",
        site=site,
        split="test",
        case=f"c{patient}",
        patient=f"p{patient}",
        metric="dice",
        structure="lesion",
        value=value,
        condition=condition,
    )


def test_rows_are_paired_differences_and_hidden_where_all_else_is():
    plain = [case("north", p, 0.80 + 0.01 * p) for p in range(8)]
    noise = [case("north", p, 0.70 + 0.01 * p, "noise of 10 %") for p in range(8)]
    few = [case("south", p, 0.5, condition) for p in range(2) for condition in (None, "noise of 10 %")]
    rows = robustness.robustness(
        [*plain, *noise, *few], SummarySettings(round=3, seed=0, min_patients=5, draws=200)
    )
    shown = [row for row in rows if row.metric == "dice"]
    assert {(row.site, row.group, row.against) for row in shown} == {
        ("all", "condition=noise of 10 %", "unchanged")
    } | (set())
    assert shown[0].value == pytest.approx((8 * -0.1 + 2 * 0.0) / 10)


def test_without_changed_cases_there_are_no_rows():
    assert (
        robustness.robustness([case("north", p, 0.8) for p in range(8)], SummarySettings(round=1, seed=0))
        == []
    )

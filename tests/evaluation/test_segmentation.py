"""Masks against brute force, SimpleITK-style definitions and MONAI, and the edge cases that peers get
wrong."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.distance import cdist

from medfed.errors import LabelError
from medfed.evaluation.metrics import measure_masks
from medfed.evaluation.segmentation import (
    count_lesions,
    hausdorff_of,
    mean_distance_of,
    spacing_of,
    surface_dice_of,
    surface_distances,
)


def values(prediction, reference, spacing_mm=(1.0, 1.0, 1.0), **options):
    measured = measure_masks(prediction, reference, spacing_mm, {1: "lesion"}, **options)
    return {item.metric: (item.value, item.note) for item in measured}


def blob(seed, shape=(14, 12, 10), threshold=0.55):
    noise = np.random.default_rng(seed).random(shape)
    return ndimage.gaussian_filter(noise, 1.2) > np.quantile(ndimage.gaussian_filter(noise, 1.2), threshold)


def brute_force(prediction, reference, spacing_mm):
    """Both directed lists of distances, by looking at every voxel's neighbours and every pair."""
    surfaces = []
    for mask in (prediction, reference):
        points = []
        for place in zip(*np.nonzero(mask), strict=True):
            for axis, step in itertools.product(range(mask.ndim), (-1, 1)):
                there = list(place)
                there[axis] += step
                if not 0 <= there[axis] < mask.shape[axis] or not mask[tuple(there)]:
                    points.append([float(v) * s for v, s in zip(place, spacing_mm, strict=True)])
                    break
        surfaces.append(np.array(points))
    distances = cdist(*surfaces)
    return distances.min(axis=1), distances.min(axis=0)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (0.5, 0.7, 4.0)])
def test_distances_equal_brute_force_also_where_structures_touch_the_border(seed, spacing_mm):
    prediction, reference = blob(seed), blob(seed + 100)
    reference[:, :, 0] |= reference[:, :, 1]
    expected, back = brute_force(prediction, reference, spacing_mm)
    measured = values(prediction.astype(np.uint8), reference.astype(np.uint8), spacing_mm, tolerance_mm=1.0)
    pooled = np.concatenate([expected, back])
    directed = max(np.quantile(expected, 0.95), np.quantile(back, 0.95))
    assert measured["hd95_mm"][0] == pytest.approx(directed, rel=1e-12)
    assert measured["msd_mm"][0] == pytest.approx(pooled.mean(), rel=1e-12)
    assert measured["nsd_voxel_1mm"][0] == pytest.approx((pooled <= 1.0).mean(), rel=1e-12)


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (0.8, 1.2, 3.0)])
def test_voxel_form_equals_monai_on_random_masks(spacing_mm):
    torch = pytest.importorskip("torch")
    from monai.metrics import (
        compute_average_surface_distance,
        compute_hausdorff_distance,
        compute_surface_dice,
    )

    for seed in range(5):
        ours, theirs = blob(seed), blob(seed + 50)
        measured = values(ours, theirs, spacing_mm, tolerance_mm=1.5)
        y_pred, y = (torch.from_numpy(mask)[None, None].float() for mask in (ours, theirs))
        hd95 = compute_hausdorff_distance(
            y_pred, y, include_background=True, percentile=95, spacing=spacing_mm
        )
        mean = compute_average_surface_distance(
            y_pred, y, include_background=True, symmetric=True, spacing=spacing_mm
        )
        near = compute_surface_dice(y_pred, y, [1.5], include_background=True, spacing=spacing_mm)
        assert measured["hd95_mm"][0] == pytest.approx(hd95.item(), rel=1e-5)
        assert measured["msd_mm"][0] == pytest.approx(mean.item(), rel=1e-5)
        assert measured["nsd_voxel_1.5mm"][0] == pytest.approx(near.item(), rel=1e-5)


def test_surfel_form_equals_monai_and_differs_from_the_voxel_form():
    torch = pytest.importorskip("torch")
    from monai.metrics import compute_surface_dice

    prediction, reference, spacing_mm = blob(3), blob(4), (0.8, 1.2, 3.0)
    measured = values(prediction, reference, spacing_mm, tolerance_mm=1.0, form="surfel")
    y_pred, y = (torch.from_numpy(mask)[None, None].float() for mask in (prediction, reference))
    expected = compute_surface_dice(
        y_pred, y, [1.0], include_background=True, spacing=spacing_mm, use_subvoxels=True
    )
    assert measured["nsd_surfel_1mm"][0] == pytest.approx(expected.item(), rel=1e-5)
    assert (
        measured["nsd_surfel_1mm"][0]
        != values(prediction, reference, spacing_mm, tolerance_mm=1.0)["nsd_voxel_1mm"][0]
    )


def test_two_surfel_planes_are_as_far_apart_as_they_were_drawn():
    # Two slabs through the whole cross-section, the top 3 voxels of 2 mm apart. The top faces are 20 x 30
    # mm each.
    reference, prediction = np.zeros((20, 15, 12), bool), np.zeros((20, 15, 12), bool)
    reference[:, :, :4], prediction[:, :, :7] = True, True
    surfaces = surface_distances(prediction, reference, (1.0, 2.0, 2.0), "surfel")
    assert hausdorff_of(surfaces, 1.0, "surfel") == 6.0
    assert hausdorff_of(surfaces, 0.01, "surfel") == 0.0


def test_hd95_is_the_larger_direction_not_the_pool_of_both():
    # 100 points of the prediction lie on the reference, 5 of the reference's 15 lie 10 mm off: only one
    # direction sees it.
    prediction, reference = np.zeros((130, 1), bool), np.zeros((130, 1), bool)
    prediction[:100], reference[:10], reference[105:110] = True, True, True
    measured = values(prediction, reference, (1.0, 1.0))
    there = np.array([0.0] * 10 + [min(i - 9, 105 - i) for i in range(10, 100)])
    back = np.array([0.0] * 10 + [6.0, 7.0, 8.0, 9.0, 10.0])
    assert measured["hd95_mm"][0] == pytest.approx(max(np.quantile(there, 0.95), np.quantile(back, 0.95)))
    assert measured["hd95_mm"][0] > np.quantile(np.concatenate([there, back]), 0.95)


def test_one_voxel_each_is_as_far_as_pythagoras_says():
    prediction, reference = np.zeros((9, 9, 9), np.uint8), np.zeros((9, 9, 9), np.uint8)
    prediction[0, 0, 0], reference[3, 4, 2] = 1, 1
    measured = values(prediction, reference, (1.0, 1.0, 6.0))
    assert measured["hd95_mm"] == (13.0, None)
    assert measured["msd_mm"] == (13.0, None)
    assert measured["dice"] == (0.0, None)
    assert measured["volume_ml"][0] == pytest.approx(0.006)


FULL, EMPTY = np.ones((3, 3, 3), np.uint8), np.zeros((3, 3, 3), np.uint8)


@pytest.mark.parametrize(
    "prediction, reference, overlap, note",
    [
        (EMPTY, FULL, 0.0, "missed"),
        (FULL, EMPTY, 0.0, "false positive"),
        (EMPTY, EMPTY, None, "absent in both"),
    ],
)
def test_absence_is_stated_and_never_a_perfect_distance(prediction, reference, overlap, note):
    measured = values(prediction, reference)
    assert measured["dice"] == (overlap, note)
    assert measured["nsd_voxel_2mm"] == (overlap, note)
    assert measured["hd95_mm"] == (None, note)
    assert measured["msd_mm"] == (None, note)


def test_volume_difference_has_its_sign_and_true_millilitres():
    prediction = np.zeros((10, 10, 10), bool)
    prediction[:2] = True
    reference = np.zeros((10, 10, 10), bool)
    reference[:5] = True
    # 300 voxels of 0.5 x 0.5 x 4 mm are 300 mm3.
    assert values(prediction, reference, (0.5, 0.5, 4.0))["volume_difference_ml"][0] == pytest.approx(-0.3)


def test_lesions_are_counted_one_by_one():
    reference, prediction = np.zeros((20, 5, 5), bool), np.zeros((20, 5, 5), bool)
    reference[0:2, 0, 0] = reference[5, 2, 2] = reference[6, 3, 3] = reference[10, 0, 0] = True
    prediction[1, 0, 0] = prediction[15] = True
    prediction[18, 1, 1] = True
    # Three lesions (the diagonal pair is one), the first is found; the slab and the point are invented.
    assert count_lesions(prediction, reference) == (3, 1, 2)
    measured = values(prediction, reference)
    assert measured["lesion_sensitivity"][0] == pytest.approx(1 / 3)
    assert measured["false_positives"][0] == 2.0


def test_no_lesion_in_the_reference_leaves_sensitivity_undefined():
    assert values(FULL, EMPTY)["lesion_sensitivity"] == (None, "no lesion in the reference")


def test_structures_are_measured_apart():
    prediction = np.array([[1, 1, 2, 2, 0]], np.int16)
    reference = np.array([[1, 1, 1, 2, 2]], np.int16)
    result = {
        (item.structure, item.metric): item.value
        for item in measure_masks(prediction, reference, (1.0, 1.0), {1: "liver", 2: "tumour"})
    }
    assert result["liver", "dice"] == pytest.approx(4 / 5)
    assert result["tumour", "dice"] == pytest.approx(2 / 4)


def test_an_unknown_label_value_is_an_error_not_background():
    with pytest.raises(
        LabelError, match=r"reference: contains the label value 3, known values are 1 \(lesion\) and 0"
    ):
        measure_masks(EMPTY, FULL * 3, (1, 1, 1), {1: "lesion"})
    with pytest.raises(LabelError, match="prediction: contains the label value nan"):
        measure_masks(np.full((3, 3, 3), np.nan), FULL, (1, 1, 1), {1: "lesion"})


def test_other_grids_and_impossible_spacings_are_errors():
    with pytest.raises(LabelError, match=r"prediction has shape \(3, 3\), the reference \(3, 3, 3\)"):
        measure_masks(EMPTY[0], FULL, (1, 1, 1), {1: "lesion"})
    with pytest.raises(LabelError, match="spacing_mm: found"):
        measure_masks(EMPTY, FULL, (1, 0, 1), {1: "lesion"})


def test_spacing_comes_from_an_oblique_affine_and_a_sheared_one_is_refused():
    angle = 0.3
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-0.5, 0.7, 3.0])
    assert spacing_of(affine) == pytest.approx((0.5, 0.7, 3.0))
    affine[0, 2] += 0.5
    with pytest.raises(LabelError, match="two axes have a cosine of"):
        spacing_of(affine)


def test_distances_are_symmetric_and_zero_between_equals():
    surfaces = surface_distances(blob(1), blob(1), (1.0, 1.0, 2.0))
    assert mean_distance_of(surfaces) == 0.0
    assert surface_dice_of(surfaces, 0.0) == 1.0
    one = values(blob(1), blob(2), (1.0, 1.0, 2.0))
    other = values(blob(2), blob(1), (1.0, 1.0, 2.0))
    assert one["hd95_mm"] == other["hd95_mm"]


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (0.4, 0.5, 6.0), (3.0, 0.7), (0.05, 8.0)])
def test_elements_near_and_far_have_the_distance_that_all_pairs_give(spacing_mm):
    """Near ones are looked up voxel by voxel and far ones in a tree; both must be what
    trying every pair finds.
    """
    shape = (60, 50, 9)[: len(spacing_mm)]
    generator = np.random.default_rng(0)
    one, two = np.zeros(shape, bool), np.zeros(shape, bool)
    one[2:9, 3:12], two[3:9, 3:13] = True, True  # within a voxel or two of each other
    one[40:55, 30:45] |= generator.random(one[40:55, 30:45].shape) < 0.5  # far from all of the other
    distances = surface_distances(one, two, spacing_mm)
    expected, back = brute_force(one, two, spacing_mm)
    assert expected.min() == 0
    assert expected.max() > 20  # a tree's part, on each of these grids
    np.testing.assert_allclose(distances.to_reference_mm, expected, rtol=0, atol=1e-9)
    np.testing.assert_allclose(distances.to_prediction_mm, back, rtol=0, atol=1e-9)

"""Masks of planes are measured in their plane: areas for volumes, and pixels where a picture has no mm."""

from __future__ import annotations

import numpy as np
import pytest

from medfed.data.settings import Images
from medfed.evaluation import robustness
from medfed.evaluation.inference import Reference, _segmented, perturbations
from medfed.evaluation.metrics import measure_masks, metric_of
from medfed.models.tasks.classify import Classify
from medfed.models.tasks.segment import Segment

PLANES = Images(spatial_dims=2, spacing_mm="native", patch=None)
SLICES = Images(spatial_dims=2, slices="axial", spacing_mm="native", patch=None)


def masks() -> tuple[np.ndarray, np.ndarray]:
    """Return a square of 4 x 4 and the same, three columns further."""
    prediction, reference = np.zeros((12, 12), np.uint8), np.zeros((12, 12), np.uint8)
    prediction[2:6, 4:8] = 1
    reference[5:9, 4:8] = 1
    return prediction, reference


def values(unit: str, spacing_mm: tuple[float, float]) -> dict[str, float | None]:
    prediction, reference = masks()
    measured = measure_masks(prediction, reference, spacing_mm, {1: "nodule"}, 1.0, unit=unit)  # type: ignore[arg-type]
    return {one.metric: one.value for one in measured}


def test_distances_and_areas_of_a_plane_by_hand() -> None:
    measured = values("mm", (0.5, 2.0))
    # The farthest edge pixels are three columns of 0.5 mm away; 16 pixels of 1 mm2.
    assert measured["hd95_mm"] == pytest.approx(1.5)
    assert measured["area_mm2"] == pytest.approx(16.0)
    assert measured["reference_area_mm2"] == pytest.approx(16.0)
    assert measured["area_difference_mm2"] == 0.0
    assert measured["dice"] == pytest.approx(2 * 4 / 32)
    assert not [name for name in measured if name.endswith(("_ml", "px"))]


def test_pictures_are_measured_in_pixels() -> None:
    measured = values("px", (1.0, 1.0))
    assert measured["hd95_px"] == pytest.approx(3.0)
    assert measured["area_px"] == 16.0
    assert "nsd_voxel_1px" in measured
    assert not [name for name in measured if "mm" in name or name.endswith("_ml")]


def test_units_in_titles() -> None:
    assert metric_of("nsd_voxel_2px").title == "Surface Dice at 2 px"
    assert metric_of("nsd_voxel_2mm").title == "Surface Dice at 2 mm"
    assert (metric_of("hd95_px").unit, metric_of("area_mm2").unit) == ("px", "mm²")
    assert metric_of("area_difference_px").better == "zero"


def test_a_plane_is_measured_without_its_third_axis() -> None:
    task = Segment(classes=("background", "nodule"))
    prediction, reference = masks()
    probabilities = np.stack([1 - prediction, prediction])[..., None].astype(np.float32)
    about = {"model": "m", "split": "test", "case": "c", "patient": "p", "attributes": {}, "site": "north"}
    rows = {
        row.metric: row.value
        for row in _segmented(task, probabilities, Reference(reference, (1.0, 1.0), "px"), 2.0, about)
    }
    assert rows["hd95_px"] == pytest.approx(3.0)


def test_a_plane_has_no_slices_to_lose() -> None:
    task = Classify(classes=("a", "b"))
    assert robustness.LOST_SLICES not in perturbations(task, PLANES)
    assert set(perturbations(task, SLICES)) == set(robustness.IMAGE_CHANGES)
    assert set(perturbations(task, Images())) == set(robustness.IMAGE_CHANGES)

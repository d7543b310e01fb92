"""Compare the metrics' speed with widely used libraries, on one large case and on 2,000 patients.

    python benchmarks/metrics.py  # a minute or two, with no shorter form

Prints one line per measurement: our time, their time, and both values, which must agree.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import ndimage

from medfed.evaluation import classification, segmentation
from medfed.evaluation.intervals import Resampling
from medfed.evaluation.metrics import measure_masks

REPEATS = 5


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Return the shortest time of a few runs in milliseconds, and the result."""
    best, found = float("inf"), None
    for _ in range(REPEATS):
        began = time.perf_counter()
        found = function()
        best = min(best, time.perf_counter() - began)
    return best * 1000, found


def case(shape: tuple[int, int, int] = (256, 256, 128)) -> tuple[np.ndarray, np.ndarray]:
    """Return a prediction and a reference of an organ of about 100 x 100 x 50 voxels with a rough surface."""
    grid = np.indices(shape, dtype=np.float32) - np.array(shape, np.float32).reshape(3, 1, 1, 1) / 2
    radii = np.array([50, 50, 25], np.float32).reshape(3, 1, 1, 1)
    distance = np.sqrt(((grid / radii) ** 2).sum(axis=0))
    rough = [
        ndimage.gaussian_filter(np.random.default_rng(s).normal(0, 1, shape).astype(np.float32), 3)
        for s in (0, 1)
    ]
    return tuple(distance + 1.5 * noise < 1 for noise in rough)  # type: ignore[return-value]


def main() -> None:
    """Print the table."""
    import torch
    from monai.metrics import compute_dice, compute_hausdorff_distance, compute_surface_dice

    spacing_mm = (0.8, 0.8, 2.5)
    prediction, reference = case()
    y_pred, y = (torch.from_numpy(mask)[None, None] for mask in (prediction, reference))
    print(
        f"one case of {prediction.shape}, {int(reference.sum())} voxels; torch threads "
        f"{torch.get_num_threads()}"
    )

    def ours_hd95() -> float:
        surfaces = segmentation.surface_distances(prediction, reference, spacing_mm)
        return segmentation.hausdorff_of(surfaces, 0.95)

    def ours_surface_dice() -> float:
        surfaces = segmentation.surface_distances(prediction, reference, spacing_mm)
        return segmentation.surface_dice_of(surfaces, 2.0)

    def all_of_it() -> int:
        return len(measure_masks(prediction, reference, spacing_mm, {1: "organ"}))

    rows = [
        (
            "HD95",
            ours_hd95,
            lambda: compute_hausdorff_distance(y_pred, y, True, percentile=95, spacing=spacing_mm).item(),
        ),
        (
            "surface Dice",
            ours_surface_dice,
            lambda: compute_surface_dice(y_pred, y, [2.0], True, spacing=spacing_mm).item(),
        ),
        (
            "Dice",
            lambda: segmentation.dice(prediction, reference),
            lambda: compute_dice(y_pred, y, include_background=True).item(),
        ),
    ]
    for name, ours, theirs in rows:
        (mine, value), (other, expected) = timed(ours), timed(theirs)
        print(
            f"{name:14s} {mine:8.1f} ms   MONAI {other:8.1f} ms   {other / mine:5.1f} times   {value:.6f} "
            f"{expected:.6f}"
        )
    print(f"{'all metrics':14s} {timed(all_of_it)[0]:8.1f} ms")

    generator = np.random.default_rng(0)
    y2 = generator.random(2000) < 0.3
    p2 = 1 / (1 + np.exp(-generator.normal(0, 1, 2000) - y2))
    boot, found = timed(lambda: Resampling(1).interval(classification.auroc_of(p2, y2), 2000))
    print(f"AUROC, 2,000 patients, 2,000 draws, BCa: {boot:.0f} ms, {found.low:.3f} to {found.high:.3f}")


if __name__ == "__main__":
    main()

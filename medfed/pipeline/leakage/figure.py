"""The figure of an audit: patients beside their reconstructions. It stays in the hospital."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from medfed.pipeline.leakage.findings import Findings

# The number of cases that fit one figure.
MAX_ROWS = 3


def draw_figure(findings: Findings, path: Path) -> None:
    """Write a PNG: middle slices of patient, average and reconstruction for images, values for table rows."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    pictures = dict(findings.pictures)
    true, mean = pictures.pop("true"), pictures.pop("mean")
    figure = Figure(figsize=(3.2 * (2 + len(pictures)), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    if true.ndim > 2:
        _images(figure, true, mean, pictures)
    else:
        _rows(figure, true, mean, pictures)
    figure.suptitle(
        f"Study '{findings.study}', hospital '{findings.site}': THIS PICTURE SHOWS A PATIENT AND STAYS IN "
        "THE HOSPITAL",
        fontsize=8,
        color="#a61b1b",
    )
    figure.savefig(path, dpi=120)


def _images(figure: Any, true: Tensor, mean: Tensor, pictures: dict[str, Tensor]) -> None:
    count = min(len(true), MAX_ROWS)
    low, high = float(true.amin()), float(true.amax())
    columns = {"the patient": true, "average of other patients": mean.expand_as(true)}
    columns |= {_title(name): reconstructed for name, reconstructed in pictures.items()}
    axes = figure.subplots(count, len(columns), squeeze=False)
    for row in range(count):
        for axis, (title, images) in zip(axes[row], columns.items(), strict=True):
            axis.imshow(_slice(images[row]), cmap="gray", vmin=low, vmax=high, interpolation="nearest")
            axis.set_axis_off()
            if row == 0:
                axis.set_title(title, fontsize=9)


def _slice(image: Tensor) -> Any:
    """Return the middle slice of (C, X, Y, Z), or (C, X, Y), front up, as a radiologist sees it."""
    plane = image[0, :, :, image.shape[3] // 2] if image.ndim == 4 else image[0]
    return plane.flip(0, 1).T.numpy()


def _rows(figure: Any, true: Tensor, mean: Tensor, pictures: dict[str, Tensor]) -> None:
    axis = figure.subplots()
    columns = list(range(true.shape[1]))
    axis.plot(columns, mean.tolist(), color="#9aa5b1", label="average of other patients")
    axis.plot(columns, true[0].tolist(), "o", color="#1c2430", markersize=9, label="the patient")
    for (name, reconstructed), mark in zip(pictures.items(), "x+*", strict=False):
        values = reconstructed[0].clamp(float(true.amin()) - 3, float(true.amax()) + 3)
        axis.plot(columns, values.tolist(), mark, markersize=8, label=_title(name))
    axis.set_xlabel("input of the network")
    axis.set_ylabel("value, standardised")
    axis.legend(fontsize=8, frameon=False)


def _title(name: str) -> str:
    return "reconstructed, no protection" if name == "none" else f"reconstructed, under the study's {name}"

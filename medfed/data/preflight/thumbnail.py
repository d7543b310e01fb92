"""The thumbnail of a case for the preflight's page: one axial slice as a PNG."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfed.data.volume import Volume

THUMBNAIL_PIXELS = 112
LABEL_COLOUR = (255, 176, 0)  # amber


def thumbnail(volume: Volume, label: NDArray[Any] | None) -> str:
    """Return an axial slice as a PNG in base64, with the label in amber.

    The patient's right is at the left of the picture, the front at its top.
    """
    from matplotlib.image import imsave

    order = volume.axes_ras or (0, 1, 2)
    signs = [volume.affine_ras[which, order[which]] >= 0 for which in range(3)]

    def plane(array: NDArray[Any], index: int) -> NDArray[Any]:
        turned = array.transpose(order)[:, :, index]
        # Rows run from front to back, columns from the patient's right to the left.
        turned = turned[::-1] if signs[0] else turned
        return (turned[:, ::-1] if signs[1] else turned).T

    stack = volume.array[0]
    index = stack.shape[order[2]] // 2
    if label is not None and label.any():
        index = int((label.transpose(order) > 0).sum(axis=(0, 1)).argmax())
    grey = plane(stack, index)
    height, width = grey.shape
    mm = [volume.spacing_mm[order[1]] * height, volume.spacing_mm[order[0]] * width]
    rows, columns = [max(8, round(THUMBNAIL_PIXELS * size / max(mm))) for size in mm]
    pick = np.ix_(np.arange(rows) * height // rows, np.arange(columns) * width // columns)
    grey = np.nan_to_num(grey[pick])
    low, high = np.percentile(grey, [1, 99.5])
    shade = np.clip((grey - low) / max(float(high - low), 1e-9), 0, 1) * 255
    colour = np.repeat(shade[..., None], 3, axis=-1)
    if label is not None:
        labelled = plane(label, index)[pick] > 0
        colour[labelled] = 0.55 * colour[labelled] + 0.45 * np.array(LABEL_COLOUR)
    png = io.BytesIO()
    imsave(png, colour.astype(np.uint8), format="png")
    return base64.b64encode(png.getvalue()).decode("ascii")

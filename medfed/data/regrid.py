"""Labels and channels on another grid than their image: moved onto it on request, and never beyond it.

A label takes the nearest voxel's value, a channel is interpolated. What lies outside the moved one's own grid
is background, or the channel's smallest value; one that hardly meets the image is of another place and is
refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfed.data.identity_digest import identities_differ
from medfed.data.refusals import ChannelGridError, LabelGridError
from medfed.data.resample import resample
from medfed.data.volume import Volume

# A label of which a larger share lies outside the image was drawn on another image, or is misplaced.
MAX_OUTSIDE_SHARE = 0.05
# A channel that covers a smaller share of the first one's grid shows another part of the body.
MIN_COVERED_SHARE = 0.8
# At most this many labelled voxels decide whether a label lies in its image.
_SAMPLED = 200_000
# Voxels of a crop lie on the image's voxels within this fraction of one.
_CROP_VOXELS = 0.05


def nearest_label(voxels: NDArray[Any], affine_ras: NDArray[np.float64], like: Volume) -> NDArray[Any]:
    """Return a label (X, Y, Z) on the grid of `like` by its nearest voxel, 0 outside its own grid.

    Raises:
        LabelGridError: if more than a twentieth of it lies outside the image.
    """
    outside = _outside_share(voxels, affine_ras, like)
    if outside > MAX_OUTSIDE_SHARE:
        raise LabelGridError(
            f"{outside:.0%} of the label lie outside the image, at most {MAX_OUTSIDE_SHARE:.0%} may; take the"
            " label of this image"
        )
    result = np.zeros(like.shape, voxels.dtype)
    for z, (index, inside) in enumerate(_planes(voxels.shape, affine_ras, like)):
        result[..., z][inside] = voxels[tuple(index[:, inside])]
    return result


def uncropped_label(
    voxels: NDArray[Any], affine_ras: NDArray[np.float64], like: Volume
) -> NDArray[Any] | None:
    """Return a crop of a label on the image's whole grid, exactly; None if it isn't on the image's voxels.

    Raises:
        LabelGridError: if a labelled voxel lies outside the image.
    """
    to_like = np.linalg.solve(like.affine_ras, affine_ras)
    turn = np.rint(to_like[:3, :3])
    corners = np.array([[x, y, z, 1.0] for x, y, z in np.ndindex(2, 2, 2)]) * [*np.array(voxels.shape) - 1, 1]
    places = to_like @ corners.T
    permutes = np.array_equal(np.abs(turn).sum(axis=0), [1, 1, 1]) and abs(np.linalg.det(turn)) == 1
    if not permutes or np.abs(places - np.rint(places)).max() > _CROP_VOXELS:
        return None
    if _outside_share(voxels, affine_ras, like) > 0:
        raise LabelGridError("a part of the label lies outside the image; take the label of this image")
    return nearest_label(voxels, affine_ras, like)


def _planes(
    shape: tuple[int, ...], affine_ras: NDArray[np.float64], like: Volume
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.bool_]]]:
    """Yield for each Z of `like` the voxel (3, X, Y) at each of its voxels, and whether there is one."""
    to_voxels = np.linalg.solve(affine_ras, like.affine_ras)
    x, y = np.indices(like.shape[:2], float)
    plane = np.tensordot(to_voxels[:3, :2], np.stack([x, y]), axes=1)
    last = np.array(shape)[:, None, None] - 1
    for z in range(like.shape[2]):
        index = np.rint(plane + (to_voxels[:3, 2] * z + to_voxels[:3, 3])[:, None, None]).astype(np.intp)
        yield index, ((index >= 0) & (index <= last)).all(axis=0)


def _outside_share(voxels: NDArray[Any], affine_ras: NDArray[np.float64], like: Volume) -> float:
    labelled = np.flatnonzero(voxels)
    if labelled.size == 0:
        return 0.0
    chosen = labelled[:: max(1, labelled.size // _SAMPLED)]
    index = np.stack([*np.unravel_index(chosen, voxels.shape), np.ones(chosen.size)])
    places = (np.linalg.solve(like.affine_ras, affine_ras) @ index)[:3]
    last = np.array(like.shape)[:, None]
    return float(((places < -0.5) | (places > last - 0.5)).any(axis=0).mean())


def moved_channel(first: Volume, other: Volume, number: int) -> Volume:
    """Return channel `number` interpolated onto the grid of channel 1.

    Raises:
        ChannelGridError: if the two are of different frames of reference, or the channel covers too little.
    """
    if identities_differ(first.info.identities, other.info.identities, "frame"):
        raise ChannelGridError(
            f"channel {number} has another frame of reference than channel 1, so its place in it is unknown;"
            " register the two"
        )
    covered = np.stack([inside for _, inside in _planes(other.shape, other.affine_ras, first)], axis=-1)
    share = float(covered.mean())
    if share < MIN_COVERED_SHARE:
        raise ChannelGridError(
            f"channel {number} covers {share:.0%} of channel 1, at least {MIN_COVERED_SHARE:.0%} are needed;"
            " take another series"
        )
    array = resample(other.array, other.affine_ras, first.affine_ras, first.shape, nearest=False)
    finite = other.array[np.isfinite(other.array)]
    array[:, ~covered] = float(finite.min()) if finite.size else np.nan
    return Volume(array, first.affine_ras.copy(), other.info)

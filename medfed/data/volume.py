"""What every reader returns: voxels, the place of each voxel in the patient, and what there is to
know about them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Info:
    """What a reader found beside the voxels; nothing in it identifies a patient."""

    modality: str = ""  # CT, MR, PT, DX, ... as DICOM names them; empty for NIfTI, which does not say
    skipped: tuple[str, ...] = ()  # one line for each object that was left out, and why
    # Short words: burned_in, recognizable, tilt, resampled, lossy, single_slice, projection, inverted, nan,
    # no_rescale, overlap, qform_differs
    flags: tuple[str, ...] = ()
    # To refuse another patient's label: digests that mean nothing outside of this
    # process, see medfed/data/mark.py.
    marks: tuple[str, ...] = field(default=(), compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Volume:
    """One image or label: voxels and the affine that places them.

    Attributes:
        array: (C, X, Y, Z), float32 for an image, whole numbers for a label. X runs over DICOM columns, Y
            over rows,
            Z over slices; the affine says which way each of them points in the patient.
        affine_ras: (4, 4) float64; maps the index (x, y, z, 1) of a voxel to its centre in mm, x to the
            patient's
            right, y to the front, z up (RAS, as nibabel does it; DICOM itself is LPS).
        info: see `Info`.
    """

    array: NDArray
    affine_ras: NDArray[np.float64]
    info: Info = field(default_factory=Info)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """The distances of neighbouring voxels along X, Y and Z."""
        lengths = np.linalg.norm(self.affine_ras[:3, :3], axis=0)
        return float(lengths[0]), float(lengths[1]), float(lengths[2])

    @property
    def shape(self) -> tuple[int, int, int]:
        """The numbers of voxels along X, Y and Z."""
        _, x, y, z = self.array.shape
        return x, y, z

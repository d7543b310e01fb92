"""The type that every reader returns: voxels, the position of each voxel in the patient, and information."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

# The flag of an image whose three channels are red, green and blue.
COLOUR = "colour"
# The flag of DICOM in grey that is neither a slice nor a radiograph: ultrasound, a digitised film, a screen.
PICTURE = "picture"
# The flag of a volume of DICOM secondary captures, which were derived from other images.
CAPTURE = "secondary_capture"


@dataclass(frozen=True, slots=True)
class Info:
    """Information that a reader returns besides the voxels; none of it identifies a patient.

    Attributes:
        modality: CT, MR, PT, DX, ... as in DICOM; empty for NIfTI, which does not name it.
        skipped: one line for each object that was omitted, with the reason.
        flags: short words: burned_in, recognizable, tilt, resampled, lossy, single_slice, projection,
            inverted, nan, no_rescale, not_hu, real_world_values, real_world_values_unused, suv, overlap,
            qform_differs, other_frame_of_reference, cropped, pixels (the spacing counts pixels, not mm),
            exif_turned, resampled_channels, colour (its channels are red, green and blue),
            detector_spacing (a radiograph's size at its detector), picture (DICOM in grey that is neither
            radiograph nor slice, such as ultrasound, without a place in the patient), secondary_capture
            (slices with their place in the patient that were stored as secondary captures).
        label_names: what the file itself calls its values: a seg.nrrd's segments, a mask's colours.
        echo_ms: the echo time of MR, 0 if the file does not say.
        identities: keyed digests by which another patient's label is refused; they mean nothing outside this
            process, see medfed/data/identity_digest.py.
        interpolated: the indices along Z of slices that were interpolated where none was taken.
    """

    modality: str = ""
    skipped: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    identities: tuple[str, ...] = field(default=(), compare=False, repr=False)
    label_names: Mapping[int, str] = field(default_factory=dict, hash=False)
    echo_ms: float = 0.0
    interpolated: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Volume:
    """One image or label: voxels and the affine that places them in the patient.

    Attributes:
        array: (C, X, Y, Z), float32 for an image, integers for a label. X runs over DICOM columns, Y over
            rows, Z over slices; the affine gives the direction of each in the patient.
        affine_ras: (4, 4), float64. Maps the index (x, y, z, 1) of a voxel to its centre in mm, with x to the
            patient's right, y to the front and z up (RAS, as in nibabel; DICOM itself uses LPS).
        info: modality, flags and skipped objects; see `Info`.
    """

    array: NDArray[Any]
    affine_ras: NDArray[np.float64]
    info: Info = field(default_factory=Info)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """The distances between neighbouring voxels along X, Y and Z."""
        lengths = np.linalg.norm(self.affine_ras[:3, :3], axis=0)
        return float(lengths[0]), float(lengths[1]), float(lengths[2])

    @property
    def axes_ras(self) -> tuple[int, int, int] | None:
        """Which of X, Y and Z (0, 1, 2) runs along right, front and up; None if two are nearest to one."""
        axes = np.abs(self.affine_ras[:3, :3]).argmax(axis=0).tolist()
        return (axes.index(0), axes.index(1), axes.index(2)) if sorted(axes) == [0, 1, 2] else None

    @property
    def shape(self) -> tuple[int, int, int]:
        """The numbers of voxels along X, Y and Z."""
        _, x, y, z = self.array.shape
        return x, y, z

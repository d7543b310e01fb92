"""Predicted masks as DICOM SEG on the slices of their source series."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfed.data.case import Case, paths_of
from medfed.data.layouts._survey import file_format
from medfed.data.walk import files_below
from medfed.errors import RunError

# Frames are numbered in one byte.
MAX_SEGMENTS = 255


def dicom_segmentation(
    labels: NDArray[np.integer], affine_ras: NDArray[np.float64], case: Case, classes: Sequence[str]
) -> Any:
    """Return a mask as a DICOM SEG on the slices of its source series, or None if the source is not DICOM.

    A voxel of a slice takes the label at its position in the patient, whatever the order or direction of the
    slices.

    Raises:
        RunError: if the mask is empty, the image has several channels, or a file has several frames.
    """
    import highdicom
    from pydicom.uid import generate_uid

    sources = source_slices(case)
    if not sources:
        return None
    frames = np.stack([resample_to_slice(labels, affine_ras, source) for source in sources])
    if not frames.any():
        raise RunError("no structure was found, so no DICOM SEG was written; see the NIfTI file")
    present = [number for number in range(1, len(classes)) if (frames == number).any()]
    if len(present) > MAX_SEGMENTS:
        raise RunError(
            f"{len(present)} structures were found, a DICOM SEG written here holds at most {MAX_SEGMENTS}; "
            "see the NIfTI file"
        )
    numbered = np.zeros_like(frames, dtype=np.uint8)
    for segment, number in enumerate(present, start=1):
        numbered[frames == number] = segment
    return highdicom.seg.Segmentation(
        source_images=sources,
        pixel_array=numbered,
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=_segment_descriptions([classes[number] for number in present]),
        series_instance_uid=generate_uid(),
        series_number=900,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="medfed",
        manufacturer_model_name="medfed",
        software_versions=version("medfed"),
        device_serial_number="none",
        series_description="medfed segmentation: not for clinical use",
        omit_empty_frames=True,
    )


def _segment_descriptions(names: Sequence[str]) -> list[Any]:
    import highdicom
    from pydicom.sr.codedict import codes

    algorithm = highdicom.AlgorithmIdentificationSequence(
        name="medfed", version=version("medfed"), family=codes.DCM.ArtificialIntelligence
    )
    return [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=name[:64],
            segmented_property_category=codes.SCT.Tissue,
            segmented_property_type=codes.SCT.Tissue,
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
        )
        for number, name in enumerate(names, start=1)
    ]


def source_slices(case: Case) -> list[Any]:
    """Return the headers of a case's DICOM slices in spatial order; none for another format.

    Raises:
        RunError: if the image has several series, or a file has several frames.
    """
    import pydicom

    files = [
        file
        for source in case.image
        for path in paths_of(source)
        for file in (files_below(path) if path.is_dir() else [path])
        if file_format(file) == "dicom"
    ]
    headers = [pydicom.dcmread(file, stop_before_pixels=True, force=True) for file in files]
    headers = [header for header in headers if "ImagePositionPatient" in header]
    if files and not headers:
        raise RunError(
            "a DICOM file has several frames, or as a radiograph no position in the patient; its mask is "
            "written as NIfTI only"
        )
    if any("MOSAIC" in header.get("ImageType", "") for header in headers):
        raise RunError("the image is a Siemens mosaic; its mask is written as NIfTI only")
    if len({header.SeriesInstanceUID for header in headers}) > 1:
        raise RunError("the image has several series; its mask is written as NIfTI only")

    def position_mm(header: Any) -> float:
        across, down = np.reshape(np.asarray(header.ImageOrientationPatient, float), (2, 3))
        return float(np.cross(across, down) @ np.asarray(header.ImagePositionPatient, float))

    return sorted(headers, key=position_mm)


def resample_to_slice(
    labels: NDArray[np.integer], affine_ras: NDArray[np.float64], header: Any
) -> NDArray[np.integer]:
    """Return the nearest label (rows, columns) at each pixel of a DICOM slice, 0 outside the mask."""
    across, down = np.reshape(np.asarray(header.ImageOrientationPatient, float), (2, 3))
    row_mm, column_mm = (float(value) for value in header.PixelSpacing)
    rows, columns = np.mgrid[0 : int(header.Rows), 0 : int(header.Columns)]
    points = np.asarray(header.ImagePositionPatient, float) + (
        columns[..., None] * across * column_mm + rows[..., None] * down * row_mm
    )
    # DICOM's axes point to the patient's left and back, those of the affine to the right and front.
    points = points * np.array([-1.0, -1.0, 1.0])
    inverse = np.linalg.inv(affine_ras)
    voxels = np.floor(points @ inverse[:3, :3].T + inverse[:3, 3] + 0.5).astype(int)
    inside = ((voxels >= 0) & (voxels < labels.shape)).all(axis=-1)
    pixels = np.zeros(inside.shape, labels.dtype)
    pixels[inside] = labels[tuple(voxels[inside].T)]
    return pixels

"""Series that are hard to read: each voxel holds a linear function of its position, so
that any mistake shows.

`write_series` writes a valid series; edits of its slices make it hard. `expected` returns what every voxel
must hold, computed from the position that the volume under test claims for it, so that a wrong order, axis,
spacing or slope is noticed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    PositronEmissionTomographyImageStorage,
    SegmentationStorage,
    generate_uid,
)

# Value of a voxel at LPS position (x, y, z) in mm: the weights of all directions differ, and neighbours
# differ by more than 1.
WEIGHTS = np.array([3.0, 5.0, 11.0])
OFFSET = 200.0
CLASSES = {"CT": CTImageStorage, "MR": MRImageStorage, "PT": PositronEmissionTomographyImageStorage}

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
OBLIQUE = (0.96, 0.28, 0.0, -0.168, 0.576, 0.8)  # 0.28^2 + 0.96^2 = 1 and the two are perpendicular


@dataclass(frozen=True)
class Series:
    """The parameters of a series, in LPS mm."""

    shape: tuple[int, int, int] = (6, 5, 7)  # slices, rows, columns
    orientation: Sequence[float] = AXIAL
    origin_mm: Sequence[float] = (-10.0, -20.0, 30.0)
    spacing_mm: tuple[float, float] = (1.5, 0.75)  # between rows, between columns
    step_mm: float = 2.5
    shift_mm: Sequence[float] = (0.0, 0.0, 0.0)  # extra shift per slice, for a tilted gantry
    modality: str = "CT"
    slope: float = 0.5
    intercept: float = -1024.0
    allocated: int = 16  # bits
    signed: bool = True
    uids: dict[str, str] = field(
        default_factory=lambda: {name: generate_uid() for name in ("study", "series", "frame")}
    )

    @property
    def normal(self) -> np.ndarray:
        return np.cross(self.orientation[:3], self.orientation[3:])

    def position(self, k: int) -> np.ndarray:
        return np.asarray(self.origin_mm) + k * (self.step_mm * self.normal + np.asarray(self.shift_mm))

    def places(self, k: int) -> np.ndarray:
        """Return the LPS position of every pixel of slice k, (rows, columns, 3)."""
        _, rows, columns = self.shape
        row, column = np.asarray(self.orientation[:3]), np.asarray(self.orientation[3:])
        r, c = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
        return (
            self.position(k)
            + c[..., None] * row * self.spacing_mm[1]
            + r[..., None] * column * self.spacing_mm[0]
        )

    def stored(self, k: int, slope: float | None = None, intercept: float | None = None) -> np.ndarray:
        slope = self.slope if slope is None else slope
        intercept = self.intercept if intercept is None else intercept
        values = self.places(k) @ WEIGHTS + OFFSET
        return np.rint((values - intercept) / slope).astype(np.int64)


Edit = Callable[[Dataset, int], "Dataset | None"]


def make_slice(series: Series, k: int) -> FileDataset:
    """Return slice k of a series as a dataset that can be written unchanged."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = CLASSES.get(series.modality, CTImageStorage)
    meta.MediaStorageSOPInstanceUID = generate_uid()
    ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID, ds.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    ds.StudyInstanceUID, ds.SeriesInstanceUID = series.uids["study"], series.uids["series"]
    ds.FrameOfReferenceUID = series.uids["frame"]
    ds.PatientName, ds.PatientID, ds.PatientBirthDate = "CANARY^NAME", "CANARY-ID", "19010203"
    ds.Modality = series.modality
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.InstanceNumber = k + 1
    ds.ImageOrientationPatient = [float(v) for v in series.orientation]
    ds.ImagePositionPatient = [f"{v:.6f}" for v in series.position(k)]
    ds.PixelSpacing = list(series.spacing_mm)
    ds.SliceThickness = 99.0  # wrong on purpose
    ds.RescaleSlope, ds.RescaleIntercept = series.slope, series.intercept
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    put_pixels(ds, series.stored(k), allocated=series.allocated, bits=series.allocated, signed=series.signed)
    return ds


def put_pixels(
    ds: Dataset, stored: np.ndarray, *, allocated: int = 16, bits: int = 16, signed: bool = True
) -> None:
    """Set the pixels and the elements that describe them."""
    ds.Rows, ds.Columns = stored.shape[-2:]
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = (
        allocated,
        bits,
        bits - 1,
        int(signed),
    )
    kind = f"{'i' if signed else 'u'}{allocated // 8}"
    assert np.array_equal(stored.astype(kind), stored), "the values do not fit"
    data = np.ascontiguousarray(stored.astype("<" + kind)).tobytes()
    ds.PixelData = data + b"\0" * (len(data) % 2)
    ds["PixelData"].VR = "OW" if allocated > 8 else "OB"


def write_series(
    folder: Path, series: Series, edit: Edit | None = None, order: Sequence[int] | None = None
) -> list[Path]:
    """Write a series, one file per slice, and return the paths.

    Args:
        edit: changes a slice before it is written; returning a dataset replaces it.
        order: the slice behind each file name, so that names do not say the order.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, k in enumerate(order if order is not None else range(series.shape[0])):
        ds = make_slice(series, k)
        if edit is not None:
            ds = edit(ds, k) or ds
        path = folder / f"{len(list(folder.iterdir())):04d}_{number:04d}.dcm"
        write(ds, path)
        paths.append(path)
    return paths


def write(ds: Dataset, path: Path) -> Path:
    import pydicom

    syntax = ds.file_meta.TransferSyntaxUID
    if syntax == pydicom.uid.ExplicitVRBigEndian:
        meta = ds.file_meta
        plain = Dataset(ds)
        plain.file_meta, plain.preamble = meta, b"\0" * 128
        pydicom.dcmwrite(path, plain, implicit_vr=False, little_endian=False, force_encoding=True)
        data = path.read_bytes()
        if data[128:132] != b"DICM":
            raise AssertionError("no preamble")
    else:
        ds.save_as(path, enforce_file_format=True)
    return path


def expected(affine_ras: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Return what a volume of this affine and shape, (X, Y, Z), must hold."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), axis=-1)
    ras = index @ affine_ras[:3, :3].T + affine_ras[:3, 3]
    return ras * (-1, -1, 1) @ WEIGHTS + OFFSET


def assert_in_place(volume, slope: float = 0.5, shape: Sequence[int] | None = None) -> None:
    """Assert that every voxel holds the value of its position, up to half a slope of rounding."""
    assert volume.array.dtype == np.float32
    assert volume.array.shape[0] == 1
    if shape is not None:
        assert volume.array.shape[1:] == tuple(shape)
    off = np.abs(volume.array[0] - expected(volume.affine_ras, volume.array.shape[1:]))
    assert off.max() <= slope / 2 + 2e-3, f"a voxel is off by {off.max()}"


def expected_affine(series: Series) -> np.ndarray:
    """Return the RAS affine by the formula of PS3.3 C.7.6.2.1.1, written independently."""
    (rx, ry, rz, cx, cy, cz), (dr, dc) = series.orientation, series.spacing_mm
    step = series.step_mm * series.normal + np.asarray(series.shift_mm)
    x, y, z = series.origin_mm
    lps = np.array(
        [[rx * dc, cx * dr, step[0], x], [ry * dc, cy * dr, step[1], y], [rz * dc, cz * dr, step[2], z]]
    )
    return np.vstack([np.diag([-1.0, -1.0, 1.0]) @ lps, [0, 0, 0, 1]])


def enhanced(series: Series, frames: Sequence[dict], modality: str = "MR") -> FileDataset:
    """Return an enhanced object.

    Args:
        frames: what each frame is: {"k": slice, "slope": ..., "echo": ..., "time": ..., "b": ...}
    """
    ds = make_slice(series, 0)
    for word in (
        "ImageOrientationPatient",
        "ImagePositionPatient",
        "PixelSpacing",
        "SliceThickness",
        "RescaleSlope",
    ):
        delattr(ds, word)
    del ds.RescaleIntercept
    ds.SOPClassUID = {"MR": EnhancedMRImageStorage, "CT": EnhancedCTImageStorage}[modality]
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.Modality = modality
    ds.NumberOfFrames = len(frames)
    ds.PerFrameFunctionalGroupsSequence = Items([_groups(series, frame) for frame in frames])
    shared = Dataset()
    orientation = Dataset()
    orientation.ImageOrientationPatient = [float(v) for v in series.orientation]
    shared.PlaneOrientationSequence = Items([orientation])
    measures = Dataset()
    measures.PixelSpacing, measures.SliceThickness = list(series.spacing_mm), 99.0
    shared.PixelMeasuresSequence = Items([measures])
    ds.SharedFunctionalGroupsSequence = Items([shared])
    put_pixels(ds, np.stack([series.stored(f["k"], f.get("slope"), f.get("intercept")) for f in frames]))
    return ds


def _groups(series: Series, frame: dict) -> Dataset:
    group = Dataset()
    place = Dataset()
    place.ImagePositionPatient = [f"{v:.6f}" for v in series.position(frame["k"])]
    group.PlanePositionSequence = Items([place])
    values = Dataset()
    values.RescaleSlope = frame.get("slope", series.slope)
    values.RescaleIntercept = frame.get("intercept", series.intercept)
    values.RescaleType = "US"
    group.PixelValueTransformationSequence = Items([values])
    content = Dataset()
    content.StackID, content.InStackPositionNumber = str(frame.get("stack", 1)), frame["k"] + 1
    if "time" in frame:
        content.TemporalPositionIndex = frame["time"]
    group.FrameContentSequence = Items([content])
    if "echo" in frame:
        echo = Dataset()
        echo.EffectiveEchoTime = float(frame["echo"])
        group.MREchoSequence = Items([echo])
    if "b" in frame:
        diffusion = Dataset()
        diffusion.DiffusionBValue = float(frame["b"])
        group.MRDiffusionSequence = Items([diffusion])
    for word, owner, attribute in (
        ("inversion", "MRModifierSequence", "InversionTimes"),
        ("flip", "MRTimingAndRelatedParametersSequence", "FlipAngle"),
        ("kilovolt", "CTXRayDetailsSequence", "KVP"),
    ):
        if word in frame:
            item = Dataset()
            setattr(item, attribute, frame[word])
            setattr(group, owner, Items([item]))
    return group


def segmentation(
    series: Series,
    frames: Sequence[tuple[int, int, np.ndarray]],
    *,
    kind: str = "BINARY",
    most: int = 255,
    corner: tuple[int, int] = (0, 0),
    titles: Sequence[str] | None = None,
) -> FileDataset:
    """Return a DICOM segmentation, written without highdicom, which collapses or refuses some of these.

    Args:
        frames: (segment number, slice of the series, mask or fractions) each.
        corner: the row and column of the series at which the frames begin.
    """
    ds = make_slice(series, 0)
    for word in (
        "ImageOrientationPatient",
        "ImagePositionPatient",
        "PixelSpacing",
        "SliceThickness",
        "RescaleSlope",
    ):
        delattr(ds, word)
    del ds.RescaleIntercept
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = SegmentationStorage
    ds.Modality, ds.SegmentationType, ds.ImageType = "SEG", kind, ["DERIVED", "PRIMARY"]
    numbers = sorted({number for number, _, _ in frames})
    ds.SegmentSequence = Items([])
    for i, number in enumerate(numbers):
        segment = Dataset()
        segment.SegmentNumber = number
        segment.SegmentLabel = titles[i] if titles else f"segment {number}"
        ds.SegmentSequence.append(segment)
    groups = []
    row, column = np.asarray(series.orientation[:3]), np.asarray(series.orientation[3:])
    for number, k, _ in frames:
        group, place, identity = Dataset(), Dataset(), Dataset()
        at = (
            series.position(k)
            + corner[0] * column * series.spacing_mm[0]
            + corner[1] * row * series.spacing_mm[1]
        )
        place.ImagePositionPatient = [f"{v:.6f}" for v in at]
        group.PlanePositionSequence = Items([place])
        identity.ReferencedSegmentNumber = number
        group.SegmentIdentificationSequence = Items([identity])
        groups.append(group)
    ds.PerFrameFunctionalGroupsSequence = Items(groups)
    shared, orientation, measures = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = [float(v) for v in series.orientation]
    measures.PixelSpacing = list(series.spacing_mm)
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = Items([orientation]), Items([measures])
    ds.SharedFunctionalGroupsSequence = Items([shared])
    ds.NumberOfFrames = len(frames)
    pixels = np.stack([plane for _, _, plane in frames])
    ds.Rows, ds.Columns = pixels.shape[1:]
    if kind == "BINARY":
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 1, 1, 0, 0
        data = np.packbits(pixels.reshape(-1).astype(bool), bitorder="little").tobytes()
    else:
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 8, 8, 7, 0
        data = pixels.astype(np.uint8).tobytes()
        ds.MaximumFractionalValue, ds.SegmentationFractionalType = most, "PROBABILITY"
    ds.PixelData = data + b"\0" * (len(data) % 2)
    ds["PixelData"].VR = "OB"
    return ds


def structure_set(
    series: Series, rois: dict[int, list[tuple[int, Sequence[tuple[float, float]]]]]
) -> FileDataset:
    """Return an RTSTRUCT.

    Args:
        rois: for each number its contours: (slice, points as (column, row) of the series, fractions allowed).
    """
    ds = make_slice(series, 0)
    for word in [e.keyword for e in ds if e.tag.group in (0x0018, 0x0020, 0x0028, 0x7FE0)]:
        if word not in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
            delattr(ds, word)
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.481.3"
    ds.Modality = "RTSTRUCT"
    ds.StructureSetROISequence, ds.ROIContourSequence = Items([]), Items([])
    row, column = np.asarray(series.orientation[:3]), np.asarray(series.orientation[3:])
    for number, contours in rois.items():
        roi = Dataset()
        roi.ROINumber, roi.ROIName = number, f"roi {number}"
        ds.StructureSetROISequence.append(roi)
        owner = Dataset()
        owner.ReferencedROINumber, owner.ContourSequence = number, Items([])
        for k, points in contours:
            contour = Dataset()
            contour.ContourGeometricType, contour.NumberOfContourPoints = "CLOSED_PLANAR", len(points)
            data = []
            for c, r in points:
                at = series.position(k) + c * row * series.spacing_mm[1] + r * column * series.spacing_mm[0]
                data += [f"{v:.4f}" for v in at]
            contour.ContourData = data
            owner.ContourSequence.append(contour)
        ds.ROIContourSequence.append(owner)
    return ds


def blob(series: Series, seed: int = 0) -> np.ndarray:
    """Return a random mask, (slices, rows, columns)."""
    return np.random.default_rng(seed).integers(0, 2, series.shape).astype(bool)


def as_xyz(planes: np.ndarray) -> np.ndarray:
    """Return (slices, rows, columns) as (X, Y, Z)."""
    return planes.transpose(2, 1, 0)

"""One two-dimensional image of a DICOM object: its position, pixel encoding, and the series it belongs to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from medfed.data.dicom.elements import PIXELS, Elements, describe_tag
from medfed.data.dicom.file import DEFLATED, DicomFile
from medfed.data.size_limits import MAX_DICOM_RATIO, check_size
from medfed.errors import ImageError

PATIENT_NAME, PATIENT_ID, BIRTH_DATE = 0x00100010, 0x00100020, 0x00100030
STUDY_UID, SERIES_UID, FRAME_UID = 0x0020000D, 0x0020000E, 0x00200052
SOP_CLASS, SOP_UID, IMAGE_TYPE, MODALITY = 0x00080016, 0x00080018, 0x00080008, 0x00080060
POSITION, ORIENTATION, PIXEL_SPACING = 0x00200032, 0x00200037, 0x00280030
IMAGER_SPACING, THICKNESS, SLICE_GAP = 0x00181164, 0x00180050, 0x00180088
ROWS, COLUMNS, SAMPLES, PHOTOMETRIC = 0x00280010, 0x00280011, 0x00280002, 0x00280004
ALLOCATED, STORED, HIGH_BIT, SIGNED, FRAMES = 0x00280100, 0x00280101, 0x00280102, 0x00280103, 0x00280008
INTERCEPT, SLOPE, RESCALE_TYPE, MODALITY_LUT = 0x00281052, 0x00281053, 0x00281054, 0x00283000
PADDING, PADDING_LIMIT = 0x00280120, 0x00280121
BURNED_IN, RECOGNIZABLE, LOSSY = 0x00280301, 0x00280302, 0x00282110
SHARED, PER_FRAME = 0x52009229, 0x52009230
PLANE_POSITION, PLANE_ORIENTATION, PIXEL_MEASURES = 0x00209113, 0x00209116, 0x00289110

# Modalities whose images are projections: they have a detector, not a place in the patient.
PROJECTIONS = frozenset((b"CR", b"DX", b"MG", b"PX", b"IO", b"RG", b"XA", b"RF"))
# JPEG baseline and extended, which always lose something, and JPEG-LS near lossless, which is chosen to.
LOSSY_SYNTAXES = frozenset(f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 81))
# Modalities that are passed on; another word in this element could be anything.
MODALITIES = PROJECTIONS | {b"CT", b"MR", b"PT", b"NM", b"US", b"OT"}
# Direction cosines are written with six decimals; a larger deviation from unit length or a right angle is no
# rotation.
COSINE_TOLERANCE = 1e-3
# Voxels of 1 micrometre to 10 centimetres: anything else is a wrong unit or a damaged header.
MIN_SPACING_MM, MAX_SPACING_MM = 1e-3, 100.0
# No scanner extends further from its origin; a larger coordinate is damage.
MAX_COORDINATE_MM = 1e5

Triple = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Encoding:
    """How pixels are stored: what is needed to convert bytes into stored values."""

    rows: int
    columns: int
    allocated: int  # bits
    stored: int
    high_bit: int
    signed: bool
    photometric: bytes
    frames: int
    pixel_tag: int
    at: int
    length: int


@dataclass(frozen=True, slots=True)
class Lut:
    """A modality LUT: entry i is the value of stored value first + i."""

    first: int
    entries: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Frame:
    """One image plane. Positions are LPS, as DICOM writes them."""

    file: DicomFile
    index: int  # among the frames of its file
    encoding: Encoding
    modality: bytes
    patient: tuple[bytes, bytes, bytes]  # ID, name, birth date; empty if absent
    series_key: tuple[object, ...]  # series, modality, unit: equal within one volume
    # Frame of reference, echo, time point, diffusion weighting, stack: these always separate volumes.
    hard_key: tuple[object, ...]
    soft_attributes: Mapping[str, object]  # may separate volumes if positions repeat
    uid: bytes
    image_type: tuple[bytes, ...]
    position_mm: Triple | None
    row_cosine: Triple | None  # the direction in which the column index grows
    column_cosine: Triple | None
    spacing_mm: tuple[float, float] | None  # between rows, between columns
    gap_mm: float | None  # SpacingBetweenSlices
    thickness_mm: float | None
    slope: float | None
    intercept: float | None
    lut: Lut | None
    padding: tuple[int, int] | None  # raw words, first and last
    rescale_type: bytes
    flags: tuple[str, ...]


def parse_frames(file: DicomFile) -> list[Frame]:
    """Return the image planes of one file: one, or all frames of an enhanced object.

    Raises:
        ImageError: if the header is not that of an image that can be read.
    """
    header = file.elements
    encoding = _encoding(file)
    lossy = header.text(LOSSY) == b"01" or file.syntax in LOSSY_SYNTAXES
    flags = tuple(
        word
        for word, given in (
            ("burned_in", header.text(BURNED_IN) == b"YES"),
            ("recognizable", header.text(RECOGNIZABLE) == b"YES"),
            ("lossy", lossy),
        )
        if given
    )
    per_frame = header.items(PER_FRAME)
    if per_frame:
        if len(per_frame) != encoding.frames:
            raise ImageError(
                f"{encoding.frames} frames are announced, {len(per_frame)} have a position; the file is"
                " damaged"
            )
        shared = header.first(SHARED)
        pointers = _dimension_pointers(header)
        return [
            _enhanced_frame(file, encoding, flags, index, shared, item, pointers)
            for index, item in enumerate(per_frame)
        ]
    if encoding.frames != 1:
        raise ImageError(
            f"{encoding.frames} frames without positions (no PerFrameFunctionalGroupsSequence); export this"
            " acquisition as single images or as an enhanced object"
        )
    return [_classic_frame(file, encoding, flags)]


def _encoding(file: DicomFile) -> Encoding:
    header = file.elements
    tag, at, length = file.pixels()
    allocated = _needed(header, ALLOCATED)
    stored = header.integer(STORED) or allocated
    high_bit = header.integer(HIGH_BIT)
    signed = header.integer(SIGNED)
    frames = header.count(FRAMES)
    encoding = Encoding(
        rows=_needed(header, ROWS),
        columns=_needed(header, COLUMNS),
        allocated=allocated,
        stored=stored,
        high_bit=stored - 1 if high_bit is None else high_bit,
        signed=signed == 1,
        photometric=header.text(PHOTOMETRIC),
        frames=1 if frames is None else frames,
        pixel_tag=tag,
        at=at,
        length=length,
    )
    _check_encoding(encoding, signed, file)
    return encoding


def _check_encoding(encoding: Encoding, signed: int | None, file: DicomFile) -> None:
    rows, columns, frames = encoding.rows, encoding.columns, encoding.frames
    allocated, stored, high_bit = encoding.allocated, encoding.stored, encoding.high_bit
    if frames < 1 or rows < 1 or columns < 1:
        raise ImageError(f"{frames} frames of {rows} x {columns} pixels; the header is damaged")
    if file.encapsulated or file.syntax == DEFLATED:
        unpacked, pixels = frames * rows * columns * max(1, allocated // 8), rows * columns
        check_size(unpacked, file.size, pixels, "a DICOM object", max_ratio=MAX_DICOM_RATIO)
    if encoding.pixel_tag == PIXELS and (allocated not in (8, 16, 32) or signed not in (0, 1)):
        raise ImageError(
            f"pixels of {allocated} bits allocated; 8, 16 and 32 with a PixelRepresentation are read"
        )
    if not (0 < stored <= allocated and stored - 1 <= high_bit < allocated):
        raise ImageError(
            f"{stored} bits stored up to bit {high_bit} of {allocated}, which is impossible; file damaged"
        )
    photometric = encoding.photometric
    if photometric not in (b"MONOCHROME1", b"MONOCHROME2") and (
        photometric or file.elements.text(MODALITY) in PROJECTIONS
    ):
        raise ImageError(
            "PhotometricInterpretation (0028,0004) is neither MONOCHROME1 nor MONOCHROME2; correct it"
        )


def _needed(header: Elements, tag: int) -> int:
    value = header.integer(tag)
    if value is None:
        raise ImageError(f"{describe_tag(tag)} is missing; the header is damaged, export the image again")
    return value


def _classic_frame(file: DicomFile, encoding: Encoding, flags: tuple[str, ...]) -> Frame:
    header = file.elements
    modality = header.text(MODALITY)
    row, column = _orientation(header)
    soft_attributes = {
        "study": header.text(STUDY_UID),
        "image type": header.texts(IMAGE_TYPE),
        "acquisition number": header.text(0x00200012),
        "inversion time": header.text(0x00180082),
        "flip angle": header.text(0x00181314),
        "complex component": header.text(0x00089208) or header.raw(0x0043102F),
        "b-value of Siemens": header.raw(0x0019100C),
        "b-value of Philips": header.raw(0x20011003),
        "b-value of GE": header.text(0x00431039).split(b"\\")[0],
        "gradient direction": header.raw(0x00189089) or header.raw(0x0019100E),
        "part of the cardiac cycle": header.text(0x00209241),
        "trigger time": header.text(0x00181060),
        "kernel": header.text(0x00181210),
        "tube voltage": header.text(0x00180060),
        "contrast": header.text(0x00180010),
        "sequence name": header.text(0x00180024),
        "thickness": header.text(THICKNESS),
        "series number": header.text(0x00200011),
        "series description": header.text(0x0008103E),
        "frame reference time": header.text(0x00541300),
        "acquisition time": (header.text(0x0008002A),)
        if 0x0008002A in header
        else (header.text(0x00080022), header.text(0x00080032)),
        "content time": (header.text(0x00080023), header.text(0x00080033)),
    }
    hard_key = (
        header.text(FRAME_UID),
        header.text(0x00180086),
        _rounded(header.number(0x00180081)),
        header.count(0x00200100),
        header.number(0x00189087),
        header.text(0x00209056),
    )
    return Frame(
        file=file,
        index=0,
        encoding=encoding,
        modality=modality,
        patient=_patient(header),
        series_key=(header.text(SERIES_UID), modality, header.text(0x00541001)),
        hard_key=hard_key,
        soft_attributes=soft_attributes,
        uid=header.text(SOP_UID),
        image_type=header.texts(IMAGE_TYPE),
        position_mm=_position(header),
        row_cosine=row,
        column_cosine=column,
        spacing_mm=_spacing(header, modality),
        gap_mm=_length(header, SLICE_GAP),
        thickness_mm=_length(header, THICKNESS),
        slope=header.number(SLOPE),
        intercept=header.number(INTERCEPT),
        lut=_lut(header, encoding),
        padding=_padding(header),
        rescale_type=header.text(RESCALE_TYPE),
        flags=flags,
    )


def _patient(header: Elements) -> tuple[bytes, bytes, bytes]:
    # Not the study UID: some writers invent one per slice, and a series UID is unique without it.
    name_ = header.text(PATIENT_NAME).rstrip(b"^ ").lower()
    return header.text(PATIENT_ID), name_, header.text(BIRTH_DATE)


class _Groups:
    """The functional groups of one frame: its own first, then those shared by all frames."""

    def __init__(self, shared: Elements | None, own: Elements) -> None:
        self._groups = [group for group in (own, shared) if group is not None]

    def get(self, sequence: int) -> Elements | None:
        for group in self._groups:
            item = group.first(sequence)
            if item is not None:
                return item
        return None

    def text(self, sequence: int, tag: int) -> bytes:
        item = self.get(sequence)
        return b"" if item is None else item.text(tag)

    def numbers(self, sequence: int, tag: int) -> tuple[float, ...]:
        item = self.get(sequence)
        return () if item is None else item.numbers(tag)

    def number(self, sequence: int, tag: int) -> float | None:
        item = self.get(sequence)
        return None if item is None else item.number(tag)

    def unsigned(self, sequence: int, tag: int) -> int | None:
        item = self.get(sequence)
        return None if item is None else item.integer(tag, "I")


# Dimension index pointers that give a frame's position; the others distinguish frames at one position.
_POSITION_POINTERS = frozenset((0x00200032, 0x00209057, 0x00209113, 0x00201041, 0x00209116))


def _dimension_pointers(header: Elements) -> list[int]:
    pointers = []
    for item in header.items(0x00209222):
        words = item.integers(0x00209165)
        pointers.append(words[0] << 16 | words[1] if len(words) == 2 else 0)
    return pointers


def _enhanced_frame(
    file: DicomFile,
    encoding: Encoding,
    flags: tuple[str, ...],
    index: int,
    shared: Elements | None,
    own: Elements,
    pointers: list[int],
) -> Frame:
    header = file.elements
    groups = _Groups(shared, own)
    modality = header.text(MODALITY)
    row, column = _orientation(groups.get(PLANE_ORIENTATION))
    measures = groups.get(PIXEL_MEASURES)
    values = groups.get(0x00289145)
    content = groups.get(0x00209111)
    indices = content.integers(0x00209157, "I") if content is not None else ()
    dimensions = tuple(
        value
        for value, pointer in zip(indices, pointers, strict=False)
        if pointer not in _POSITION_POINTERS and pointer
    )
    frame_type = b""
    for sequence in (0x00189226, 0x00189329, 0x00189751):
        frame_type = frame_type or groups.text(sequence, 0x00089007)
    soft_attributes = {
        "dimension indices": dimensions,
        "frame type": frame_type,
        "complex component": groups.text(0x00189226, 0x00089208),
        "gradient direction": _gradient(groups),
        "cardiac delay": groups.number(0x00189118, 0x00209153),
        "inversion time": groups.numbers(0x00189115, 0x00189079),
        "flip angle": groups.text(0x00189112, 0x00181314),
        "kernel": groups.text(0x00189314, 0x00189316),
        "tube voltage": groups.text(0x00189325, 0x00180060),
        "acquisition time": groups.text(0x00209111, 0x00189074),
        "reference time": groups.text(0x00209111, 0x00189151),
    }
    hard_key = (
        header.text(FRAME_UID),
        _rounded(groups.number(0x00189114, 0x00189082)),
        groups.unsigned(0x00209111, 0x00209128),
        groups.number(0x00209310, 0x0020930D),
        groups.number(0x00189117, 0x00189087),
        groups.text(0x00209111, 0x00209056),
    )
    slope_source = values if values is not None else header
    return Frame(
        file=file,
        index=index,
        encoding=encoding,
        modality=modality,
        patient=_patient(header),
        series_key=(header.text(SERIES_UID), modality, header.text(0x00541001)),
        hard_key=hard_key,
        soft_attributes=soft_attributes,
        uid=header.text(SOP_UID) + b"#%d" % index,
        image_type=tuple(frame_type.split(b"\\")) if frame_type else header.texts(IMAGE_TYPE),
        position_mm=_position(groups.get(PLANE_POSITION)),
        row_cosine=row,
        column_cosine=column,
        spacing_mm=_spacing(measures, modality) if measures is not None else None,
        gap_mm=_length(measures, SLICE_GAP) if measures is not None else None,
        thickness_mm=_length(measures, THICKNESS) if measures is not None else None,
        slope=slope_source.number(SLOPE),
        intercept=slope_source.number(INTERCEPT),
        lut=_lut(header, encoding),
        padding=_padding(header),
        rescale_type=slope_source.text(RESCALE_TYPE),
        flags=flags,
    )


def _gradient(groups: _Groups) -> bytes:
    item = groups.get(0x00189117)
    direction = item.first(0x00189076) if item is not None else None
    return direction.raw(0x00189089) if direction is not None else b""


def _rounded(value: float | None) -> float | None:
    # Echo times repeat to the microsecond; further digits are rounding of floats.
    return None if value is None else round(value, 3)


def _position(header: Elements | None) -> Triple | None:
    values = () if header is None else header.numbers(POSITION)
    if not values:
        return None
    if len(values) != 3:
        raise ImageError(f"{describe_tag(POSITION)} holds {len(values)} numbers, 3 are expected")
    if max(abs(value) for value in values) > MAX_COORDINATE_MM:
        raise ImageError(
            f"{describe_tag(POSITION)} is more than {MAX_COORDINATE_MM / 1000:.0f} m away; the header is"
            " damaged"
        )
    return values[0], values[1], values[2]


def _orientation(header: Elements | None) -> tuple[Triple | None, Triple | None]:
    values = () if header is None else header.numbers(ORIENTATION)
    if not values:
        return None, None
    if len(values) != 6:
        raise ImageError(f"{describe_tag(ORIENTATION)} holds {len(values)} numbers, 6 are expected")
    row, column = values[:3], values[3:]
    lengths = [math.hypot(*row), math.hypot(*column)]
    dot = sum(a * b for a, b in zip(row, column, strict=True))
    if max(abs(length - 1) for length in lengths) > COSINE_TOLERANCE or abs(dot) > COSINE_TOLERANCE:
        raise ImageError(
            f"{describe_tag(ORIENTATION)} is not a pair of perpendicular unit vectors: lengths"
            f" {lengths[0]:.4f} and {lengths[1]:.4f}, product {dot:.4f}; export the series again"
        )
    return _unit_vector(row), _unit_vector(column)


def _unit_vector(vector: tuple[float, ...]) -> Triple:
    x, y, z = vector
    length = math.hypot(x, y, z)
    return x / length, y / length, z / length


def _spacing(header: Elements, modality: bytes) -> tuple[float, float] | None:
    values = header.numbers(PIXEL_SPACING)
    if not values and modality in PROJECTIONS:
        values = header.numbers(IMAGER_SPACING)
    if not values:
        return None
    if len(values) != 2:
        raise ImageError(f"{describe_tag(PIXEL_SPACING)} holds {len(values)} numbers, 2 are expected")
    if not all(MIN_SPACING_MM <= value <= MAX_SPACING_MM for value in values):
        raise ImageError(
            f"{describe_tag(PIXEL_SPACING)} is {values[0]:g} x {values[1]:g} mm; from {MIN_SPACING_MM:g} to"
            f" {MAX_SPACING_MM:g} mm are read. Correct the header"
        )
    return values[0], values[1]


def _length(header: Elements, tag: int) -> float | None:
    """Return a distance that only a single slice needs, or None if it is absent or implausible."""
    values = header.numbers(tag)
    return abs(values[0]) if len(values) == 1 and MIN_SPACING_MM <= abs(values[0]) <= MAX_SPACING_MM else None


def _lut(header: Elements, encoding: Encoding) -> Lut | None:
    item = header.first(MODALITY_LUT)
    if item is None:
        return None
    descriptor = item.integers(0x00283002)
    if len(descriptor) != 3 or descriptor[2] not in range(8, 17):
        raise ImageError("the ModalityLUTSequence's descriptor is damaged; export the image again")
    length = descriptor[0] & 0xFFFF or 1 << 16  # written as SS where the pixels are signed
    first = descriptor[1] - (1 << 16 if encoding.signed and descriptor[1] >= 1 << 15 else 0)
    raw = item.raw(0x00283006)
    if len(raw) == 2 * length:
        entries = item.integers(0x00283006)
    elif descriptor[2] == 8 and len(raw) in (length, length + 1):
        entries = tuple(raw[:length])
    else:
        raise ImageError(
            f"the ModalityLUTSequence announces {length} entries and holds {len(raw)} bytes; file damaged"
        )
    return Lut(first, entries)


def _padding(header: Elements) -> tuple[int, int] | None:
    first = header.integer(PADDING)
    last = header.integer(PADDING_LIMIT)
    if first is None:
        return None
    return first, first if last is None else last

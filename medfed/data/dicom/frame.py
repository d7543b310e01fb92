"""One two-dimensional image of a DICOM object: its position, pixel encoding, and the series it belongs to."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from medfed.data.dicom import tags
from medfed.data.dicom.elements import EMPTY, Elements, describe_tag, functional_groups
from medfed.data.dicom.file import DEFLATED, DicomFile
from medfed.data.dicom.real_world import HOUNSFIELD, RealWorldMapping, find_mapping
from medfed.data.dicom.siemens import Mosaic, find_mosaic
from medfed.data.dicom.weighting import rounded_ms
from medfed.data.size_limits import MAX_DICOM_RATIO, check_size
from medfed.errors import ImageError

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
    samples: int = 1  # of each pixel: 3 in colour

    @property
    def pixels(self) -> int:
        """The number of pixels of one frame."""
        return self.rows * self.columns

    @property
    def shape(self) -> tuple[int, int]:
        """The numbers of rows and columns."""
        return self.rows, self.columns

    @property
    def word_bytes(self) -> int:
        """The number of bytes of one pixel."""
        return self.allocated // 8

    @property
    def frame_bytes(self) -> int:
        """The number of bytes of one uncompressed frame."""
        return (self.pixels * self.samples * self.allocated + 7) // 8


@dataclass(frozen=True, slots=True)
class Lut:
    """A modality LUT: entry i is the value of stored value first + i."""

    first: int
    entries: tuple[int, ...]


class Tile(NamedTuple):
    """The part of a mosaic that is one slice: the whole image's encoding, and the tile's first pixel."""

    image: Encoding
    row: int
    column: int


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
    # The direction in which the column index grows, and that in which the row index grows.
    axes: tuple[Triple, Triple] | None
    spacing_mm: tuple[float, float] | None  # between rows, between columns
    thickness_mm: float | None  # of a single slice
    slope: float | None
    intercept: float | None
    lut: Lut | None
    mapped: tuple[float, float] | None  # the stored values that a real-world mapping covers, if it is used
    padding: tuple[int, int] | None  # raw words, first and last
    rescale_type: bytes
    flags: tuple[str, ...]
    tile: Tile | None = None  # of a mosaic; `encoding` is that of the tile
    echo_ms: float | None = None


def parse_frames(file: DicomFile) -> list[Frame]:
    """Return the image planes of one file: one, or all frames of an enhanced object.

    Raises:
        ImageError: if the header is not that of an image that can be read.
    """
    header = file.elements
    encoding = parse_encoding(file)
    _check_encoding(encoding, file)
    per_frame = header.items(tags.PER_FRAME)
    if not per_frame and encoding.frames != 1:
        raise ImageError(
            f"{encoding.frames} frames without positions (no PerFrameFunctionalGroupsSequence); export this"
            " acquisition as single images or as an enhanced object"
        )
    if not per_frame:
        real = find_mapping(EMPTY, EMPTY, header)
        whole = _frame(file, encoding, 0, lambda sequence: header, _classic_keys(header), real)
        mosaic = find_mosaic(header)
        return [whole] if mosaic is None else _tiles(whole, mosaic)
    if len(per_frame) != encoding.frames:
        raise ImageError(
            f"{encoding.frames} frames are announced, {len(per_frame)} have a position; the file is damaged"
        )
    shared = header.first(tags.SHARED)
    pointers = _dimension_pointers(header)
    frames = []
    for index, own in enumerate(per_frame):
        group = functional_groups(own, shared)
        keys = _enhanced_keys(header, index, group, pointers)
        frames.append(_frame(file, encoding, index, group, keys, find_mapping(own, shared, header)))
    return frames


def _tiles(whole: Frame, mosaic: Mosaic) -> list[Frame]:
    """Return the slices of a mosaic.

    Raises:
        ImageError: if the tiles do not fill the image, or the image has no place in the patient.
    """
    image, across = whole.encoding, mosaic.across
    if image.rows % across or image.columns % across or whole.position_mm is None or whole.axes is None:
        raise ImageError(
            f"a Siemens mosaic of {image.rows} x {image.columns} pixels for {mosaic.count} slices, or without"
            " its place in the patient; export it again, or convert it with dcm2niix"
        )
    rows, columns = image.rows // across, image.columns // across
    between_rows, between_columns = whole.spacing_mm or (0.0, 0.0)
    right, down = (image.columns - columns) / 2 * between_columns, (image.rows - rows) / 2 * between_rows
    corner = [
        place + right * along_row + down * along_column
        for place, along_row, along_column in zip(whole.position_mm, *whole.axes, strict=True)
    ]
    # As many frames as tiles, so that the decoded image is kept until the last of them is read.
    encoding = replace(image, rows=rows, columns=columns, frames=max(2, mosaic.count))
    tiles = []
    for k in range(mosaic.count):
        x, y, z = (place + k * step for place, step in zip(corner, mosaic.step_mm, strict=True))
        tile = Tile(image, k // across * rows, k % across * columns)
        uid = whole.uid + b"#%d" % k if whole.uid else b""
        tiles.append(replace(whole, encoding=encoding, position_mm=(x, y, z), uid=uid, tile=tile))
    return tiles


def parse_encoding(file: DicomFile) -> Encoding:
    """Return the pixel encoding that a header announces.

    Raises:
        ImageError: if there are no pixels, or an element is missing.
    """
    header = file.elements
    tag, at, length = file.pixels()
    allocated = _required(header, tags.ALLOCATED)
    stored = header.integer(tags.STORED) or allocated
    high_bit = header.integer(tags.HIGH_BIT)
    frames = header.count(tags.FRAMES)
    return Encoding(
        rows=_required(header, tags.ROWS),
        columns=_required(header, tags.COLUMNS),
        allocated=allocated,
        stored=stored,
        high_bit=stored - 1 if high_bit is None else high_bit,
        signed=header.integer(tags.SIGNED) == 1,
        photometric=header.text(tags.PHOTOMETRIC),
        frames=1 if frames is None else frames,
        pixel_tag=tag,
        at=at,
        length=length,
        samples=header.integer(tags.SAMPLES) or 1,
    )


def _check_encoding(encoding: Encoding, file: DicomFile) -> None:
    rows, columns, frames, allocated = encoding.rows, encoding.columns, encoding.frames, encoding.allocated
    header = file.elements
    if frames < 1 or rows < 1 or columns < 1:
        raise ImageError(f"{frames} frames of {rows} x {columns} pixels; the header is damaged")
    if file.encapsulated or file.syntax == DEFLATED:
        unpacked = frames * encoding.pixels * max(1, encoding.word_bytes)
        check_size(unpacked, file.size, encoding.pixels, "a DICOM object", max_ratio=MAX_DICOM_RATIO)
    whole_words = allocated in (8, 16, 32) and header.integer(tags.SIGNED) in (0, 1)
    if encoding.pixel_tag == tags.PIXELS and not whole_words:
        raise ImageError(
            f"pixels of {allocated} bits allocated; 8, 16 and 32 with a PixelRepresentation are read"
        )
    check_stored_bits(encoding)
    monochrome = encoding.photometric in (b"MONOCHROME1", b"MONOCHROME2")
    if not monochrome and (encoding.photometric or header.text(tags.MODALITY) in PROJECTIONS):
        raise ImageError(
            "PhotometricInterpretation (0028,0004) is neither MONOCHROME1 nor MONOCHROME2; correct it"
        )


def check_stored_bits(encoding: Encoding) -> None:
    """Refuse stored bits that do not fit into the allocated ones.

    Raises:
        ImageError: naming the bits.
    """
    allocated, stored, high_bit = encoding.allocated, encoding.stored, encoding.high_bit
    if not (0 < stored <= allocated and stored - 1 <= high_bit < allocated):
        raise ImageError(
            f"{stored} bits stored up to bit {high_bit} of {allocated}, which is impossible; file damaged"
        )


def _required(header: Elements, tag: int) -> int:
    value = header.integer(tag)
    if value is None:
        raise ImageError(f"{describe_tag(tag)} is missing; the header is damaged, export the image again")
    return value


class _Keys(NamedTuple):
    """The attributes of a frame that are stored differently in classic and in enhanced objects."""

    uid: bytes
    image_type: tuple[bytes, ...]
    hard_key: tuple[object, ...]
    soft_attributes: dict[str, object]
    echo_ms: float | None


def _frame(
    file: DicomFile,
    encoding: Encoding,
    index: int,
    group: Callable[[int], Elements],
    keys: _Keys,
    real: tuple[RealWorldMapping | None, tuple[str, ...]],
) -> Frame:
    """Return one frame; `group` returns a functional group, or the header of an object without them."""
    header = file.elements
    modality = header.text(tags.MODALITY)
    measures = group(tags.PIXEL_MEASURES)
    values = group(tags.VALUE_TRANSFORMATION)
    values = header if values is EMPTY else values
    slope, intercept, lut = values.number(tags.SLOPE), values.number(tags.INTERCEPT), _lut(header, encoding)
    mapping, real_flags = real if slope is None and lut is None else (None, ())
    if mapping is not None and modality == b"CT" and mapping.units != HOUNSFIELD:
        mapping, real_flags = None, ("real_world_values_unused",)
    if mapping is not None:
        slope, intercept = mapping.slope, mapping.intercept
    return Frame(
        file=file,
        index=index,
        encoding=encoding,
        modality=modality,
        patient=_patient(header),
        series_key=(header.text(tags.SERIES_UID), modality, header.text(0x00541001)),
        hard_key=keys.hard_key,
        soft_attributes=keys.soft_attributes,
        uid=keys.uid,
        image_type=keys.image_type,
        position_mm=_position(group(tags.PLANE_POSITION)),
        axes=_orientation(group(tags.PLANE_ORIENTATION)),
        spacing_mm=pixel_spacing(measures, modality),
        thickness_mm=_length(measures, tags.SLICE_GAP) or _length(measures, tags.THICKNESS),
        slope=slope,
        intercept=intercept,
        lut=lut,
        mapped=None if mapping is None else (mapping.first, mapping.last),
        padding=_padding(header),
        rescale_type=values.text(tags.RESCALE_TYPE),
        flags=(*declared_flags(file), *real_flags, *_spacing_flags(measures, modality)),
        echo_ms=keys.echo_ms,
    )


def _patient(header: Elements) -> tuple[bytes, bytes, bytes]:
    # Not the study UID: some writers invent one per slice, and a series UID is unique without it.
    name = header.text(tags.PATIENT_NAME).rstrip(b"^ ").lower()
    return header.text(tags.PATIENT_ID), name, header.text(tags.BIRTH_DATE)


def declared_flags(file: DicomFile) -> tuple[str, ...]:
    """Return the flags of what a header declares: burnt-in text, a face, lossy compression."""
    header = file.elements
    declared = {
        "burned_in": header.text(tags.BURNED_IN) == b"YES",
        "recognizable": header.text(tags.RECOGNIZABLE) == b"YES",
        "lossy": header.text(tags.LOSSY) == b"01" or file.syntax in LOSSY_SYNTAXES,
    }
    return tuple(flag for flag, is_set in declared.items() if is_set)


def _classic_keys(header: Elements) -> _Keys:
    image_type = header.texts(tags.IMAGE_TYPE)
    soft_attributes: dict[str, object] = {
        "study": header.text(tags.STUDY_UID),
        "image type": image_type,
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
        "thickness": header.text(tags.THICKNESS),
        "series number": header.text(0x00200011),
        "series description": header.text(0x0008103E),
        "frame reference time": header.text(0x00541300),
        "acquisition time": (header.text(0x0008002A),)
        if 0x0008002A in header
        else (header.text(0x00080022), header.text(0x00080032)),
        "content time": (header.text(0x00080023), header.text(0x00080033)),
    }
    echo_ms = rounded_ms(header.number(0x00180081))
    hard_key = (
        header.text(tags.FRAME_UID),
        header.text(tags.ECHO_NUMBER),
        echo_ms,
        header.count(0x00200100),
        header.number(0x00189087),
        header.text(0x00209056),
    )
    return _Keys(header.text(tags.SOP_UID), image_type, hard_key, soft_attributes, echo_ms)


# Dimension index pointers that give a frame's position; the others distinguish frames at one position.
_POSITION_POINTERS = frozenset((0x00200032, 0x00209057, 0x00209113, 0x00201041, 0x00209116))


def _dimension_pointers(header: Elements) -> list[int]:
    pointers = []
    for item in header.items(0x00209222):
        words = item.integers(0x00209165)
        pointers.append(words[0] << 16 | words[1] if len(words) == 2 else 0)
    return pointers


def _enhanced_keys(
    header: Elements, index: int, group: Callable[[int], Elements], pointers: list[int]
) -> _Keys:
    content, diffusion = group(tags.FRAME_CONTENT), group(tags.MR_DIFFUSION)
    indices = zip(content.integers(0x00209157, "I"), pointers, strict=False)
    frame_types = [
        group(tag).text(0x00089007) for tag in (tags.MR_FRAME_TYPE, tags.CT_FRAME_TYPE, tags.PET_FRAME_TYPE)
    ]
    frame_type = next(filter(None, frame_types), b"")
    soft_attributes: dict[str, object] = {
        "dimension indices": tuple(
            value for value, pointer in indices if pointer and pointer not in _POSITION_POINTERS
        ),
        "frame type": frame_type,
        "complex component": group(tags.MR_FRAME_TYPE).text(0x00089208),
        "gradient direction": diffusion.first(0x00189076).raw(0x00189089),
        "cardiac delay": group(0x00189118).number(0x00209153),
        "inversion time": group(0x00189115).numbers(0x00189079),
        "flip angle": group(0x00189112).text(0x00181314),
        "kernel": group(0x00189314).text(0x00189316),
        "tube voltage": group(0x00189325).text(0x00180060),
        "acquisition time": content.text(0x00189074),
        "reference time": content.text(0x00189151),
    }
    echo_ms = rounded_ms(group(tags.MR_ECHO).number(tags.EFFECTIVE_ECHO_TIME))
    hard_key = (
        header.text(tags.FRAME_UID),
        echo_ms,
        content.integer(0x00209128, "I"),
        group(0x00209310).number(0x0020930D),
        diffusion.number(0x00189087),
        content.text(0x00209056),
    )
    image_type = tuple(frame_type.split(b"\\")) if frame_type else header.texts(tags.IMAGE_TYPE)
    return _Keys(header.text(tags.SOP_UID) + b"#%d" % index, image_type, hard_key, soft_attributes, echo_ms)


def _position(header: Elements) -> Triple | None:
    values = header.numbers(tags.POSITION, 3)
    if not values:
        return None
    if max(abs(value) for value in values) > MAX_COORDINATE_MM:
        raise ImageError(
            f"{describe_tag(tags.POSITION)} is more than {MAX_COORDINATE_MM / 1000:.0f} m away; the header is"
            " damaged"
        )
    return values[0], values[1], values[2]


def _orientation(header: Elements) -> tuple[Triple, Triple] | None:
    values = header.numbers(tags.ORIENTATION, 6)
    if not values:
        return None
    row, column = values[:3], values[3:]
    lengths = [math.hypot(*row), math.hypot(*column)]
    dot = sum(a * b for a, b in zip(row, column, strict=True))
    if max(abs(length - 1) for length in lengths) > COSINE_TOLERANCE or abs(dot) > COSINE_TOLERANCE:
        raise ImageError(
            f"{describe_tag(tags.ORIENTATION)} is not a pair of perpendicular unit vectors: lengths"
            f" {lengths[0]:.4f} and {lengths[1]:.4f}, product {dot:.4f}; export the series again"
        )
    return _unit_vector(row), _unit_vector(column)


def _unit_vector(vector: tuple[float, ...]) -> Triple:
    x, y, z = vector
    length = math.hypot(x, y, z)
    return x / length, y / length, z / length


def pixel_spacing(header: Elements, modality: bytes = b"") -> tuple[float, float] | None:
    """Return the distances of rows and of columns in mm, None without any; or refuse implausible ones."""
    values = header.numbers(tags.PIXEL_SPACING, 2)
    if not values and modality in PROJECTIONS:
        values = header.numbers(tags.IMAGER_SPACING, 2)
    if not values:
        return None
    if not all(MIN_SPACING_MM <= value <= MAX_SPACING_MM for value in values):
        raise ImageError(
            f"{describe_tag(tags.PIXEL_SPACING)} is {values[0]:g} x {values[1]:g} mm; from"
            f" {MIN_SPACING_MM:g} to {MAX_SPACING_MM:g} mm are read. Correct the header"
        )
    return values[0], values[1]


def _spacing_flags(header: Elements, modality: bytes) -> tuple[str, ...]:
    """Return the flag of a radiograph whose size is known at its detector only."""
    at_detector = modality in PROJECTIONS and not header.numbers(tags.PIXEL_SPACING, 2)
    return ("detector_spacing",) if at_detector and header.numbers(tags.IMAGER_SPACING, 2) else ()


def _length(header: Elements, tag: int) -> float | None:
    """Return a distance that only a single slice needs, or None if it is absent or implausible."""
    values = header.numbers(tag)
    return abs(values[0]) if len(values) == 1 and MIN_SPACING_MM <= abs(values[0]) <= MAX_SPACING_MM else None


def _lut(header: Elements, encoding: Encoding) -> Lut | None:
    item = header.first(tags.MODALITY_LUT)
    if item is EMPTY:
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
    first, last = header.integer(tags.PADDING), header.integer(tags.PADDING_LIMIT)
    return None if first is None else (first, first if last is None else last)

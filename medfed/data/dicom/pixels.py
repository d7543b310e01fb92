"""Stored pixels of a frame, decoded from any supported encoding, and their modality values."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfed.data.dicom import tags
from medfed.data.dicom.decoder_process import (
    EXTENDED,
    CodedFrame,
    decode_in_process,
    decode_in_subprocess,
    max_processes,
)
from medfed.data.dicom.encapsulated import JPEG_2000, RLE, check_codestream, frame_bytes
from medfed.data.dicom.file import DicomFile, inflate
from medfed.data.dicom.frame import PROJECTIONS, Encoding, Frame
from medfed.data.dicom.suppress_logs import suppress_dicom_logs
from medfed.data.size_limits import FRAME_UNLIMITED_RATIO_BYTES, check_size
from medfed.errors import ImageError

# Hounsfield units of air, which replace padding in CT.
AIR_HU = -1000.0

_FLOAT_WORDS = {tags.FLOAT_PIXELS: "f4", tags.DOUBLE_PIXELS: "f8"}
# Each frame deflated separately (PS3.5 section A.4.13), as large segmentations are written.
DEFLATED_FRAMES = "1.2.840.10008.1.2.8.1"
# From this many frames on, JPEG 2000 is decoded in subprocesses: two of them take 0.4 s of processor time to
# start, once, and a frame of 512 x 512 takes 16 ms. Fewer frames are decoded in this process.
_MIN_PARALLEL_JPEG_2000 = 16
# The decoder of each transfer syntax: the Python package, and pydicom's name for it. pydicom would otherwise
# take the first that is installed, which may be GDCM, and GDCM aborts on damaged data.
DECODERS = {
    RLE: ("pylibjpeg-rle", "pylibjpeg"),
    **dict.fromkeys(JPEG_2000, ("pylibjpeg-openjpeg", "pylibjpeg")),
    **{f"1.2.840.10008.1.2.4.{n}": ("pyjpegls", "pyjpegls") for n in (80, 81)},
    **{f"1.2.840.10008.1.2.4.{n}": ("python-gdcm", "gdcm") for n in (50, 51, 57, 70)},
}


def stored_values(frame: Frame) -> NDArray[Any]:
    """Return a frame's stored values, (rows, columns), without the bits above BitsStored and with their sign.

    Raises:
        ImageError: if the pixels are truncated, damaged, or in an encoding that cannot be read.
    """
    return sign_extend(_frame_words(frame), frame.encoding)


def iter_words(frames: Sequence[Frame]) -> Iterator[NDArray[Any]]:
    """Yield the words of each frame in turn; frames decoded in subprocesses are requested ahead.

    Raises:
        ImageError: as `read_words`.
    """
    processes = max_processes()
    if processes == 1 or not all(_faster_in_parallel(frame.file, len(frames)) for frame in frames):
        yield from (_frame_words(frame) for frame in frames)
        return
    with ThreadPoolExecutor(processes) as threads:  # they wait for the subprocesses without holding the lock
        ahead: deque[Future[NDArray[Any]]] = deque()
        try:
            for frame in frames:
                ahead.append(threads.submit(_frame_words, frame, True))
                if len(ahead) > processes:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for waiting in ahead:  # a frame was refused, so the rest is not needed
                waiting.cancel()


def _frame_words(frame: Frame, subprocess: bool = False) -> NDArray[Any]:
    """Return a frame's words, (rows, columns); of a tile those of its part of the mosaic."""
    tile = frame.tile
    if tile is None:
        return read_words(frame.file, frame.encoding, frame.index, subprocess)
    if "mosaic" not in frame.file.memo:
        frame.file.memo["mosaic"] = read_words(frame.file, tile.image, 0, subprocess)
    image: NDArray[Any] = frame.file.memo["mosaic"]
    rows, columns = frame.encoding.shape
    return image[tile.row : tile.row + rows, tile.column : tile.column + columns]


def _faster_in_parallel(file: DicomFile, frames: int) -> bool:
    """Whether several processes decode a series faster, including their start."""
    if file.syntax in JPEG_2000:
        return frames >= _MIN_PARALLEL_JPEG_2000
    return frames > 1 and DECODERS.get(file.syntax, ("", ""))[1] == "gdcm"


def read_words(file: DicomFile, encoding: Encoding, index: int, subprocess: bool = False) -> NDArray[Any]:
    """Return a frame's words as allocated, (rows, columns), unsigned, or float for float pixels.

    With `subprocess`, compressed frames are decoded in a subprocess, as GDCM's always are.
    """
    if file.encapsulated:
        return _decode_frame(file, encoding, index, subprocess)
    word = np.dtype(_FLOAT_WORDS.get(encoding.pixel_tag) or f"u{encoding.word_bytes}")
    size = encoding.pixels * word.itemsize
    expected = size * encoding.frames
    even = expected + expected % 2
    if encoding.length not in (expected, even) and not _has_trailing_zeros(file, encoding, expected):
        raise ImageError(
            f"the pixel data hold {encoding.length} bytes, {encoding.frames} frames of {encoding.rows} x"
            f" {encoding.columns} pixels of {word.itemsize} bytes need {expected}; truncated or damaged"
        )
    first, last = index * size, (index + 1) * size
    if word.itemsize == 1 and has_swapped_bytes(file):
        # An odd start shares its two bytes with a neighbour.
        pairs = file.read(encoding.at + first - first % 2, last - first + first % 2 + last % 2)
        swapped = np.frombuffer(pairs, "<u2").byteswap().view("u1")
        return swapped[first % 2 :][:size].reshape(encoding.shape)
    stored_as = word.newbyteorder(">" if file.big_endian else "<")
    return np.frombuffer(file.read(encoding.at + first, size), stored_as).reshape(encoding.shape)


def has_swapped_bytes(file: DicomFile) -> bool:
    """Whether every two bytes of 8 bit pixels are swapped, as in big endian OW data."""
    return file.big_endian and file.elements.where(tags.PIXELS)[2] == b"OW"


def _has_trailing_zeros(file: DicomFile, encoding: Encoding, expected: int) -> bool:
    """Whether the pixel data have up to 8 zeros too many, as some writers align them.

    They must be shorter than a row and a column, so that wrong Rows or Columns are not mistaken for padding.
    """
    more = encoding.length - expected
    if not 0 < more <= 8 or more >= min(encoding.shape) * max(1, encoding.word_bytes):
        return False
    return not any(file.read(encoding.at + expected, more))


def sign_extend(words: NDArray[Any], encoding: Encoding) -> NDArray[Any]:
    """Return the stored values of words: the BitsStored bits below HighBit, with their sign."""
    if words.dtype.kind == "f":
        return words
    width = words.dtype.itemsize * 8
    if words.dtype.byteorder == ">":
        words = words.astype(words.dtype.newbyteorder("<"))
    up = width - 1 - encoding.high_bit
    down = width - encoding.stored
    if encoding.signed:
        words = words.view(f"i{words.dtype.itemsize}")
    if up == 0 and down == 0:
        return words
    return (words << up) >> down


def write_modality_values(
    words: NDArray[Any], frame: Frame, padding: float | None, out: NDArray[np.float32]
) -> None:
    """Write a frame's modality values (HU in CT) to `out`, (rows, columns), padding replaced by a number.

    Raises:
        ImageError: if a value does not fit a float32.
    """
    encoding = frame.encoding
    values = sign_extend(words, encoding)
    if is_inverted(frame) and values.dtype.kind != "f":
        # Decides whether a radiograph shows bone white or black; HU of a CT mean the same under both.
        top = -1 if encoding.signed else (1 << encoding.stored) - 1
        inverted = top - values.astype(np.int64)
    else:
        inverted = values
    if frame.lut is not None:
        entries = np.asarray(frame.lut.entries, np.float32)
        out[...] = entries[np.clip(inverted.astype(np.int64) - frame.lut.first, 0, len(entries) - 1)]
    else:
        _rescale(inverted, frame, out)
    padded = padding_mask(words, values, frame)
    if frame.mapped is not None:
        _check_mapped(values if padded is None else values[~padded], frame.mapped)
    if padded is not None and padding is not None:
        out[padded] = padding


def is_inverted(frame: Frame) -> bool:
    """Whether a frame's low values are shown white: of a radiograph or another picture, not of a slice."""
    picture = frame.modality in PROJECTIONS or frame.position_mm is None or frame.axes is None
    return picture and frame.encoding.photometric == b"MONOCHROME1"


def _check_mapped(values: NDArray[Any], mapped: tuple[float, float]) -> None:
    low, high = sorted(mapped)
    if values.size and (values.min() < low or values.max() > high):
        raise ImageError(
            "a stored value lies outside the RealWorldValueMapping (0040,9096), which leaves its meaning"
            " undefined; export the image with a RescaleSlope"
        )


def _rescale(values: NDArray[Any], frame: Frame, out: NDArray[np.float32]) -> None:
    slope = 1.0 if frame.slope is None else frame.slope
    intercept = 0.0 if frame.intercept is None else frame.intercept
    if slope == 1.0 and intercept == int(intercept) and values.dtype.itemsize <= 2:
        # Integers of at most 17 bits are exact in float32.
        np.add(values, np.float32(intercept), out=out, dtype=np.float32, casting="unsafe")
        return
    with np.errstate(over="ignore", invalid="ignore"):
        out[...] = values.astype(np.float64) * slope + intercept
    if not np.isfinite(out).all() and np.isfinite(values).all():
        raise ImageError("a rescaled value does not fit a 32 bit float; the RescaleSlope is damaged")


def padding_mask(words: NDArray[Any], values: NDArray[Any], frame: Frame) -> NDArray[np.bool_] | None:
    """Return the mask of padding pixels, or None if the header declares no padding.

    The padding value is compared as a word, because older CT scanners pad with -2000 outside the stored bits,
    and as a stored value, because the bits above those may hold anything.
    """
    if frame.padding is None or values.dtype.kind == "f":
        return None
    encoding = frame.encoding
    width = words.dtype.itemsize * 8
    first, last = (_as_value(word, encoding, width) for word in frame.padding)
    first, last = min(first, last), max(first, last)
    if first == last:
        if _representable(first, encoding):
            return np.asarray(values == first)
        return np.asarray(words == (frame.padding[0] & ((1 << width) - 1)))
    return np.asarray((values >= first) & (values <= last))


def _as_value(word: int, encoding: Encoding, width: int) -> int:
    """Return a padding word as a number; its value representation may be US although pixels are signed."""
    word &= (1 << min(width, 16)) - 1
    bits = min(width, 16)
    return word - (1 << bits) if encoding.signed and word >= 1 << (bits - 1) else word


def _representable(value: int, encoding: Encoding) -> bool:
    half = 1 << (encoding.stored - 1)
    return -half <= value < half if encoding.signed else 0 <= value < 2 * half


def _decode_frame(file: DicomFile, encoding: Encoding, index: int, subprocess: bool) -> NDArray[Any]:
    if file.syntax == DEFLATED_FRAMES:
        return _inflated(file, encoding, index)
    if encoding.allocated == 1 and file.syntax in JPEG_2000:
        # A segmentation's bits, which a codestream of one bit per pixel holds as bytes of 0 and 1.
        encoding = replace(encoding, allocated=8, stored=1, high_bit=0)
    packed, words = decode_packed(file, encoding, index, subprocess)
    if file.syntax in JPEG_2000 and encoding.signed:
        _check_sign(packed, words, encoding)
    return words


def decode_packed(
    file: DicomFile, encoding: Encoding, index: int = 0, subprocess: bool = False
) -> tuple[bytes, NDArray[Any]]:
    """Return the compressed bytes of a frame, and its words, (rows, columns) or (rows, columns, samples).

    Raises:
        ImageError: if they cannot be decoded, or are not of the size that the header announces.
    """
    _check_syntax(file, encoding)
    packed = _packed_frame(file, encoding, index, "a compressed frame")
    check_codestream(packed, file.syntax, encoding)
    return packed, decode(packed, file.syntax, encoding, subprocess)


def _check_syntax(file: DicomFile, encoding: Encoding) -> None:
    if encoding.allocated < 8 or file.syntax not in DECODERS:
        raise ImageError(
            f"transfer syntax {file.syntax} is not supported; export the images as Explicit VR Little Endian"
            " or JPEG 2000"
        )
    if file.syntax == EXTENDED and encoding.stored != 8:
        raise ImageError(
            f"JPEG Extended of {encoding.stored} bits is not supported, because its decoders give wrong"
            " values; export the images as Explicit VR Little Endian or JPEG 2000"
        )


def _packed_frame(file: DicomFile, encoding: Encoding, index: int, what: str) -> bytes:
    packed = frame_bytes(file, encoding, index)
    limit = FRAME_UNLIMITED_RATIO_BYTES
    check_size(encoding.frame_bytes, len(packed), encoding.pixels, what, unlimited_ratio_bytes=limit)
    return packed


def _check_sign(packed: bytes, words: NDArray[Any], encoding: Encoding) -> None:
    """Refuse words whose highest bit is a sign in the header, but not in a shorter JPEG 2000 codestream.

    Raises:
        ImageError: naming both lengths.
    """
    at = packed.find(b"\xff\x4f\xff\x51", 0, 4096)
    # Of the only component: the highest bit means signed, the others are the bits minus one.
    depth = packed[at + 42]
    bits = (depth & 0x7F) + 1
    if depth < 0x80 and bits < encoding.stored and (words.view(f"i{words.dtype.itemsize}") < 0).any():
        raise ImageError(
            f"the JPEG 2000 pixels are unsigned of {bits} bits, the header's signed of {encoding.stored}: the"
            " highest bit may be a sign or not; export the images as Explicit VR Little Endian"
        )


def _inflated(file: DicomFile, encoding: Encoding, index: int) -> NDArray[Any]:
    packed = _packed_frame(file, encoding, index, "a deflated frame")
    data, _ = inflate(packed, 0, encoding.frame_bytes)
    if encoding.allocated == 1:
        bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")[: encoding.pixels]
        return bits.reshape(encoding.shape)
    return np.frombuffer(data, f"<u{encoding.word_bytes}").reshape(encoding.shape)


def decode(packed: bytes, syntax: str, encoding: Encoding, subprocess: bool = False) -> NDArray[Any]:
    """Return one compressed frame's words, (rows, columns), in colour (rows, columns, samples).

    Raises:
        ImageError: if the decoder is not installed, fails, or yields another size.
    """
    package, plugin = DECODERS[syntax]
    if not _installed(syntax, plugin):
        raise ImageError(f"transfer syntax {syntax} needs the Python package {package}; install it")
    bits, samples = (encoding.allocated, encoding.stored), encoding.samples
    photometric = "MONOCHROME2" if samples == 1 else encoding.photometric.decode("ascii", "replace")
    coded = CodedFrame(syntax, plugin, *encoding.shape, *bits, encoding.signed, samples, photometric)
    shape = encoding.shape if samples == 1 else (*encoding.shape, samples)
    word = np.dtype(f"u{encoding.word_bytes}")
    if subprocess or plugin == "gdcm":
        array = np.frombuffer(decode_in_subprocess(packed, coded), np.uint8)
        if array.size == encoding.frame_bytes:
            array = array.view(word).reshape(shape)
    else:
        array = _decode_in_process(packed, coded)
    if array.shape != shape or array.dtype.itemsize != word.itemsize:
        raise ImageError(
            f"the compressed pixels decode to {array.shape} of {array.dtype.itemsize} bytes, the header"
            f" announces {encoding.rows} x {encoding.columns} of {word.itemsize}; the file is damaged"
        )
    return np.ascontiguousarray(array).view(word)


def import_decoders() -> None:
    """Import what decodes compressed pixels in this process, and what reads text in their headers."""
    import pydicom.charset
    import pydicom.encaps
    import pydicom.pixels.processing  # noqa: F401 - imported for later readers

    for syntax, (_, plugin) in DECODERS.items():
        _installed(syntax, plugin)


def _installed(syntax: str, plugin: str) -> bool:
    if plugin == "gdcm":
        return find_spec("gdcm") is not None  # which only its subprocess imports
    from pydicom.pixels.decoders.base import get_decoder

    with suppress_dicom_logs():
        return plugin in get_decoder(syntax).available_plugins


def _decode_in_process(packed: bytes, coded: CodedFrame) -> NDArray[Any]:
    with suppress_dicom_logs():
        try:
            return decode_in_process(packed, coded)
        except Exception as error:  # noqa: BLE001 - a decoder may fail in any way; refused below
            cause = type(error).__name__
        except BaseException as panic:
            # A panic of a decoder written in Rust is not an Exception, and is recognised only by name.
            if type(panic).__name__ != "PanicException":
                raise
            cause = "panic"
    raise ImageError(f"the compressed pixels cannot be decoded ({cause}); the file is damaged, copy it again")

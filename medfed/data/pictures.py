"""Pictures as volumes of depth 1: PNG, JPEG and TIFF, decoded by Pillow.

The frame is that of the picture as it is shown: X runs to the right, Y downwards. As in ITK and in our
radiographs, that is LPS without a rotation, so the affine in RAS is diag(-1, -1, 1): a picture and a DICOM
radiograph of one patient agree. A picture says nothing about millimetres: its spacing is 1 and counts
pixels, which the flag `pixels` says. (Densities in a header are about printing and are not used.)

Values are those stored: 0 to 15 for 4 bits, 0 to 65535 for 16. A grey picture has one channel, a coloured
one three; a palette of greys is grey. Where 0 is white (some TIFF), values are turned round, as in
radiographs with MONOCHROME1. An orientation in EXIF is applied, as every viewer does, and flagged.
What Pillow would change without a word (colours of 16 bits, transparency, several pages) is refused.

As a label a mask's palette gives its numbers, and an RGB mask the number 0xRRGGBB of each colour, with the
name '#rrggbb' in `Info.label_names`; grey values are the numbers themselves.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medfed.data.read_options import ReadOptions
from medfed.data.size_limits import check_size
from medfed.data.volume import COLOUR, Info, Volume
from medfed.errors import ImageError, MedfedError

if TYPE_CHECKING:
    from PIL.Image import Image

_MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*")
_PNG_END = b"IEND\xaeB`\x82"
_JPEG_END, _JPEG_SCAN = b"\xff\xd9", b"\xff\xda"
_ORIENTATION = 274  # EXIF and TIFF
_SUBFILE, _BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 254, 258, 262, 339  # TIFF
_WHITE_IS_ZERO, _UNSIGNED, _SIGNED = 0, 1, 2
_REDUCED = 1
_GREY, _COLOUR = ("1", "L", "I", "F", "I;16", "I;16B", "I;16L"), ("RGB",)
_ALPHA = {"RGBA": "RGB", "LA": "L", "PA": "P"}
# X to the right and Y downwards are the patient's left and back.
_AFFINE_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def is_picture(start: bytes) -> bool:
    """Whether a file is a PNG, JPEG or TIFF, by its first bytes."""
    return start.startswith(_MAGIC)


def read_picture(path: str, options: ReadOptions) -> Volume:
    """Return a picture as a volume (C, X, Y, 1) with a spacing of one pixel; see the module.

    Raises:
        ImageError: if it is damaged, truncated, too large, partly transparent, of several pages, or of a kind
            that Pillow would change.
    """
    from PIL import Image

    with open(path, "rb", buffering=0) as file:
        data = file.readall()
    _check_end(data)
    refusal: ImageError
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return _read(data, options)
    except MedfedError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        limit = (Image.MAX_IMAGE_PIXELS or 0) // 1_000_000
        refusal = ImageError(f"a picture of more than {limit} million pixels; cut it into tiles")
    except Exception:  # noqa: BLE001 - Pillow raises many kinds, whose messages may quote the file
        refusal = ImageError("a PNG, JPEG or TIFF file that is truncated or damaged; copy it again")
    raise refusal


def _read(data: bytes, options: ReadOptions) -> Volume:
    import io

    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "TIFF")) as image:
        skipped = _check_pages(image)
        bits = _bits(image, data)
        channels = len(image.getbands())
        voxels = image.width * image.height * channels
        check_size(voxels * max(1, bits // 8), len(data), voxels, "a picture", options.max_bytes)
        _check_kind(image, bits, options)
        flags = ["pixels", "single_slice"] + (["lossy"] if image.format in ("JPEG", "MPO") else [])
        if image.getexif().get(_ORIENTATION, 1) in range(2, 9):
            flags.append("exif_turned")
            turned = ImageOps.exif_transpose(image)
        else:
            turned = image
        array, names = _label_values(turned, bits) if options.as_label else (_values(turned, bits), {})
        if image.format == "TIFF":
            array = _as_declared(array, image, bits)
            flags += ["inverted"] if _tiff(image, _PHOTOMETRIC) == _WHITE_IS_ZERO else []
    flags += [COLOUR] if array.shape[2] == 3 else []
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        flags.append("nan")
        if np.isinf(array).any():
            raise ImageError("a pixel is infinite; correct the picture")
    moved = np.ascontiguousarray(array.transpose(2, 1, 0)[..., None], np.float32)
    return Volume(moved, _AFFINE_RAS.copy(), Info("", skipped, tuple(flags), label_names=names))


def _check_end(data: bytes) -> None:
    """Refuse a PNG or JPEG whose last bytes are missing, which Pillow would pass over."""
    png = data.startswith(_MAGIC[0]) and _PNG_END not in data[-4096:]
    jpeg = data.startswith(_MAGIC[1]) and data.rfind(_JPEG_END) < data.rfind(_JPEG_SCAN)
    if png or jpeg:
        raise ImageError("a truncated PNG or JPEG file: its end is missing; copy it again")


def _check_pages(image: Image) -> tuple[str, ...]:
    """Return a note on pages that are left out: a camera's preview, or smaller copies of the picture.

    Raises:
        ImageError: if there are several pictures in the file.
    """
    pages = getattr(image, "n_frames", 1)
    if pages == 1:
        return ()
    if image.format == "MPO":
        return ("a camera's preview inside a JPEG",)
    reduced = image.format == "TIFF" and all(_is_reduced(image, page) for page in range(1, pages))
    image.seek(0)
    if not reduced:
        raise ImageError(
            f"a picture of {pages} pages, which may be slices, times or channels; store one picture per file"
        )
    return (f"{pages - 1} smaller copies inside a TIFF",)


def _is_reduced(image: Image, page: int) -> bool:
    image.seek(page)
    return bool(image.tag_v2.get(_SUBFILE, 0) & _REDUCED)  # type: ignore[attr-defined]


def _bits(image: Image, data: bytes) -> int:
    """Return the bits per sample that are stored; Pillow's mode does not tell 4 from 8, or 8 from 16."""
    if image.format == "PNG":
        return data[24]
    if image.format == "TIFF":
        return _tiff(image, _BITS)
    return 8


def _tiff(image: Image, tag: int, default: int = 1) -> int:
    """Return a number of a TIFF's header, the largest where each sample has its own."""
    stored = image.tag_v2.get(tag, (default,))  # type: ignore[attr-defined]
    return int(max(stored)) if isinstance(stored, tuple) else int(stored)


def _as_declared(array: NDArray[Any], image: Image, bits: int) -> NDArray[Any]:
    """Return a TIFF's values as its header declares them, where Pillow looks past it.

    Pillow gives signed bytes as 0 to 255 and unsigned 32 bits as signed, and turns values round where 0 is
    white only up to 8 bits.

    Raises:
        ImageError: if 0 is white and the white of other numbers is not known.
    """
    declared = _tiff(image, _SAMPLE_FORMAT)
    if declared == _SIGNED and array.dtype == np.uint8:
        return array.view(np.int8)
    if declared == _UNSIGNED and array.dtype == np.int32:
        array = array.view(np.uint32)
    if bits <= 8 or _tiff(image, _PHOTOMETRIC) != _WHITE_IS_ZERO:
        return array
    if declared != _UNSIGNED or array.dtype.kind == "f":
        raise ImageError(
            f"a TIFF of {bits} bits with 0 for white, whose black is not known; store it with 0 for black"
        )
    return ((1 << bits) - 1) - array


def _check_kind(image: Image, bits: int, options: ReadOptions) -> None:
    mode = image.mode
    if mode not in (*_GREY, *_COLOUR, *_ALPHA, "P"):
        raise ImageError(
            f"a picture of colours in {mode}, whose meaning depends on the printer; store it as RGB"
        )
    if bits > 8 and mode not in _GREY:
        raise ImageError(
            f"a picture of {bits} bits per colour, of which only 8 would be read; store it with 8 bits, or in"
            " shades of grey"
        )
    if not options.as_label:
        return
    if image.format in ("JPEG", "MPO"):
        raise ImageError("a mask stored as JPEG, which changes values at edges; store it as PNG")
    if image.format == "TIFF" and _tiff(image, _PHOTOMETRIC) == _WHITE_IS_ZERO:
        raise ImageError(
            "a mask stored as TIFF with 0 for white, so its numbers are reversed; store it as PNG"
        )


def _opaque(image: Image) -> Image:
    """Return a picture without its alpha channel.

    Raises:
        ImageError: if a pixel is not opaque: what lies behind it is not in the file.
    """
    plain = image
    if "transparency" in image.info and image.mode in ("1", "L", "P", "RGB"):
        alpha = image.convert("RGBA").getchannel("A")
    elif image.mode in _ALPHA:
        alpha = image.getchannel("A")
        plain = image.convert(_ALPHA[image.mode])
    else:
        return image
    if alpha.getextrema() != (255, 255):
        raise ImageError("a picture with transparent pixels, whose background is not in the file; flatten it")
    return plain


def _values(image: Image, bits: int) -> NDArray[Any]:
    """Return a picture's values, (rows, columns, channels)."""
    plain = _opaque(image)
    if plain.mode == "P":
        colours = np.asarray(plain.convert("RGB"))
        palette = np.array(plain.getpalette("RGB") or [0, 0, 0]).reshape(-1, 3)
        grey = bool((palette == palette[:, :1]).all())
        return colours[..., :1] if grey else colours
    return _stored(plain, bits)


def _stored(plain: Image, bits: int) -> NDArray[Any]:
    """Return stored values, (rows, columns, channels), undoing Pillow's stretching of 2 and 4 bits to 8."""
    array: NDArray[Any] = np.asarray(plain)
    if plain.mode == "L" and bits in (2, 4):
        array = array // (255 // ((1 << bits) - 1))
    return array if array.ndim == 3 else array[..., None]


def _label_values(image: Image, bits: int) -> tuple[NDArray[Any], dict[int, str]]:
    """Return a mask's numbers, (rows, columns, 1), and the colours that they stand for, if it has any."""
    plain = _opaque(image)
    if plain.mode == "P":
        array = np.asarray(plain)
        palette = np.array(plain.getpalette("RGB") or [], np.int64).reshape(-1, 3)
        used = [int(number) for number in np.unique(array)]
        return array[..., None], {n: _colour(*palette[n]) for n in used if n < len(palette)}
    if plain.mode != "RGB":
        return _stored(plain, bits), {}
    colours = np.asarray(plain).astype(np.int32)
    if (colours == colours[..., :1]).all():
        return colours[..., :1], {}
    numbers = (colours[..., 0] << 16) | (colours[..., 1] << 8) | colours[..., 2]
    names = {int(n): _colour(int(n) >> 16, (int(n) >> 8) & 255, int(n) & 255) for n in np.unique(numbers)}
    return numbers[..., None], names


def _colour(red: int, green: int, blue: int) -> str:
    return f"#{red:02x}{green:02x}{blue:02x}"

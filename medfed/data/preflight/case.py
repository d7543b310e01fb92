"""What preflight finds in one case: its files are read once, and measured in one pass.

`examine` runs in a process of its own, so it takes and returns plain values. What it returns names no file
and quotes no header: a scanner is told by its maker from a list known here, never by the header's own words.
"""

from __future__ import annotations

import base64
import hashlib
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medfed.data.cache_location import files_below
from medfed.data.volume import Volume
from medfed.errors import ImageError, LabelError

# Statistics but the extremes come from about so many voxels, evenly over the volume.
SAMPLED_VOXELS = 400_000
# A histogram for the page is drawn from so many quantiles of each case.
QUANTILES = 101
THUMBNAIL_PIXELS = 112
# Pixels that are the brightest of their slice, at the same place in every slice: fewer are noise, a larger
# share of the slice is anatomy or background.
FEWEST_OVERLAY_PIXELS, LARGEST_OVERLAY_SHARE = 20, 0.05
FEWEST_OVERLAY_SLICES = 4
# Makers of scanners by the words that their headers hold; any other word stays untold.
MAKERS = {
    "siemens": "Siemens",
    "ge medical": "GE",
    "ge healthcare": "GE",
    "philips": "Philips",
    "toshiba": "Canon (Toshiba)",
    "canon": "Canon (Toshiba)",
    "hitachi": "Fujifilm (Hitachi)",
    "fujifilm": "Fujifilm (Hitachi)",
    "shimadzu": "Shimadzu",
    "united imaging": "United Imaging",
    "uih": "United Imaging",
    "neusoft": "Neusoft",
    "hologic": "Hologic",
    "esaote": "Esaote",
    "carestream": "Carestream",
    "agfa": "Agfa",
}
_HEAD_PARTS = ("HEAD", "BRAIN", "SKULL", "FACE", "IAC", "ORBIT", "SINUS", "JAW", "TMJ")


@dataclass(frozen=True, slots=True, repr=False)
class CaseRequest:
    """One case to be examined; `key` salts the hash of its voxels."""

    number: int
    image: tuple[str, ...]
    label: str | None
    key: bytes
    classes: int | None = None
    pictures: bool = True


@dataclass(slots=True, repr=False)
class CaseFacts:
    """What was found in one case. `troubles` are (code, detail) for the codes of preflight's table."""

    number: int
    troubles: list[tuple[str, str]] = field(default_factory=list)
    read: bool = False
    channels: int = 0
    shape: tuple[int, int, int] = (0, 0, 0)
    spacing_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    orientation: str = ""
    modality: str = ""
    scanner: str = ""
    flags: tuple[str, ...] = ()
    digest: str = ""
    low: float = 0.0
    high: float = 0.0
    quantiles: tuple[float, ...] = ()
    same_share: float = 0.0  # of the voxels that hold the commonest value
    classes: dict[int, int] = field(default_factory=dict)  # voxels a class, 0 included
    cut_share: float = 0.0  # area of the label's last slice inside the image, as a part of its largest
    thumbnail: str = ""  # PNG in base64


def examine(job: CaseRequest) -> CaseFacts:
    """Return what there is to know about one case; nothing that its files hold makes it raise."""
    found = CaseFacts(job.number)
    try:
        volume = _image(job, found)
        if volume is not None:
            _measure(volume, job, found)
            label = _label(job, volume, found)
            if job.pictures:
                found.thumbnail = thumbnail(volume, label)
    except Exception as trouble:
        # The words of a foreign error may quote what it tripped over; its type cannot.
        found.troubles.append(
            (
                "corrupt",
                f"reading it ended in {type(trouble).__name__}; the file is damaged or of no known kind",
            )
        )
    return found


# ---------------------------------------------------------------------------------------------- image


def _image(job: CaseRequest, found: CaseFacts) -> Volume | None:
    from medfed.data.read import read
    from medfed.data.transforms import check_same_grid

    volumes: list[Volume] = []
    for path in job.image:
        try:
            here = read(path)
        except ImageError as error:
            found.troubles.append((refusal_code(str(error)), str(error)))
            return None
        if len(here) != 1:
            found.troubles.append(("several_volumes", f"{len(here)} volumes where one is due"))
            return None
        volumes.append(here[0])
    for number, other in enumerate(volumes[1:], start=2):
        try:
            check_same_grid(volumes[0], other, number)
        except ImageError as error:
            found.troubles.append(("channel_grid", str(error)))
            return None
    first = volumes[0]
    array = np.concatenate([one.array for one in volumes]) if len(volumes) > 1 else first.array
    flags = tuple(dict.fromkeys(flag for one in volumes for flag in one.info.flags))
    found.read, found.flags, found.modality = True, flags, first.info.modality
    header = header_words(Path(job.image[0])) if first.info.modality else {}
    found.scanner = scanner(header)
    volume = Volume(array, first.affine_ras, first.info)
    if "recognizable" in flags:
        found.troubles.append(("face", "the header says so (RecognizableVisualFeatures is YES)"))
    elif (
        header.get("part", "").upper().startswith(_HEAD_PARTS) and header.get("features", "").upper() != "NO"
    ):
        found.troubles.append(
            ("face", "the header calls it a scan of the head and does not say that it was defaced")
        )
    elif not header and shaped_like_head(volume):
        found.troubles.append(("face", "it has the size and surroundings of a whole head"))
    if "burned_in" in flags:
        found.troubles.append(("burned_in", "the header says so (BurnedInAnnotation is YES)"))
    return volume


def refusal_code(text: str) -> str:
    """Return preflight's code for a reader's refusal."""
    for words, code in (
        ("singular", "singular_affine"),
        ("space (code", "singular_affine"),
        ("(0 bytes", "empty_file"),
    ):
        if words in text:
            return code
    return "corrupt"


def _measure(volume: Volume, job: CaseRequest, found: CaseFacts) -> None:
    import nibabel as nib

    found.channels, found.shape = int(volume.array.shape[0]), volume.shape
    found.spacing_mm = volume.spacing_mm
    found.orientation = "".join(str(letter) for letter in nib.aff2axcodes(volume.affine_ras))
    # Readers lay X out fastest, so this is a view: a copy of a whole CT would cost as much as reading it.
    memory = np.ascontiguousarray(volume.array.T)
    keyed = hashlib.blake2b(repr(volume.shape).encode(), key=job.key[:64], digest_size=16)
    keyed.update(memory.data)
    found.digest = keyed.hexdigest()
    flat = memory.reshape(-1)
    sample = flat[:: max(1, flat.size // SAMPLED_VOXELS) | 1]
    finite = np.sort(sample[np.isfinite(sample)])
    if finite.size == 0:
        found.troubles.append(("near_empty", "no voxel is a number"))
        return
    found.low, found.high = float(np.nanmin(flat)), float(np.nanmax(flat))
    places = np.linspace(0, finite.size - 1, QUANTILES).round().astype(int)
    found.quantiles = tuple(float(value) for value in finite[places])
    edges = np.flatnonzero(np.diff(finite, prepend=-np.inf, append=np.inf))
    found.same_share = float(np.diff(edges).max(initial=0) / finite.size)
    not_numbers = 1 - finite.size / sample.size
    if found.low == found.high:
        found.troubles.append(("constant", f"every voxel is {found.low:g}"))
    elif found.same_share > 0.995:
        found.troubles.append(
            ("near_empty", f"{found.same_share:.1%} of its voxels hold one and the same value")
        )
    if not_numbers > 0:
        found.troubles.append(
            ("not_numbers", f"{max(not_numbers, 0.001):.1%} of its voxels are NaN or infinite")
        )
    if overlay_pixels(volume.array[0]) and "burned_in" not in volume.info.flags:
        found.troubles.append(
            (
                "burned_in",
                f"{overlay_pixels(volume.array[0])} pixels are the brightest at one place in every slice",
            )
        )


def overlay_pixels(array: NDArray) -> int:
    """Return how many pixels are the brightest of their slice at the same place in every slice: text, mostly."""
    if array.shape[2] < FEWEST_OVERLAY_SLICES:
        return 0
    always = array[:, :, 0] == array[:, :, 0].max()
    for k in range(1, array.shape[2]):
        if always.sum() < FEWEST_OVERLAY_PIXELS:
            return 0
        always &= array[:, :, k] == array[:, :, k].max()
    count = int(always.sum())
    return count if FEWEST_OVERLAY_PIXELS <= count <= LARGEST_OVERLAY_SHARE * always.size else 0


def shaped_like_head(volume: Volume) -> bool:
    """Whether what is brighter than air has the size of a whole head, with air to its left, right and front.

    A skull-stripped brain is lower than 150 mm, an abdomen wider than 220 mm, a knee shorter
    from front to back.
    """
    steps = [max(1, size // 64) for size in volume.shape]
    small = volume.array[0][:: steps[0], :: steps[1], :: steps[2]]
    finite = small[np.isfinite(small)]
    if min(small.shape) < 16 or finite.size == 0:
        return False
    air, bright = np.percentile(finite, [1, 99])
    body = small > air + 0.12 * (bright - air)
    corner_ras = np.abs(volume.affine_ras[:3, :3]).argmax(axis=0)  # axis of the array -> R, A or S
    if sorted(corner_ras.tolist()) != [0, 1, 2]:
        return False
    extent = {}
    for axis in range(3):
        share = body.mean(axis=tuple(other for other in range(3) if other != axis))
        filled = np.flatnonzero(share > 0.02)
        if filled.size == 0:
            return False
        length = (filled[-1] - filled[0] + 1) * steps[axis] * volume.spacing_mm[axis]
        extent[int(corner_ras[axis])] = (length, small.shape[axis] * steps[axis] * volume.spacing_mm[axis])
    (wide, view), (deep, _), (high, _) = extent[0], extent[1], extent[2]
    return bool(120 <= wide <= 215 and 160 <= deep <= 270 and high >= 155 and view >= wide + 6)


# ---------------------------------------------------------------------------------------------- label


def _label(job: CaseRequest, volume: Volume, found: CaseFacts) -> NDArray | None:
    from medfed.data.read import read_label

    if job.label is None:
        return None
    try:
        label = read_label(job.label, volume, job.classes, overlap="refuse").array[0]
    except LabelError as error:
        found.troubles.append((_label_code(str(error)), str(error)))
        return None
    except ImageError as error:
        found.troubles.append(("label_corrupt", str(error)))
        return None
    memory = np.ascontiguousarray(label.T)  # Z, Y, X: a view, as X runs fastest
    most = int(memory.max(initial=0))
    if most < 16:  # bincount would first make eight bytes of each
        counts = [int(np.count_nonzero(memory == number)) for number in range(most + 1)]
        found.classes = {number: count for number, count in enumerate(counts) if count}
    elif most < 4096:  # beyond, a count a class would be a long list of noise
        counts = np.bincount(memory.reshape(-1)).tolist()
        found.classes = {number: count for number, count in enumerate(counts) if count}
    inside = memory > 0
    if not inside.any():
        found.troubles.append(("label_empty", "no voxel is labelled"))
        return label
    areas = inside.sum(axis=(1, 2))
    slices = np.flatnonzero(areas)
    if len(slices) >= 5:
        ends = [areas[k] for k, border in ((slices[0], 0), (slices[-1], len(areas) - 1)) if k != border]
        found.cut_share = float(max(ends, default=0) / areas.max())
    return label


def _label_code(text: str) -> str:
    if "grid" in text or "voxels, the image" in text:
        return "label_grid"
    return "label_classes" if "values" in text else "label_corrupt"


# ---------------------------------------------------------------------------------------------- header


def header_words(path: Path) -> dict[str, str]:
    """Return a few words of the first DICOM header at a path, for this process only; empty for NIfTI."""
    import pydicom

    from medfed.data.dicom.suppress_logs import quiet

    tags = ["Manufacturer", "MagneticFieldStrength", "KVP", "BodyPartExamined", "RecognizableVisualFeatures"]
    files = files_below(path) if path.is_dir() else [path]
    for file in files[:50]:
        try:
            with quiet():
                header = pydicom.dcmread(
                    file, stop_before_pixels=True, specific_tags=[*tags, "Rows"], force=True
                )
                if "Rows" in header:
                    names = ("maker", "tesla", "kv", "part", "features")
                    return {key: str(header.get(tag, "") or "") for key, tag in zip(names, tags, strict=True)}
        except Exception:
            continue
    return {}


def scanner(header: dict[str, str]) -> str:
    """Return the maker and the field strength or tube voltage, from lists known here; empty if none is told."""
    word = header.get("maker", "").lower()
    maker = next((name for key, name in MAKERS.items() if key in word), "another maker" if word else "")
    parts = [maker]
    for key, unit, digits, least, most in (("tesla", "T", 1, 0.1, 12), ("kv", "kV", 0, 20, 160)):
        try:
            value = float(header.get(key, "") or 0)
        except ValueError:
            continue
        if least <= value <= most:
            parts.append(f"{value:.{digits}f} {unit}")
    return ", ".join(part for part in parts if part)


# ---------------------------------------------------------------------------------------------- picture


def thumbnail(volume: Volume, label: NDArray | None) -> str:
    """Return an axial slice as a PNG in base64: the patient's right at the left, front at the
    top, label in amber.
    """
    axes = np.abs(volume.affine_ras[:3, :3]).argmax(axis=0).tolist()
    if sorted(axes) != [0, 1, 2]:
        axes = [0, 1, 2]
    order = [axes.index(which) for which in range(3)]  # array axes that run along R, A, S
    signs = [volume.affine_ras[which, order[which]] >= 0 for which in range(3)]

    def plane(array: NDArray, place: int) -> NDArray:
        turned = array.transpose(order)[:, :, place]
        # Rows run from front to back, columns from the patient's right to the left.
        turned = turned[::-1] if signs[0] else turned
        return (turned[:, ::-1] if signs[1] else turned).T

    stack = volume.array[0]
    place = stack.shape[order[2]] // 2
    if label is not None and label.any():
        place = int((label.transpose(order) > 0).sum(axis=(0, 1)).argmax())
    grey = plane(stack, place)
    height, width = grey.shape
    mm = [volume.spacing_mm[order[1]] * height, volume.spacing_mm[order[0]] * width]
    rows, columns = [max(8, round(THUMBNAIL_PIXELS * size / max(mm))) for size in mm]
    pick = np.ix_(np.arange(rows) * height // rows, np.arange(columns) * width // columns)
    grey = np.nan_to_num(grey[pick])
    low, high = np.percentile(grey, [1, 99.5])
    shade = np.clip((grey - low) / max(float(high - low), 1e-9), 0, 1) * 255
    colour = np.repeat(shade[..., None], 3, axis=-1)
    if label is not None:
        inside = plane(label, place)[pick] > 0
        colour[inside] = 0.55 * colour[inside] + 0.45 * np.array([255, 176, 0])
    return base64.b64encode(_png(colour.astype(np.uint8))).decode("ascii")


def _png(colour: NDArray[np.uint8]) -> bytes:
    height, width, _ = colour.shape
    rows = b"".join(b"\0" + row.tobytes() for row in colour)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows, 6))
        + chunk(b"IEND", b"")
    )

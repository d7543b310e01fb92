"""The examination of one case: its files are read once and measured in one pass.

`examine` runs in a process of its own, so it takes and returns plain values. Its result names no file and
quotes no header: a scanner's manufacturer comes from the list below, never from the header's own words.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfed.data import refusals
from medfed.data.batch_needs import Needs
from medfed.data.case import Case, first_path
from medfed.data.class_names import Classes
from medfed.data.folder_options import FolderOptions
from medfed.data.preflight.thumbnail import thumbnail
from medfed.data.settings import Images
from medfed.data.volume import Volume
from medfed.data.walk import files_below
from medfed.data.whole_images import Extent, extent_of
from medfed.errors import ImageError, LabelError

# All statistics except the extremes come from about this many voxels, evenly over the volume.
SAMPLED_VOXELS = 400_000
# The page draws its histogram from this many quantiles of each case.
QUANTILES = 101
# Burned-in text is pixels that are the brightest of their slice at the same position in every slice: fewer
# are noise, a larger share of the slice is anatomy or background.
MIN_OVERLAY_PIXELS, MAX_OVERLAY_SHARE = 20, 0.05
MIN_OVERLAY_SLICES = 4
# Above this share of equal voxels an image is nearly empty.
MAX_SAME_SHARE = 0.995
# Labels with higher numbers hold no classes, and their counts would be a long list of noise.
MAX_CLASSES = 4096
# A label with fewer slices has no taper to judge by.
MIN_LABELLED_SLICES = 5
# Manufacturers of scanners by words in their headers; any other word is reported as another manufacturer.
MANUFACTURERS = {
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
# The codes of ISSUE_TYPES for refusals; any other refusal is of a damaged file.
ISSUE_CODES: Mapping[type[ImageError], str] = {
    refusals.MissingImageError: "missing_file",
    refusals.MissingLabelError: "missing_file",
    refusals.SeveralFilesError: "several_files",
    refusals.SeveralLabelsError: "several_files",
    refusals.GeometryError: "singular_affine",
    refusals.EmptyFileError: "empty_file",
    refusals.SeveralVolumesError: "several_volumes",
    refusals.ChannelGridError: "channel_grid",
    refusals.ChannelCountError: "channel_count",
    refusals.UnsuitableSizeError: "unsuitable_size",
    refusals.LabelGridError: "label_grid",
    refusals.LabelClassesError: "label_classes",
    refusals.OtherPatientError: "label_corrupt",
    LabelError: "label_corrupt",
}
# Headers are searched for an image in this many files at most.
MAX_HEADERS = 50
HEADER_TAGS = {
    "manufacturer": "Manufacturer",
    "tesla": "MagneticFieldStrength",
    "kv": "KVP",
    "part": "BodyPartExamined",
    "features": "RecognizableVisualFeatures",
}
_HEAD_PARTS = ("HEAD", "BRAIN", "SKULL", "FACE", "IAC", "ORBIT", "SINUS", "JAW", "TMJ")


@dataclass(frozen=True, slots=True, repr=False)
class CaseRequest:
    """One case to examine; `key` salts the hash of its voxels.

    With a study's `settings` and `needs`, the case is read exactly as training reads it; without, its image
    and its label, if it has one, of any number of channels and classes, as `options` say.
    """

    number: int
    case: Case
    key: bytes
    settings: Images | None = None
    needs: Needs = "segment"
    classes: Classes = None
    thumbnails: bool = True
    options: FolderOptions | None = None


@dataclass(slots=True, repr=False)
class CaseFacts:
    """What an examination measured in one case. `issues` are (code of ISSUE_TYPES, detail)."""

    number: int
    issues: list[tuple[str, str]] = field(default_factory=list)
    refusal: tuple[str, str] | None = None  # why training leaves the case out: fixed words, message
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
    same_share: float = 0.0  # share of voxels with the most frequent value
    classes: dict[int, int] = field(default_factory=dict)  # voxels of each class, 0 included
    cut_share: float = 0.0  # area of the label's last slice as a fraction of its largest
    thumbnail: str = ""  # PNG in base64
    extent: Extent | None = None  # of the image as the study prepares it
    moved: tuple[str, ...] = ()  # what was moved onto the image's grid: label, channels


def examine(request: CaseRequest) -> CaseFacts:
    """Return the facts about one case; no content of its files makes it raise."""
    facts = CaseFacts(request.number)
    try:
        image, label = _read(request, facts)
        if image is not None:
            _describe(image, request, facts)
            mask = None if label is None else _measure_label(label, facts)
            if request.thumbnails:
                facts.thumbnail = thumbnail(image, mask)
    except Exception as error:  # noqa: BLE001 - one bad case never stops the check
        # The message of another library's error may quote the file's content; its type cannot.
        detail = f"reading it ended in {type(error).__name__}; the file is damaged or of no known kind"
        facts.issues.append(("corrupt", detail))
        refuse(ImageError(f"case {request.case.token}: {detail}"), request.case, facts)
    return facts


def _read(request: CaseRequest, facts: CaseFacts) -> tuple[Volume | None, Volume | None]:
    """Return a case's image and label; note why training refuses it, and return what can be read of it."""
    from medfed.data.case_reading import moved_parts, naming, read_case, read_image
    from medfed.data.dataset import used_part
    from medfed.data.transforms import check_preparable

    case = used_part(request.case, request.needs)
    try:
        image, label = read_case(case, request.settings or request.options, request.classes)
        if request.settings is not None:
            with naming(case):
                check_preparable(image, request.settings)
            facts.extent = extent_of(image, request.settings)
    except ImageError as error:
        refuse(error, request.case, facts)
    else:
        facts.moved = moved_parts(image, label)
        return image, label
    # Its facts help to find out what is wrong with it.
    try:
        return read_image(case.image), None
    except ImageError:
        return None, None


def refuse(error: ImageError, case: Case, facts: CaseFacts) -> None:
    """Note that training leaves a case out, and why."""
    code = next((code for kind, code in ISSUE_CODES.items() if isinstance(error, kind)), "corrupt")
    message = str(error)
    if not facts.issues:
        facts.issues.append((code, message.removeprefix(f"case {case.token}: ")))
    facts.refusal = (refusals.reason_of(error), message)


# ---------------------------------------------------------------------------------------------- image


def _describe(volume: Volume, request: CaseRequest, facts: CaseFacts) -> None:
    """Add what an image and its header show."""
    facts.read, facts.modality, facts.flags = True, volume.info.modality, volume.info.flags
    header = header_words(first_path(request.case.image[0])) if facts.modality else {}
    facts.scanner = scanner(header)
    face = _face_evidence(volume, header)
    if face:
        facts.issues.append(("face", face))
    if "burned_in" in facts.flags:
        facts.issues.append(("burned_in", "the header says so (BurnedInAnnotation is YES)"))
    _measure(volume, request, facts)


def _face_evidence(volume: Volume, header: Mapping[str, str]) -> str:
    """Return why an image may show a face, or ''."""
    if "recognizable" in volume.info.flags:
        return "the header says so (RecognizableVisualFeatures is YES)"
    defaced = header.get("features", "").upper() == "NO"
    if header.get("part", "").upper().startswith(_HEAD_PARTS) and not defaced:
        return "the header calls it a scan of the head and does not say that it was defaced"
    if not header and shaped_like_head(volume):
        return "it has the size and surroundings of a whole head"
    return ""


def _measure(volume: Volume, request: CaseRequest, facts: CaseFacts) -> None:
    import nibabel as nib

    facts.channels, facts.shape = int(volume.array.shape[0]), volume.shape
    facts.spacing_mm = volume.spacing_mm
    letters = nib.aff2axcodes(volume.affine_ras)  # type: ignore[no-untyped-call]  # nibabel is untyped
    facts.orientation = "".join(str(letter) for letter in letters)
    # Readers lay X out fastest, so this is a view: a copy of a whole CT would cost as much as reading it.
    memory = np.ascontiguousarray(volume.array.T)
    keyed = hashlib.blake2b(repr(volume.shape).encode(), key=request.key[:64], digest_size=16)
    keyed.update(memory.data)
    facts.digest = keyed.hexdigest()
    _measure_intensities(memory.reshape(-1), facts)
    if overlay_pixels(volume.array[0]) and "burned_in" not in volume.info.flags:
        detail = f"{overlay_pixels(volume.array[0])} pixels are the brightest at one position in every slice"
        facts.issues.append(("burned_in", detail))


def _measure_intensities(voxels: NDArray[Any], facts: CaseFacts) -> None:
    sample = voxels[:: max(1, voxels.size // SAMPLED_VOXELS) | 1]
    finite = np.sort(sample[np.isfinite(sample)])
    if finite.size == 0:
        facts.issues.append(("near_empty", "no voxel is a number"))
        return
    facts.low, facts.high = float(np.nanmin(voxels)), float(np.nanmax(voxels))
    ranks = np.linspace(0, finite.size - 1, QUANTILES).round().astype(int)
    facts.quantiles = tuple(float(value) for value in finite[ranks])
    edges = np.flatnonzero(np.diff(finite, prepend=-np.inf, append=np.inf))
    facts.same_share = float(np.diff(edges).max(initial=0) / finite.size)
    if facts.low == facts.high:
        facts.issues.append(("constant", f"every voxel is {facts.low:g}"))
    elif facts.same_share > MAX_SAME_SHARE:
        facts.issues.append(("near_empty", f"{facts.same_share:.1%} of its voxels have the same value"))
    not_numbers = 1 - finite.size / sample.size
    if not_numbers > 0:
        detail = f"{max(not_numbers, 0.001):.1%} of its voxels are NaN or infinite"
        facts.issues.append(("not_numbers", detail))


def overlay_pixels(array: NDArray[Any]) -> int:
    """Return how many pixels are the brightest of every slice at the same position: mostly text."""
    if array.shape[2] < MIN_OVERLAY_SLICES:
        return 0
    always = array[:, :, 0] == array[:, :, 0].max()
    for k in range(1, array.shape[2]):
        if always.sum() < MIN_OVERLAY_PIXELS:
            return 0
        always &= array[:, :, k] == array[:, :, k].max()
    count = int(always.sum())
    return count if MIN_OVERLAY_PIXELS <= count <= MAX_OVERLAY_SHARE * always.size else 0


def shaped_like_head(volume: Volume) -> bool:
    """Whether the body has the size of a whole head, with air to its left, right and front.

    A skull-stripped brain is lower than 150 mm, an abdomen is wider than 220 mm, and a knee is shorter from
    front to back.
    """
    steps = [max(1, size // 64) for size in volume.shape]
    small = volume.array[0][:: steps[0], :: steps[1], :: steps[2]]
    finite = small[np.isfinite(small)]
    if min(small.shape) < 16 or finite.size == 0:
        return False
    air, bright = np.percentile(finite, [1, 99])
    body = small > air + 0.12 * (bright - air)
    if volume.axes_ras is None:
        return False
    extents = []
    for axis in volume.axes_ras:
        share = body.mean(axis=tuple(other for other in range(3) if other != axis))
        filled = np.flatnonzero(share > 0.02)
        if filled.size == 0:
            return False
        step_mm = steps[axis] * volume.spacing_mm[axis]
        extents.append(((filled[-1] - filled[0] + 1) * step_mm, small.shape[axis] * step_mm))
    (wide, view), (deep, _), (high, _) = extents
    return bool(120 <= wide <= 215 and 160 <= deep <= 270 and high >= 155 and view >= wide + 6)


# ---------------------------------------------------------------------------------------------- label


def _measure_label(read: Volume, facts: CaseFacts) -> NDArray[np.uint8]:
    """Add what a label shows, and return it as (X, Y, Z)."""
    label: NDArray[np.uint8] = read.array[0]
    memory = np.ascontiguousarray(label.T)  # Z, Y, X: a view, as X runs fastest
    facts.classes = _count_classes(memory)
    labelled = memory > 0
    if labelled.any():
        facts.cut_share = _cut_share(labelled)
    else:
        facts.issues.append(("label_empty", "no voxel is labelled"))
    return label


def _count_classes(label: NDArray[np.integer[Any]]) -> dict[int, int]:
    """Return the voxels of each class; empty if the numbers are too large to be classes."""
    highest = int(label.max(initial=0))
    if highest < 16:  # bincount would first make eight bytes of each voxel
        counts = [int(np.count_nonzero(label == number)) for number in range(highest + 1)]
    elif highest < MAX_CLASSES:
        counts = np.bincount(label.reshape(-1)).tolist()
    else:
        return {}
    return {number: count for number, count in enumerate(counts) if count}


def _cut_share(labelled: NDArray[np.bool_]) -> float:
    """Return the area of the last labelled slice as a fraction of the largest, 0 at the image's border."""
    areas = labelled.sum(axis=(1, 2))
    slices = np.flatnonzero(areas)
    if len(slices) < MIN_LABELLED_SLICES:
        return 0.0
    ends = [areas[k] for k, border in ((slices[0], 0), (slices[-1], len(areas) - 1)) if k != border]
    return float(max(ends, default=0) / areas.max())


# ---------------------------------------------------------------------------------------------- header


def header_words(path: Path) -> dict[str, str]:
    """Return a few values of the first DICOM header at a path, for this process only; empty for NIfTI."""
    files = files_below(path) if path.is_dir() else [path]
    return next((words for file in files[:MAX_HEADERS] if (words := _image_header(file))), {})


def _image_header(file: Path) -> dict[str, str]:
    """Return the values of one header, or nothing if the file is no DICOM image."""
    import pydicom

    from medfed.data.dicom.suppress_logs import suppress_dicom_logs

    try:
        with suppress_dicom_logs():
            tags = [*HEADER_TAGS.values(), "Rows"]
            header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=tags, force=True)
            if "Rows" not in header:
                return {}
            return {key: str(header.get(tag, "") or "") for key, tag in HEADER_TAGS.items()}
    except Exception:  # noqa: BLE001 - pydicom's errors have no common class
        return {}


def scanner(header: Mapping[str, str]) -> str:
    """Return the manufacturer and the field strength or tube voltage; empty if the header gives none."""
    word = header.get("manufacturer", "").lower()
    manufacturer = next(
        (name for key, name in MANUFACTURERS.items() if key in word), "another manufacturer" if word else ""
    )
    parts = [manufacturer]
    for key, unit, digits, low, high in (("tesla", "T", 1, 0.1, 12), ("kv", "kV", 0, 20, 160)):
        try:
            value = float(header.get(key, "") or 0)
        except ValueError:
            continue
        if low <= value <= high:
            parts.append(f"{value:.{digits}f} {unit}")
    return ", ".join(part for part in parts if part)


def format_mm(values: Iterable[float]) -> str:
    """Return lengths as text, such as '0.80 x 0.80 x 3.00'."""
    return " x ".join(f"{value:.2f}" for value in values)

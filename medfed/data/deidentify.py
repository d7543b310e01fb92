"""DICOM images without the patient: PS3.15 Annex E, Basic Profile, by an allow-list, with UIDs
from the site's secret.

`deidentify` reads a folder and writes another. What may stay, and in which form, is in `deidentify_rules.py`;
an attribute that isn't there is removed, known or not, public or private, at any depth. The same secret gives
the same UIDs, pseudonyms and shifts of dates on every day, so that a later export fits an earlier one;
without the secret none of them can be undone or tried out.

Dicom-anonymizer was tried as the base: its list of the standard's attributes is right, but it looks at the
top level alone, keeps what the standard doesn't list, forgets its UIDs after a run and cannot shift dates.
The tests hold this module to its list.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any, Literal

from medfed.data.cache_location import files_below
from medfed.errors import DataError

# Dates move back by up to ten years, and by a part of a day, the same for all of a patient's.
MOST_DAYS = 3650
FEWEST_SECRET_BYTES = 16


@dataclass(frozen=True, slots=True)
class Options:
    """What is kept beyond the Basic Profile.

    dates: `shift` all of a patient's by one hidden number of days and seconds, or `remove`.  descriptors: of
    descriptions and labels keep the words of a vocabulary (`clean`), or nothing (`remove`).  device: `keep`
    the names and numbers of devices, or `remove`.
    """

    dates: Literal["shift", "remove"] = "shift"
    descriptors: Literal["clean", "remove"] = "clean"
    device: Literal["keep", "remove"] = "remove"


@dataclass(frozen=True, slots=True)
class Deidentified:
    """What was written and what was left out, in counts."""

    files: int
    patients: int
    series: int
    left_out: tuple[tuple[str, int], ...]


def deidentify(
    source: str | Path,
    target: str | Path,
    *,
    site_secret: bytes,
    options: Options | None = None,
    tell: Callable[[int, int], None] = lambda done, all_: None,
) -> Deidentified:
    """Write the DICOM images, segmentations and structure sets below a folder without what
    says whose they are.

    A file is written as target/patient/series/instance.dcm, all three derived from the secret. What
    can't be made safe (text in the picture, another kind of object, a damaged file) is left out and
    counted with the reason.

    Raises:
        DataError: if the target isn't empty or lies in the source, or the secret is short.
    """
    source, target = Path(source).resolve(), Path(target).resolve()
    _check_places(source, target, site_secret)
    files = [path for path in files_below(source) if not path.is_symlink()]
    target.mkdir(parents=True, exist_ok=True, mode=0o700)
    left_out: Counter[str] = Counter()
    patients: set[str] = set()
    series: set[str] = set()
    written = 0
    for done, path in enumerate(files, start=1):
        told = _one(path, target, Secret(site_secret), options or Options())
        if isinstance(told, str):
            left_out[told] += 1
        else:
            written += 1
            patients.add(told[0])
            series.add(told[1])
        tell(done, len(files))
    return Deidentified(written, len(patients), len(series), tuple(left_out.most_common()))


def _check_places(source: Path, target: Path, site_secret: bytes) -> None:
    if len(site_secret) < FEWEST_SECRET_BYTES:
        raise DataError(
            f"the secret has {len(site_secret)} bytes; at least {FEWEST_SECRET_BYTES} are needed, "
            "`secrets.token_bytes(32)` makes one"
        )
    if not source.is_dir():
        raise DataError("the folder to read is not there; name a folder with DICOM files")
    if target == source or source in target.parents:
        raise DataError("the folder to write lies in the folder to read; name one outside")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise DataError("the folder to write is there and not empty; name a new one")


def _one(path: Path, target: Path, secret: Secret, options: Options) -> tuple[str, str] | str:
    """Write one file; return its patient and series, or why it was left out. A foreign error's
    words may quote values.
    """
    from medfed.data.dicom.suppress_logs import suppress_dicom_logs

    with suppress_dicom_logs():
        try:
            import pydicom

            dataset = pydicom.dcmread(path, force=True)
            if "SOPClassUID" not in dataset or "SOPInstanceUID" not in dataset:
                return "no DICOM object"
            refusal = _refusal(dataset)
            if refusal:
                return refusal
            clean = cleaned(dataset, secret, options)
            folder = target / str(clean.PatientID) / secret.hex("series", str(clean.SeriesInstanceUID))[:16]
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            place = folder / f"{secret.hex('instance', str(clean.SOPInstanceUID))[:24]}.dcm"
            if place.exists():
                return "a second copy of an instance"
            aside = place.with_suffix(".writing")
            try:
                clean.save_as(aside, enforce_file_format=True)
                os.replace(aside, place)
            finally:
                aside.unlink(missing_ok=True)
        except Exception as trouble:
            return f"a file that can't be read or written ({type(trouble).__name__})"
    return str(clean.PatientID), str(clean.SeriesInstanceUID)


def _refusal(dataset: Any) -> str:
    """Return why an object can't be made safe, empty if it can."""
    from medfed.data.deidentify_rules import MODALITIES, OFTEN_BURNED_IN

    modality = str(dataset.get("Modality", ""))
    if modality not in MODALITIES:
        return "a report, document or other object without an image"
    if "PixelData" not in dataset and modality != "RTSTRUCT":
        return "an object without pixels"
    if str(dataset.get("SOPClassUID", "")).startswith("1.2.840.10008.5.1.4.1.1.7"):
        return "a secondary capture, which may show a name"
    burned = str(dataset.get("BurnedInAnnotation", "")).strip().upper()
    if burned == "YES":
        return "text in the picture (BurnedInAnnotation)"
    if modality in OFTEN_BURNED_IN and burned != "NO":
        return "a modality that often has text in the picture, without the word that it doesn't (BurnedInAnnotation)"
    if int(dataset.get("SamplesPerPixel", 1) or 1) != 1:
        return "a colour picture, which may show a name"
    return ""


# ---------------------------------------------------------------------------------------------- the secret


@dataclass(frozen=True, slots=True, repr=False)
class Secret:
    """What the site's secret makes of a text, by purpose."""

    key: bytes

    def bytes(self, purpose: str, text: str) -> bytes:
        return hmac.new(self.key, f"medfed/deidentify/{purpose}/{text}".encode(), hashlib.sha256).digest()

    def hex(self, purpose: str, text: str) -> str:
        return self.bytes(purpose, text).hex()

    def uid(self, old: str) -> str:
        """Return a UID under 2.25 (PS3.5 B.2) that stands for another."""
        return f"2.25.{uuid.UUID(bytes=self.bytes('uid', old)[:16], version=5).int}"

    def shift(self, patient: str) -> timedelta:
        """Return by how much a patient's dates move back."""
        drawn = self.bytes("dates", patient)
        days = 1 + int.from_bytes(drawn[:8], "big") % MOST_DAYS
        return timedelta(days=-days, seconds=-(int.from_bytes(drawn[8:16], "big") % 86400))


# ---------------------------------------------------------------------------------------------- one object


def cleaned(dataset: Any, secret: Secret, options: Options) -> Any:
    """Return a new dataset with what may stay of another; nothing of the old one's bytes is carried along."""
    from medfed.data.deidentify_rules import EMPTIED

    patient = _patient(dataset)
    rewrite = _Rewrite(secret, options, secret.shift(patient))
    clean = rewrite.dataset(dataset)
    for tag in EMPTIED:
        if tag not in clean:
            clean.add_new(tag, _vr(tag), None)
    pseudonym = f"P{secret.hex('patient', patient)[:12].upper()}"
    clean.PatientName, clean.PatientID = pseudonym, pseudonym
    clean.Manufacturer = rewrite.maker(dataset)
    _say_so(clean, options)
    _private_b_value(dataset, clean)
    _pixels(dataset, clean)
    _meta(dataset, clean)
    return clean


def _patient(dataset: Any) -> str:
    """Return what tells a patient from others: the id; without one the name; else what
    a series' images share.
    """

    def text(*names: str) -> str:
        return "/".join(str(dataset.get(name, "") or "").strip() for name in names)

    if text("PatientID"):
        return text("PatientID", "IssuerOfPatientID")
    if text("PatientName"):
        return f"name {text('PatientName', 'PatientBirthDate').lower()}"
    # Not the study: writers exist that invent one a slice.
    return f"series {text('FrameOfReferenceUID') or text('SeriesInstanceUID')}"


def _vr(tag: int) -> str:
    from pydicom.datadict import dictionary_VR

    return dictionary_VR(tag)


@dataclass(frozen=True, slots=True, repr=False)
class _Rewrite:
    """One object's way through the tables."""

    secret: Secret
    options: Options
    shift: timedelta

    def dataset(self, old: Any) -> Any:
        from pydicom import Dataset

        new = Dataset()
        for tag in list(old.keys()):
            if not tag.is_private and tag.group not in (0x0002, 0x0010):
                self._element(old, new, int(tag))
        self._dates(old, new)
        return new

    def _element(self, old: Any, new: Any, tag: int) -> None:
        from medfed.data import deidentify_rules as rules

        if tag in rules.SEQUENCES:
            self._sequence(old, new, tag)
        elif tag in rules.CODES:
            self._put(
                new, tag, _each(old[tag].value, lambda word: word if word in rules.CODES[tag] else None)
            )
        elif tag in rules.NUMBERS:
            self._put(new, tag, _numbers(old[tag].value), old[tag].VR)
        elif tag in rules.UIDS:
            self._put(new, tag, _each(old[tag].value, self.uid))
        elif tag in rules.IMAGE_TYPE_TAGS:
            self._put(new, tag, _each(old[tag].value, self._image_type))
        elif tag in rules.LABELS or (tag in rules.DESCRIPTORS and self.options.descriptors == "clean"):
            text = clean_words(str(old[tag].value or "")) if self.options.descriptors == "clean" else ""
            if text or tag in rules.LABELS:
                self._put(new, tag, text or self._numbered(old))
        elif tag in rules.DEVICE and self.options.device == "keep":
            self._put(new, tag, old[tag].value)
        elif tag in rules.TOLD_APART:
            self._put(new, tag, _each(old[tag].value, lambda word: self._coded(tag, word)))

    def _put(self, new: Any, tag: int, value: Any, vr: str = "") -> None:
        if value is not None and value != []:
            # Where the dictionary leaves a choice (US or SS), what the file says holds.
            known = _vr(tag)
            new.add_new(tag, known if " or " not in known else (vr or known.split(" ")[0]), value)

    def _sequence(self, old: Any, new: Any, tag: int) -> None:
        from pydicom import Sequence as Items

        from medfed.data.deidentify_rules import CODE_SEQUENCES

        items = old[tag].value if old[tag].VR == "SQ" else []
        clean = [known_code(item) if tag in CODE_SEQUENCES else self.dataset(item) for item in items]
        new.add_new(tag, "SQ", Items([item for item in clean if item is not None]))

    def uid(self, old: str) -> str | None:
        from pydicom.uid import UID_dictionary

        old = str(old).strip()
        return (old if old in UID_dictionary else self.secret.uid(old)) if old else None

    def _image_type(self, word: str) -> str:
        from medfed.data.deidentify_rules import IMAGE_TYPES

        return (
            word
            if word in IMAGE_TYPES or not word
            else f"X{self.secret.hex('image type', word)[:12].upper()}"
        )

    def _coded(self, tag: int, word: str) -> str | None:
        """Return a word that says nothing but whether two were the same."""
        return f"X{self.secret.hex(f'{tag:08x}', word)[:12].upper()}" if word else None

    def _numbered(self, old: Any) -> str:
        number = old.get("SegmentNumber", old.get("ROINumber", old.get("ObservationNumber", "")))
        return f"roi {int(number)}" if number not in (None, "") else "roi"

    def maker(self, old: Any) -> str:
        """Return the maker of the device by a word known here, empty for another; the word
        itself with `device: keep`.
        """
        from medfed.data.preflight.case import MAKERS

        word = str(old.get("Manufacturer", "") or "")
        if self.options.device == "keep":
            return word
        return next((name for key, name in MAKERS.items() if key in word.lower()), "")

    def _dates(self, old: Any, new: Any) -> None:
        from medfed.data.deidentify_rules import DATES, DATETIMES

        if self.options.dates != "shift":
            return
        for day, clock in DATES.items():
            if day not in old:
                continue
            moved = _moved(_text(old, day), _text(old, clock) if clock in old else "", self.shift)
            if moved is not None:
                new.add_new(day, "DA", moved[0])
                if moved[1]:
                    new.add_new(clock, "TM", moved[1])
        for tag in DATETIMES:
            text = re.sub(r"[+-]\d{4}$", "", _text(old, tag)) if tag in old else ""
            moved = _moved(text[:8], text[8:], self.shift)
            if moved is not None:
                new.add_new(tag, "DT", "".join(moved))


def _text(old: Any, tag: int) -> str:
    return str(old[tag].value or "").strip()


def _moved(day: str, clock: str, shift: timedelta) -> tuple[str, str] | None:
    """Return a date and time moved; None for what is no date. Without a time the date moves by whole days."""
    found = re.fullmatch(r"(\d{2})(\d{2})?(\d{2})?(?:\.(\d{1,6}))?", clock) if clock else None
    if not re.fullmatch(r"\d{8}", day):
        return None
    try:
        then = datetime.strptime(day, "%Y%m%d")
        if found is None:
            return f"{then + timedelta(days=shift.days):%Y%m%d}", ""
        hour, minute, second = (int(part or 0) for part in found.groups()[:3])
        micro = int((found[4] or "0").ljust(6, "0"))
        then = then.replace(hour=hour, minute=minute, second=min(second, 59), microsecond=micro) + shift
    except (ValueError, OverflowError):
        return None
    return f"{then:%Y%m%d}", f"{then:%H%M%S.%f}"


def _each(value: Any, change: Callable[[str], str | None]) -> Any:
    """Return a value or a list of values, each changed; None where nothing is left."""
    several = value if isinstance(value, (list, tuple)) or type(value).__name__ == "MultiValue" else [value]
    kept = [new for new in (change(str(one)) for one in several if one is not None) if new is not None]
    return None if not kept else kept[0] if len(kept) == 1 else kept


def _numbers(value: Any) -> Any:
    """Return a value if it is numbers, or the binary words of a table; else None."""
    import numpy as np

    if isinstance(value, (bytes, bytearray)):
        return bytes(value)
    several = list(value) if type(value).__name__ in ("MultiValue", "list", "tuple") else [value]
    if not several or any(one is None or one == "" for one in several):
        return None
    try:
        finite = all(np.isfinite(float(one)) for one in several)
    except (TypeError, ValueError):
        return None
    return value if finite else None


def clean_words(text: str) -> str:
    """Return the words of a description that a vocabulary of imaging holds, in small letters."""
    from medfed.data.deidentify_rules import WORDS

    words = re.findall(r"[a-z0-9]+", text.lower())
    return " ".join(word for word in words if word in WORDS or re.fullmatch(r"\d{1,3}", word))[:64]


def known_code(item: Any) -> Any:
    """Return a coded concept with the standard's own meaning, or None where the standard doesn't know it."""
    from pydicom import Dataset

    scheme, value = str(item.get("CodingSchemeDesignator", "")), str(item.get("CodeValue", ""))
    meaning = _meanings().get((scheme, value))
    if meaning is None:
        return None
    new = Dataset()
    new.CodeValue, new.CodingSchemeDesignator, new.CodeMeaning = value, scheme, meaning[:64]
    return new


@cache
def _meanings() -> dict[tuple[str, str], str]:
    from pydicom.sr import _concepts_dict

    found = {}
    concepts: dict[str, Any] = dict(_concepts_dict.concepts)
    for scheme, by_keyword in concepts.items():
        for by_value in by_keyword.values():
            for value, (meaning, _) in by_value.items():
                found[scheme, value] = meaning
    return found


# PS3.16 CID 7050.
_METHODS = {
    "113100": "Basic Application Confidentiality Profile",
    "113105": "Clean Descriptors Option",
    "113107": "Retain Longitudinal Temporal Information Modified Dates Option",
    "113109": "Retain Device Identity Option",
}


def _say_so(clean: Any, options: Options) -> None:
    from pydicom import Dataset
    from pydicom import Sequence as Items

    codes = ["113100"]
    codes += ["113105"] if options.descriptors == "clean" else []
    codes += ["113107"] if options.dates == "shift" else []
    codes += ["113109"] if options.device == "keep" else []
    items = []
    for code in codes:
        item = Dataset()
        item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code, "DCM", _METHODS[code]
        items.append(item)
    clean.PatientIdentityRemoved = "YES"
    clean.DeidentificationMethod = "medfed: PS3.15 Basic Profile by an allow-list"
    clean.DeidentificationMethodCodeSequence = Items(items)
    clean.LongitudinalTemporalInformationModified = "MODIFIED" if options.dates == "shift" else "REMOVED"


# Where makers keep the b-value: the block's owner, its element, and the element that says who owns it.
_B_VALUES = (
    ("SIEMENS MR HEADER", (0x0019, 0x100C), (0x0019, 0x0010)),
    ("Philips Imaging DD 001", (0x2001, 0x1003), (0x2001, 0x0010)),
    ("GEMS_PARM_01", (0x0043, 0x1039), (0x0043, 0x0010)),
)


def _private_b_value(old: Any, clean: Any) -> None:
    """Move a maker's private b-value to the public attribute: without it a diffusion series falls together."""
    if "DiffusionBValue" in clean:
        return
    for owner, place, block in _B_VALUES:
        if place in old and block in old and str(old[block].value).strip() == owner:
            value = _b_value(old[place].value)
            if value is not None:
                clean.DiffusionBValue = value


def _b_value(value: Any) -> float | None:
    """Return a b-value in s/mm^2, from the first of several values; GE adds 1e9 to mark its own."""
    import struct

    if isinstance(value, bytes):
        if len(value) == 4 and not re.fullmatch(rb"[\d \0]+", value):  # Philips' float, its type lost
            value = struct.unpack("<f", value)[0]
        else:
            value = value.decode("ascii", "replace").split("\\")[0]
    elif isinstance(value, Sequence) and not isinstance(value, str):
        value = value[0] if len(value) else None
    try:
        number = float(str(value).strip(" \0"))
    except ValueError:
        return None
    number = number % 1e6 if number >= 1e9 else number
    return number if 0 <= number < 1e5 else None


# ---------------------------------------------------------------------------------------------- pixels


def _pixels(old: Any, clean: Any) -> None:
    """Carry the pixels over, without what hides beside them: bits above the high bit, bytes
    after the end, comments.
    """
    if "PixelData" not in old:
        return
    element = old["PixelData"]
    syntax = old.file_meta.get("TransferSyntaxUID") if hasattr(old, "file_meta") else None
    if syntax is not None and syntax.is_encapsulated:
        data = _without_comments(element.value, old)
        clean.add_new(0x7FE00010, "OB", data)
        clean["PixelData"].is_undefined_length = True
        return
    data = _without_spare_bits(element.value, old)
    clean.add_new(0x7FE00010, "OW" if int(old.BitsAllocated) > 8 else element.VR, data)


def _without_spare_bits(data: bytes, old: Any) -> bytes:
    import numpy as np

    allocated, stored = int(old.BitsAllocated), int(old.BitsStored)
    high = int(old.get("HighBit", stored - 1))
    bits = allocated * int(old.Rows) * int(old.Columns) * int(old.get("NumberOfFrames", 1) or 1)
    length = -(-bits // 8)
    data = data[:length]
    if allocated in (8, 16, 32) and stored < allocated and len(data) == length:
        # Overlays once lived in the bits beside a pixel's; readers ignore them or should.
        order = "<" if old.original_encoding[1] is not False else ">"
        words = np.frombuffer(data, f"{order}u{allocated // 8}")
        mask = ((1 << stored) - 1) << (high - stored + 1)
        data = (words & words.dtype.type(mask)).tobytes()
    return data + b"\0" * (len(data) % 2)


def _without_comments(data: bytes, old: Any) -> bytes:
    """Return encapsulated frames without JPEG's comments and application segments, which can hold any text."""
    from pydicom.encaps import encapsulate, generate_frames

    frames = int(old.get("NumberOfFrames", 1) or 1)
    table = old.get("ExtendedOffsetTable"), old.get("ExtendedOffsetTableLengths")
    offsets = (table[0], table[1]) if None not in table else None
    found = [
        bare(frame) for frame in generate_frames(data, number_of_frames=frames, extended_offsets=offsets)
    ]
    return encapsulate(found, has_bot=len(found) > 1)


# What a decoder needs: JFIF and Adobe say the colour model, APP8 is JPEG-LS's.
_KEPT_APPS = (0xE0, 0xE8, 0xEE)


def bare(frame: bytes) -> bytes:
    """Return one JPEG, JPEG-LS or JPEG 2000 codestream without comments; anything else as it is."""
    if frame[:2] == b"\xff\xd8":
        return _bare_segments(frame, 0xDA, lambda m: m == 0xFE or (0xE0 <= m <= 0xEF and m not in _KEPT_APPS))
    if frame[:4] == b"\xff\x4f\xff\x51":
        return _bare_segments(frame, 0x90, lambda marker: marker == 0x64)
    return frame


def _bare_segments(frame: bytes, last: int, spare: Callable[[int], bool]) -> bytes:
    kept, at = [frame[:2]], 2
    while at + 4 <= len(frame) and frame[at] == 0xFF and frame[at + 1] != last:
        end = at + 2 + int.from_bytes(frame[at + 2 : at + 4], "big")
        if not spare(frame[at + 1]):
            kept.append(frame[at:end])
        at = end
    # Behind the end of the image there is room for anything, too.
    stop = frame.rfind(b"\xff\xd9")
    tail = frame[at : stop + 2] if stop > at else frame[at:]
    kept.append(tail + b"\0" * ((sum(map(len, kept)) + len(tail)) % 2))
    return b"".join(kept)


def _meta(old: Any, clean: Any) -> None:
    """Give the file a new head: nothing of the old preamble and meta header but the encoding's name."""
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import UID, ImplicitVRLittleEndian

    meta = FileMetaDataset()
    known = getattr(old, "file_meta", None)
    syntax = known.get("TransferSyntaxUID") if known is not None else None
    meta.TransferSyntaxUID = syntax if syntax is not None else ImplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = clean.SOPClassUID
    meta.MediaStorageSOPInstanceUID = clean.SOPInstanceUID
    # medfed's own, so that nothing says on which system it ran.
    meta.ImplementationClassUID = UID("2.25.228541094730913170264150190543216034125")
    meta.ImplementationVersionName = "MEDFED"
    clean.file_meta = meta
    clean.preamble = b"\0" * 128

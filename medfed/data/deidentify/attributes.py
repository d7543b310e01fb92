"""De-identified attributes: a new dataset with what the rules allow of an old one."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from typing import Any, Literal

import numpy as np
from pydicom import Dataset
from pydicom import Sequence as Items
from pydicom._uid_dict import UID_dictionary
from pydicom.datadict import dictionary_VR
from pydicom.dataset import FileMetaDataset
from pydicom.sr import _concepts_dict
from pydicom.uid import UID, ImplicitVRLittleEndian

from medfed.data.deidentify import rules
from medfed.data.deidentify.labels import CODE_DIGITS, clean_label
from medfed.data.deidentify.pixels import copy_pixels
from medfed.data.deidentify.secret import SiteSecret
from medfed.data.preflight.case import MANUFACTURERS


@dataclass(frozen=True, slots=True)
class Options:
    """What is kept beyond the Basic Profile.

    Attributes:
        dates: 'shift' all dates of a patient by one secret number of days and seconds, or 'remove' them.
        descriptors: 'clean' descriptions and labels down to a vocabulary of imaging, or 'remove' them.
        device: 'keep' the names and numbers of devices, or 'remove' them.
    """

    dates: Literal["shift", "remove"] = "shift"
    descriptors: Literal["clean", "remove"] = "clean"
    device: Literal["keep", "remove"] = "remove"


def clean_dataset(dataset: Any, secret: SiteSecret, options: Options) -> Any:
    """Return a new dataset with what may stay of another; none of its bytes are reused."""
    patient = _patient_key(dataset)
    rewrite = _Rewrite(secret, options, secret.shift(patient))
    clean = rewrite.dataset(dataset)
    for tag in rules.EMPTIED:
        if tag not in clean:
            clean.add_new(tag, _vr(tag), None)
    clean.PatientName = clean.PatientID = f"P{secret.code('patient', patient)}"
    clean.Manufacturer = rewrite.manufacturer(dataset)
    _record_method(clean, options)
    _copy_b_value(dataset, clean)
    copy_pixels(dataset, clean)
    _write_meta(dataset, clean)
    return clean


def _patient_key(dataset: Any) -> str:
    """Return what identifies the patient: the ID, or else the name, or else what a series' images share."""

    def text(*names: str) -> str:
        return "/".join(str(dataset.get(name, "") or "").strip() for name in names)

    if text("PatientID"):
        return text("PatientID", "IssuerOfPatientID")
    if text("PatientName"):
        return f"name {text('PatientName', 'PatientBirthDate').lower()}"
    # Not the study UID: some writers invent one per slice.
    return f"series {text('FrameOfReferenceUID') or text('SeriesInstanceUID')}"


def _vr(tag: int) -> str:
    return str(dictionary_VR(tag))


@dataclass(frozen=True, slots=True, repr=False)
class _Rewrite:
    """Applies the rules to one object."""

    secret: SiteSecret
    options: Options
    shift: timedelta

    def dataset(self, old: Any) -> Any:
        new = Dataset()
        for tag in list(old.keys()):
            if not tag.is_private and tag.group not in (0x0002, 0x0010):
                self._element(old, new, int(tag))
        self._dates(old, new)
        return new

    def _element(self, old: Any, new: Any, tag: int) -> None:
        if tag in rules.SEQUENCES:
            self._sequence(old, new, tag)
        elif tag in rules.CODES:
            known = rules.CODES[tag]
            self._put(new, tag, _each(old[tag].value, lambda word: word if word in known else None))
        elif tag in rules.NUMBERS:
            self._put(new, tag, _numbers(old[tag].value), old[tag].VR)
        elif tag in rules.UIDS:
            self._put(new, tag, _each(old[tag].value, self.uid))
        elif tag in rules.IMAGE_TYPE_TAGS:
            self._put(new, tag, _each(old[tag].value, self._image_type))
        elif tag in rules.LABELS:
            self._put(new, tag, self._label(str(old[tag].value or "")) or self._numbered(old))
        elif tag in rules.DESCRIPTORS and self.options.descriptors == "clean":
            if text := clean_words(str(old[tag].value or "")):
                self._put(new, tag, text)
        elif tag in rules.DEVICE and self.options.device == "keep":
            self._put(new, tag, old[tag].value)
        elif tag in rules.PSEUDONYMISED:
            self._put(new, tag, _each(old[tag].value, lambda word: self._code(f"{tag:08x}", word)))

    def _put(self, new: Any, tag: int, value: Any, vr: str = "") -> None:
        if value is not None and value != []:
            # Where the dictionary leaves a choice (US or SS), the file decides.
            known = _vr(tag)
            new.add_new(tag, known if " or " not in known else (vr or known.split(" ")[0]), value)

    def _sequence(self, old: Any, new: Any, tag: int) -> None:
        items = old[tag].value if old[tag].VR == "SQ" else []
        clean = [known_code(item) if tag in rules.CODE_SEQUENCES else self.dataset(item) for item in items]
        new.add_new(tag, "SQ", Items([item for item in clean if item is not None]))

    def uid(self, old: str) -> str | None:
        old = str(old).strip()
        return (old if old in UID_dictionary else self.secret.uid(old)) if old else None

    def _image_type(self, word: str) -> str | None:
        return word if word in rules.IMAGE_TYPES or not word else self._code("image type", word)

    def _code(self, purpose: str, word: str) -> str | None:
        return f"X{self.secret.code(purpose, word)}" if word else None

    def _label(self, name: str) -> str:
        """Return a structure's name in known words, or, with `descriptors: remove`, as a code."""
        code = self.secret.code
        if self.options.descriptors == "clean":
            return clean_label(name, lambda words: code("label", words))
        return f"roi {code('label', name.strip().lower())[:CODE_DIGITS].lower()}" if name.strip() else ""

    def _numbered(self, old: Any) -> str:
        number = old.get("SegmentNumber", old.get("ROINumber", old.get("ObservationNumber", "")))
        return f"roi {int(number)}" if number not in (None, "") else "roi"

    def manufacturer(self, old: Any) -> str:
        """Return the manufacturer as a known word, or empty; with `device: keep` the original."""
        word = str(old.get("Manufacturer", "") or "")
        if self.options.device == "keep":
            return word
        return next((name for key, name in MANUFACTURERS.items() if key in word.lower()), "")

    def _dates(self, old: Any, new: Any) -> None:
        if self.options.dates != "shift":
            return
        for day, clock in rules.DATES.items():
            if day not in old:
                continue
            moved = shift_date(_text(old, day), _text(old, clock) if clock in old else "", self.shift)
            if moved is not None:
                new.add_new(day, "DA", moved[0])
                if moved[1]:
                    new.add_new(clock, "TM", moved[1])
        for tag in rules.DATETIMES:
            text = re.sub(r"[+-]\d{4}$", "", _text(old, tag)) if tag in old else ""
            moved = shift_date(text[:8], text[8:], self.shift)
            if moved is not None:
                new.add_new(tag, "DT", "".join(moved))


def _text(old: Any, tag: int) -> str:
    return str(old[tag].value or "").strip()


def shift_date(day: str, clock: str, shift: timedelta) -> tuple[str, str] | None:
    """Return a shifted date and time, or None for an invalid date; without a time only days are shifted."""
    parts = re.fullmatch(r"(\d{2})(\d{2})?(\d{2})?(?:\.(\d{1,6}))?", clock) if clock else None
    if not re.fullmatch(r"\d{8}", day):
        return None
    try:
        then = datetime.strptime(day, "%Y%m%d")
        if parts is None:
            return f"{then + timedelta(days=shift.days):%Y%m%d}", ""
        hour, minute, second = (int(part or 0) for part in parts.groups()[:3])
        micro = int((parts[4] or "0").ljust(6, "0"))
        then = then.replace(hour=hour, minute=minute, second=min(second, 59), microsecond=micro) + shift
    except (ValueError, OverflowError):
        return None
    return f"{then:%Y%m%d}", f"{then:%H%M%S.%f}"


def _values(value: Any) -> list[Any]:
    several = isinstance(value, list | tuple) or type(value).__name__ == "MultiValue"
    return list(value) if several else [value]


def _each(value: Any, change: Callable[[str], str | None]) -> Any:
    """Return a value or a list of values, each changed; None if none is left."""
    changed = [new for one in _values(value) if one is not None and (new := change(str(one))) is not None]
    return None if not changed else changed[0] if len(changed) == 1 else changed


def _numbers(value: Any) -> Any:
    """Return a value if it consists of numbers or is the binary content of a table, or else None."""
    if isinstance(value, bytes | bytearray):
        return bytes(value)
    try:
        finite = [bool(np.isfinite(float(one))) for one in _values(value)]
    except (TypeError, ValueError):  # also of an empty text or None
        return None
    return value if finite and all(finite) else None


def clean_words(text: str) -> str:
    """Return the words of a description that are in the vocabulary of imaging, in lower case."""
    words = re.findall(r"[a-z0-9]+", text.lower())
    return " ".join(word for word in words if word in rules.WORDS or re.fullmatch(r"\d{1,3}", word))[:64]


def known_code(item: Any) -> Any:
    """Return a coded concept with the standard's own meaning, or None if it is not in the standard."""
    return _concept(str(item.get("CodingSchemeDesignator", "")), str(item.get("CodeValue", "")))


def _concept(scheme: str, value: str) -> Any:
    meaning = _meanings().get((scheme, value))
    if meaning is None:
        return None
    new = Dataset()
    new.CodeValue, new.CodingSchemeDesignator, new.CodeMeaning = value, scheme, meaning[:64]
    return new


@cache
def _meanings() -> dict[tuple[str, str], str]:
    concepts: dict[str, Any] = dict(_concepts_dict.concepts)
    return {
        (scheme, value): meaning
        for scheme, by_keyword in concepts.items()
        for by_value in by_keyword.values()
        for value, (meaning, _) in by_value.items()
    }


def _record_method(clean: Any, options: Options) -> None:
    """Record in the dataset how it was de-identified, in the codes of PS3.16 CID 7050."""
    methods = {
        "113100": True,  # Basic Application Confidentiality Profile
        "113105": options.descriptors == "clean",
        "113107": options.dates == "shift",
        "113109": options.device == "keep",
    }
    clean.PatientIdentityRemoved = "YES"
    clean.DeidentificationMethod = "medfed: PS3.15 Basic Profile by an allow-list"
    clean.DeidentificationMethodCodeSequence = Items(
        _concept("DCM", code) for code, applied in methods.items() if applied
    )
    clean.LongitudinalTemporalInformationModified = "MODIFIED" if options.dates == "shift" else "REMOVED"


# Private b-values: the block's owner, the value's element, and the element that names the owner.
_B_VALUES = (
    ("SIEMENS MR HEADER", (0x0019, 0x100C), (0x0019, 0x0010)),
    ("Philips Imaging DD 001", (0x2001, 0x1003), (0x2001, 0x0010)),
    ("GEMS_PARM_01", (0x0043, 0x1039), (0x0043, 0x0010)),
)


def _copy_b_value(old: Any, clean: Any) -> None:
    """Copy a private b-value to the public attribute; without it the volumes of a diffusion series mix."""
    if "DiffusionBValue" in clean:
        return
    for owner, element, block in _B_VALUES:
        if element in old and block in old and str(old[block].value).strip() == owner:
            value = _b_value(old[element].value)
            if value is not None:
                clean.DiffusionBValue = value


def _b_value(value: Any) -> float | None:
    """Return the b-value in s/mm^2, the first of several values; GE marks it by adding 1e9."""
    if isinstance(value, bytes):
        if len(value) == 4 and not re.fullmatch(rb"[\d \0]+", value):  # Philips' float, whose type was lost
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


def _write_meta(old: Any, clean: Any) -> None:
    """Give the file a new meta header, with only the transfer syntax of the old one."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = old.file_meta.get("TransferSyntaxUID", ImplicitVRLittleEndian)
    meta.MediaStorageSOPClassUID = clean.SOPClassUID
    meta.MediaStorageSOPInstanceUID = clean.SOPInstanceUID
    # medfed's own, so that nothing reveals the system on which it ran.
    meta.ImplementationClassUID = UID("2.25.228541094730913170264150190543216034125")
    meta.ImplementationVersionName = "MEDFED"
    clean.file_meta = meta
    clean.preamble = b"\0" * 128

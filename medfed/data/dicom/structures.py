"""The structures that a DICOM segmentation or structure set describes, by number, name and code.

Only the header is read. Names are the hospital's own: they are compared and listed for the hospital, and no
message quotes one.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from medfed.data.class_names import Structure
from medfed.data.dicom import tags
from medfed.data.dicom.elements import Elements
from medfed.data.dicom.file import DicomFile, open_dicom
from medfed.data.walk import files_below
from medfed.errors import LabelError

MODALITIES = (b"SEG", b"RTSTRUCT")
# A sequence without an item consists of its delimiter at most.
EMPTY_SEQUENCE_BYTES = 8


def find_label_object(path: str | os.PathLike[str]) -> DicomFile | None:
    """Return the only segmentation or structure set at a path, or None if there is none: an image of numbers.

    Raises:
        LabelError: if a folder holds several.
    """
    path = Path(path)
    paths = files_below(path) if path.is_dir() else [path]
    opened = (file for one in paths if one.is_file() and (file := open_dicom(str(one))) is not None)
    objects = [file for file in opened if file.elements.text(tags.MODALITY) in MODALITIES]
    if len(objects) > 1:
        raise LabelError(
            f"the folder holds {len(objects)} segmentations or structure sets; name the file of one"
        )
    return objects[0] if objects else None


def structures_of(file: DicomFile) -> tuple[Structure, ...]:
    """Return the structures that a segmentation or structure set describes, in the file's order."""
    header = file.elements
    if header.text(tags.MODALITY) == b"RTSTRUCT":
        drawn = {
            item.count(tags.REFERENCED_ROI) for item in header.items(tags.ROI_CONTOURS) if _is_drawn(item)
        }
        rois = ((item.count(tags.ROI_NUMBER), item) for item in header.items(tags.ROIS))
        return tuple(
            Structure(number, decode(item.text(tags.ROI_NAME), header), empty=number not in drawn)
            for number, item in rois
            if number is not None
        )
    segments = ((item.integer(tags.SEGMENT_NUMBER), item) for item in header.items(tags.SEGMENTS))
    return tuple(
        Structure(
            number,
            decode(item.text(tags.SEGMENT_LABEL), header),
            decode(item.first(tags.PROPERTY_TYPE).text(tags.CODE_MEANING), header),
        )
        for number, item in segments
        if number is not None
    )


def _is_drawn(contours: Elements) -> bool:
    # By its length: parsing every contour takes seconds.
    return len(contours.raw(tags.CONTOURS)) > EMPTY_SEQUENCE_BYTES


def decode(text: bytes, header: Elements) -> str:
    """Return a header's text by the character set that the header names."""
    from pydicom.charset import convert_encodings, decode_bytes

    from medfed.data.dicom.suppress_logs import suppress_dicom_logs

    names = [part.decode("ascii", "replace") for part in header.texts(tags.CHARACTER_SET)]
    if not names:
        # Many writers of UTF-8 forget to say so, and no other text with bytes above 127 is UTF-8 by chance.
        with suppress(UnicodeDecodeError):
            return text.decode("utf-8").strip()
    with suppress_dicom_logs():
        try:
            return decode_bytes(text, convert_encodings(names or [""]), set(b"\\^=")).strip()
        except (LookupError, UnicodeError):
            return text.decode("utf-8", "replace").strip()

"""Why a case cannot be used, as types of refusal, and the fixed words that may be told about it elsewhere.

`reason_of` gives each refusal one of `REASONS`: a report or a round counts cases by these words, which hold
nothing of a hospital. To tell a new reason apart, add a type and its line in `REASONS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from medfed.errors import DataError, ImageError, LabelError, MedfedError

Refusal = TypeVar("Refusal", bound=MedfedError)


class MissingImageError(ImageError):
    """A case's image is not where its table or folder says."""


class MissingLabelError(LabelError):
    """A case's label is not where its table or folder says."""


class EmptyFileError(ImageError):
    """A file has no bytes: most likely a copy was interrupted."""


class SeveralFilesError(ImageError):
    """A folder holds several files for one image of a case."""


class SeveralLabelsError(LabelError):
    """A folder holds several labels for one case."""


class GeometryError(ImageError):
    """A header gives the voxels an impossible or contradictory place in the patient."""


class SeveralVolumesError(ImageError):
    """A path that is one case's image holds several volumes."""


class ChannelGridError(ImageError):
    """The channels of one case are on different grids."""


class ChannelCountError(ImageError):
    """An image has another number of channels than the study asks for."""


class UnsuitableSizeError(ImageError):
    """A whole image has a size that the study's network cannot learn from."""


class LabelGridError(LabelError):
    """A label is on another grid than its image."""


class LabelClassesError(LabelError):
    """A label holds values that are not classes."""


class OtherPatientError(LabelError):
    """A label says that it is of another patient than its image."""


class TableRowError(DataError):
    """A case's row in the table beside the images cannot be read."""


class MissingRowError(TableRowError):
    """The table beside the images has no row for a case."""


class SeveralRowsError(TableRowError):
    """The table beside the images has several rows for a case."""


class OtherPatientRowError(TableRowError):
    """A case's row in the table beside the images says that it is of another patient."""


# The words for each type, the more special types first.
REASONS: Mapping[type[MedfedError], str] = {
    MissingImageError: "image missing",
    MissingLabelError: "label missing",
    EmptyFileError: "empty file",
    SeveralFilesError: "several files for one image",
    SeveralLabelsError: "several labels",
    GeometryError: "impossible geometry",
    SeveralVolumesError: "several volumes",
    ChannelGridError: "channels on different grids",
    ChannelCountError: "other number of channels",
    UnsuitableSizeError: "size that the network cannot take",
    LabelGridError: "label on another grid",
    LabelClassesError: "label without classes of the study",
    OtherPatientError: "label of another patient",
    LabelError: "label unreadable",
    MissingRowError: "no row in the table",
    SeveralRowsError: "several rows in the table",
    OtherPatientRowError: "table row of another patient",
    TableRowError: "table row unreadable",
    MedfedError: "image unreadable",
}


def reason_of(error: MedfedError) -> str:
    """Return the fixed words for a refusal of a case, one of `REASONS`."""
    return next(words for kind, words in REASONS.items() if isinstance(error, kind))


def of_case(error: Refusal, token: str) -> Refusal:
    """Return a refusal of the same type that names its case."""
    return type(error)(f"case {token}: {error}")

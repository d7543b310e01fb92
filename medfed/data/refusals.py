"""Refusals of images and labels that the preflight reports separately, each with its own cure."""

from __future__ import annotations

from medfed.errors import ImageError, LabelError


class EmptyFileError(ImageError):
    """A file has no bytes: most likely a copy was interrupted."""


class GeometryError(ImageError):
    """A header gives the voxels an impossible or contradictory place in the patient."""


class SeveralVolumesError(ImageError):
    """A path that is one case's image holds several volumes."""


class ChannelGridError(ImageError):
    """The channels of one case are on different grids."""


class LabelGridError(LabelError):
    """A label is on another grid than its image."""


class LabelClassesError(LabelError):
    """A label holds values that are not classes."""

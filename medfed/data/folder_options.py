"""What a person says of a folder before there is a study: its layout, and how its images are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from medfed.data.layouts import Layout
from medfed.data.reading import Reading
from medfed.errors import StudyError

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_READING = Reading()
# The keys of a study's `data` that decide whether a folder's images can be read at all.
KEYS = ("read", "resample_labels", "resample_channels")


class _Keys(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    read: Reading = Reading()
    resample_labels: bool = False
    resample_channels: bool = False


@dataclass(frozen=True, slots=True)
class FolderOptions:
    """How to read a folder without a study; the keys are those of a study's `data`.

    given: the keys that were said, as a study file has them.
    """

    layout: Layout | None = None
    read: Reading = DEFAULT_READING
    resample_labels: bool = False
    resample_channels: bool = False
    given: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def of(cls, layout: Layout | None, plain: Mapping[str, Any]) -> FolderOptions:
        """Return the options of a layout and of keys below a study's `data`.

        Raises:
            StudyError: for another key, or a value that it cannot have.
        """
        unknown = sorted(set(plain) - set(KEYS))
        if unknown:
            raise StudyError(
                f"--set: data.{unknown[0]} does not decide how a folder is read; there are "
                f"{', '.join(f'data.{key}' for key in KEYS)}; change others in the study that is written"
            )
        try:
            keys = msgspec.convert(dict(plain), _Keys)
        except msgspec.ValidationError as error:
            raise StudyError(f"--set: data: {error}") from None
        return cls(layout, keys.read, keys.resample_labels, keys.resample_channels, tuple(plain.items()))

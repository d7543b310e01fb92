"""Which series of a study are a case's channels, where a study (an examination) holds several."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatch
from typing import Literal

import msgspec

from medfed.data.dicom.listing_header import ListingHeader
from medfed.data.dicom.patients import Key
from medfed.data.dicom.weighting import WEIGHTINGS
from medfed.errors import DataError


class SeriesChoice(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One channel: the series of each study that has all the properties given.

    name: what the channel is called, such as `flair`.  description: patterns of SeriesDescription with `*`
    and `?`, in any case; one must match.  modality: such as CT, MR or PT.  weighting: of MR, read from the
    description or the echo, repetition and inversion times; see data/dicom/weighting.py.  several: what to do
    with a study in which several series fit: leave it out, or take the one with the most slices.
    """

    name: str
    description: tuple[str, ...] = ()
    modality: str | None = None
    weighting: str | None = None
    several: Literal["leave_out", "most_slices"] = "leave_out"

    def __post_init__(self) -> None:
        if not (self.description or self.modality or self.weighting):
            raise DataError(
                f"layout.series: '{self.name}' says nothing of its series; give description, modality or "
                "weighting"
            )
        if self.weighting is not None and self.weighting not in WEIGHTINGS:
            raise DataError(
                f"layout.series: weighting is '{self.weighting}'; expected one of {', '.join(WEIGHTINGS)}"
            )

    def fits(self, header: ListingHeader) -> bool:
        """Whether a series has all the properties."""
        text = header.description.lower()
        return (
            (not self.description or any(fnmatch(text, pattern.lower()) for pattern in self.description))
            and self.modality in (None, header.modality)
            and self.weighting in (None, header.weighting)
        )


def choose_series(
    studies: Mapping[str, Sequence[Key]],
    series: Mapping[Key, Sequence[ListingHeader]],
    choices: Sequence[SeriesChoice],
) -> tuple[list[tuple[Key, ...]], list[str]]:
    """Return, per study that has all channels, its series in the order of `choices`; and notes to print.

    `studies` are the series of each study.
    """
    chosen: list[tuple[Key, ...]] = []
    lacking = dict.fromkeys((choice.name for choice in choices), 0)
    unclear = dict(lacking)
    for keys in studies.values():
        channels = []
        for choice in choices:
            fitting = [key for key in keys if choice.fits(series[key][0])]
            if len(fitting) > 1 and choice.several == "most_slices":
                fitting = _most_slices(fitting, lambda key: sum(one.slices for one in series[key]))
            lacking[choice.name] += not fitting
            unclear[choice.name] += len(fitting) > 1
            channels += fitting if len(fitting) == 1 else []
        if len(channels) == len(set(channels)) == len(choices):
            chosen.append(tuple(channels))
    notes = [f"{count} studies have no series for '{name}'" for name, count in lacking.items() if count]
    notes += [
        f"{count} studies have several series for '{name}'; narrow it, or give `several: most_slices`"
        for name, count in unclear.items()
        if count
    ]
    left_out = len(studies) - len(chosen)
    notes += [f"{left_out} of {len(studies)} studies are left out"] if left_out else []
    return chosen, notes


def _most_slices(keys: Sequence[Key], slices: Callable[[Key], int]) -> list[Key]:
    """Return the series with the most slices; all that have as many."""
    most = max(map(slices, keys))
    return [key for key in keys if slices(key) == most]

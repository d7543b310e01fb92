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
    description or the echo, repetition and inversion times; see data/dicom/weighting.py.  echo_ms,
    repetition_ms: the lowest and the highest EchoTime and RepetitionTime, for series that no description
    tells apart; those of all images of a series must lie between them. The echoes of a multi-echo series, or
    of one enhanced object, are chosen like series.  several: what to do with a study in
    which several series fit: leave it out, or take the one with the most slices.
    """

    name: str
    description: tuple[str, ...] = ()
    modality: str | None = None
    weighting: str | None = None
    echo_ms: tuple[float, float] | None = None
    repetition_ms: tuple[float, float] | None = None
    several: Literal["leave_out", "most_slices"] = "leave_out"

    def __post_init__(self) -> None:
        if not (self.description or self.modality or self.weighting or self.echo_ms or self.repetition_ms):
            raise DataError(
                f"layout.series: '{self.name}' says nothing of its series; give description, modality, "
                "weighting, echo_ms or repetition_ms"
            )
        for key, times in (("echo_ms", self.echo_ms), ("repetition_ms", self.repetition_ms)):
            if times is not None and not 0 <= times[0] <= times[1]:
                raise DataError(
                    f"layout.series: {key} of '{self.name}' is {list(times)}; give the lowest and the "
                    "highest time in milliseconds, such as [60, 120]"
                )
        if self.weighting is not None and self.weighting not in WEIGHTINGS:
            raise DataError(
                f"layout.series: weighting is '{self.weighting}'; expected one of {', '.join(WEIGHTINGS)}"
            )

    def fits(self, members: Sequence[ListingHeader]) -> bool:
        """Whether a series, by the headers of its files, has all the properties."""
        first = members[0]
        text = first.description.lower()
        return (
            (not self.description or any(fnmatch(text, pattern.lower()) for pattern in self.description))
            and self.modality in (None, first.modality)
            and self.weighting in (None, first.weighting)
            and all(_within(one.echo_ms, self.echo_ms) for one in members)
            and all(_within(one.repetition_ms, self.repetition_ms) for one in members)
        )


def _within(time_ms: float, limits: tuple[float, float] | None) -> bool:
    """Whether a time that a header states lies between limits; 0 is no time."""
    return limits is None or (time_ms > 0 and limits[0] <= time_ms <= limits[1])


def choose_series(
    studies: Mapping[str, Sequence[Key]],
    series: Mapping[Key, Sequence[ListingHeader]],
    choices: Sequence[SeriesChoice],
) -> tuple[list[tuple[Key | None, ...]], list[str]]:
    """Return, per study, its series in the order of `choices`, None for one that it lacks; notes to print.

    A study that has some of the channels is a case that is refused when it is read. One that has none is of
    another kind, and one with several series for a channel is left out. `studies` are the series of each.
    """
    chosen: list[tuple[Key | None, ...]] = []
    lacking = dict.fromkeys((choice.name for choice in choices), 0)
    unclear = dict(lacking)
    for keys in studies.values():
        fitting = [_fitting(keys, series, choice) for choice in choices]
        for choice, found in zip(choices, fitting, strict=True):
            unclear[choice.name] += len(found) > 1
        own = [found[0] for found in fitting if len(found) == 1]
        if own and len(own) == len(set(own)) and all(len(found) < 2 for found in fitting):
            chosen.append(tuple(found[0] if found else None for found in fitting))
            for choice, found in zip(choices, fitting, strict=True):
                lacking[choice.name] += not found
    notes = [
        f"{count} studies have no series for '{name}' and one for another channel: each is a case that is "
        "refused; restore it, or narrow the choice"
        for name, count in lacking.items()
        if count
    ]
    notes += [
        f"{count} studies have several series for '{name}'; narrow it, or give `several: most_slices`"
        for name, count in unclear.items()
        if count
    ]
    left_out = len(studies) - len(chosen)
    notes += [f"{left_out} of {len(studies)} studies are left out"] if left_out else []
    return chosen, notes


def _fitting(
    keys: Sequence[Key], series: Mapping[Key, Sequence[ListingHeader]], choice: SeriesChoice
) -> list[Key]:
    """Return the series of a study that a choice fits; the longest if it says so."""
    fitting = [key for key in keys if choice.fits(series[key])]
    if len(fitting) > 1 and choice.several == "most_slices":
        return _most_slices(fitting, lambda key: sum(one.slices for one in series[key]))
    return fitting


def _most_slices(keys: Sequence[Key], slices: Callable[[Key], int]) -> list[Key]:
    """Return the series with the most slices; all that have as many."""
    most = max(map(slices, keys))
    return [key for key in keys if slices(key) == most]

"""The weighting of an MR series: by the words of its description, else by its echo, repetition and inversion
times.

The times are those of spin echo and inversion recovery at 1.5 and 3 T as textbooks give them (for example
McRobbie et al., MRI from Picture to Proton, ch. 3); between them nothing is claimed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

from medfed.data.dicom import tags
from medfed.data.dicom.elements import EMPTY, Elements, functional_groups
from medfed.errors import ImageError

WEIGHTINGS = ("t1", "t1c", "t2", "flair", "pd", "t2star", "dwi", "adc")
_ECHO, _REPETITION, _INVERSION, _CONTRAST = 0x00180081, 0x00180080, 0x00180082, 0x00180010
_INVERSIONS = 0x00189079
# Short echoes do not show T2, long ones do; short repetitions show T1, long ones do not (milliseconds).
SHORT_ECHO_MS, LONG_ECHO_MS = 30.0, 70.0
SHORT_REPETITION_MS, LONG_REPETITION_MS = 1000.0, 2000.0
# Fluid is nulled at about 2500 ms; fat (STIR) at about 200 ms.
FLUID_INVERSION_MS = 1500.0
# Words that name a weighting; the first that matches decides.
_WORDS = (
    ("adc", r"\b(e?adc|apparent)\b"),
    ("dwi", r"\b(dwi|diff\w*|dti|trace\w*)\b"),
    ("flair", r"flair|dark.?fluid"),
    ("t2star", r"t2[ _-]?(\*|star)|\bswi\b|\bhemo\b"),
    ("t1c", r"\bt1\w*\b.*(\b(gd|gad\w*|c|ce|km|post|contrast)\b|\+)|\bt1(c|ce|gd|km)\b"),
    ("t1", r"\bt1|mp-?rage|\bt1w"),
    ("t2", r"\bt2"),
    ("pd", r"\bpd|proton"),
)


def weighting(header: Elements) -> str:
    """Return one of WEIGHTINGS, or '' if neither the description nor the times say which."""
    words = header.text(tags.SERIES_DESCRIPTION) + b" " + header.text(tags.PROTOCOL)
    text = re.sub(r"[_.]", " ", words.decode("latin-1").lower())
    named = next((name for name, pattern in _WORDS if re.search(pattern, text)), "")
    if not named:
        named = _by_times(header)
    return "t1c" if named == "t1" and header.text(_CONTRAST) else named


def echo_and_repetition_ms(header: Elements) -> tuple[float, float]:
    """Return the echo and repetition times of an MR image, each 0 if the header does not say."""
    if tags.PER_FRAME not in header:
        return _milliseconds(header, _ECHO), _milliseconds(header, _REPETITION)
    group = _first_frame(header)
    echo_ms = _milliseconds(group(tags.MR_ECHO), tags.EFFECTIVE_ECHO_TIME)
    return rounded_ms(echo_ms) or 0.0, _milliseconds(group(tags.MR_TIMING), _REPETITION)


def rounded_ms(value: float | None) -> float | None:
    """Return a time to the microsecond, to which echo times repeat; further digits are rounding of floats."""
    return None if value is None else round(value, 3)


def echoes_ms(header: Elements) -> Counter[float]:
    """Return how many frames of an enhanced object have each echo time; empty for any other object."""
    shared = header.first(tags.SHARED)
    times: Counter[float] = Counter()
    for own in header.items(tags.PER_FRAME):
        group = functional_groups(own, shared)
        times[rounded_ms(_milliseconds(group(tags.MR_ECHO), tags.EFFECTIVE_ECHO_TIME)) or 0.0] += 1
    return times


def _first_frame(header: Elements) -> Callable[[int], Elements]:
    frames = header.items(tags.PER_FRAME)
    return functional_groups(frames[0] if frames else EMPTY, header.first(tags.SHARED))


def _inversion_ms(header: Elements) -> float:
    if tags.PER_FRAME not in header:
        return _milliseconds(header, _INVERSION)
    with suppress(ImageError):
        times = _first_frame(header)(tags.MR_MODIFIER).numbers(_INVERSIONS)
        return times[0] if times else 0.0
    return 0.0


def _by_times(header: Elements) -> str:
    (echo, repetition), inversion = echo_and_repetition_ms(header), _inversion_ms(header)
    if not echo or not repetition:
        return ""
    if inversion > FLUID_INVERSION_MS and echo >= LONG_ECHO_MS:
        return "flair"
    if echo >= LONG_ECHO_MS and repetition >= LONG_REPETITION_MS:
        return "t2"
    if echo <= SHORT_ECHO_MS and repetition <= SHORT_REPETITION_MS:
        return "t1"
    return "pd" if echo <= SHORT_ECHO_MS and repetition >= LONG_REPETITION_MS and not inversion else ""


def _milliseconds(header: Elements, tag: int) -> float:
    with suppress(ImageError):
        return header.number(tag) or 0.0
    return 0.0

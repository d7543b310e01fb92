"""Standardised uptake values of PET: activity per injected activity and body weight (SUVbw, g/ml).

    SUV = activity (Bq/ml) * weight (g) / (injected dose (Bq) * 2 ** (-decay time / half-life))

The decay time is from the injection to the time that the images were corrected to: the start of the series
(DecayCorrection START), or the injection itself (ADMIN), for which the dose does not decay. This is the
vendor-neutral pseudo-code of the RSNA's QIBA (2011), without its guesses: where an element is missing or
contradictory, the series' time is later than an image's, or injection and scan lie so far apart that one of
their dates is wrong (as after de-identification by shifted dates), nothing is computed.
Images in g/ml (Units GML) are SUV already; of images in counts (CNTS) Philips gives the factor.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime

from medfed.data.dicom.elements import Elements, describe_tag
from medfed.errors import ImageError

UNITS, CORRECTED, DECAY_CORRECTION, SUV_TYPE = 0x00541001, 0x00280051, 0x00541102, 0x00541006
WEIGHT_KG, ISOTOPE = 0x00101030, 0x00540016
START_TIME, START, DOSE_BQ, HALF_LIFE_S = 0x00181072, 0x00181078, 0x00181074, 0x00181075
SERIES_DATE, SERIES_TIME = 0x00080021, 0x00080031
ACQUISITION_DATE, ACQUISITION_TIME = 0x00080022, 0x00080032
TIME_ZONE = 0x00080201
PHILIPS, PHILIPS_SUV = 0x70530010, 0x70531000
REMEDY = "read the stored values, or export the series with it"
# Grown-ups and newborns; another weight is a wrong unit or a placeholder.
MIN_WEIGHT_KG, MAX_WEIGHT_KG = 0.5, 500.0
# After ten half-lives a thousandth of the dose is left, which makes no image: a date is wrong.
MAX_HALF_LIVES = 10.0


def suv_factor(headers: Sequence[Elements]) -> float:
    """Return what the values of a PET series are multiplied by to be SUVbw.

    Raises:
        ImageError: naming the element that is missing or contradictory.
    """
    factors = {_factor(header) for header in headers}
    if len(factors) > 1:
        raise ImageError("the images of a PET series give different doses or weights; export it again")
    first = headers[0]
    if first.text(UNITS) == b"BQML" and first.text(DECAY_CORRECTION) == b"START":
        earliest = min(_moment(header, ACQUISITION_DATE, ACQUISITION_TIME) for header in headers)
        if _moment(first, SERIES_DATE, SERIES_TIME) > earliest:
            raise ImageError(
                "a PET series whose SeriesTime (0008,0031) is later than its first image's, so that the time"
                f" to which its activity is corrected is unknown; {REMEDY}"
            )
    return factors.pop()


def _factor(header: Elements) -> float:
    units = header.text(UNITS)
    if units == b"GML" and header.text(SUV_TYPE) in (b"", b"BW"):
        return 1.0
    if units == b"CNTS" and header.text(PHILIPS).startswith(b"Philips PET"):
        return _positive(header, PHILIPS_SUV)
    if units != b"BQML":
        raise ImageError(
            f"PET values whose {describe_tag(UNITS)} are not BQML, GML or Philips' CNTS; {REMEDY}"
        )
    if not {b"ATTN", b"DECY"} <= set(header.texts(CORRECTED)):
        raise ImageError(
            f"PET values that {describe_tag(CORRECTED)} does not call corrected for attenuation and decay;"
            f" {REMEDY}"
        )
    weight_g = 1000 * _positive(header, WEIGHT_KG)
    if not MIN_WEIGHT_KG <= weight_g / 1000 <= MAX_WEIGHT_KG:
        raise ImageError(f"{describe_tag(WEIGHT_KG)} is no weight in kg; {REMEDY}")
    if len(header.items(ISOTOPE)) > 1:
        raise ImageError(f"a PET series with several items in {describe_tag(ISOTOPE)}; {REMEDY}")
    isotope = header.first(ISOTOPE)
    dose, half_life_s = _positive(isotope, DOSE_BQ), _positive(isotope, HALF_LIFE_S)
    half_lives = _decay_time_s(header, isotope) / half_life_s
    if half_lives > MAX_HALF_LIVES:
        raise ImageError(
            f"the injection and the PET series are {half_lives:.0f} half-lives apart, at most "
            f"{MAX_HALF_LIVES:g} can be: the dates or times of one of them are wrong; {REMEDY}"
        )
    return float(weight_g / (dose * 2**-half_lives))


def _decay_time_s(header: Elements, isotope: Elements) -> float:
    """Return the seconds from the injection to the time that the activity is corrected to."""
    correction = header.text(DECAY_CORRECTION)
    if correction == b"ADMIN":
        return 0.0
    if correction != b"START":
        raise ImageError(f"{describe_tag(DECAY_CORRECTION)} is neither START nor ADMIN; {REMEDY}")
    scan = _moment(header, SERIES_DATE, SERIES_TIME)
    text = isotope.text(START)
    _check_time_zone(text, header, isotope)
    # Without a date the injection was on the day of the series.
    injected = (
        _parsed(text[:8], text[8:], START) if text else _moment(header, SERIES_DATE, START_TIME, isotope)
    )
    seconds = (scan - injected).total_seconds()
    if seconds < 0:
        raise ImageError(f"the injection ({describe_tag(START_TIME)}) is later than the series; {REMEDY}")
    return seconds


def _check_time_zone(text: bytes, header: Elements, isotope: Elements) -> None:
    """Raise if the injection's date and time have an offset from UTC that is not the series' own.

    The series' date and time have none; they are of the header's time zone, or else of the place, as is the
    injection's time without a date.
    """
    offset = re.search(rb"[+-]\d{4}$", text)
    if offset is None or offset.group() == header.text(TIME_ZONE):
        return
    if header.text(TIME_ZONE) or text[8:14] != isotope.text(START_TIME)[:6]:
        raise ImageError(
            f"{describe_tag(START)} is in another time zone than the series, or the series names none "
            f"({describe_tag(TIME_ZONE)}); {REMEDY}"
        )


def _positive(header: Elements, tag: int) -> float:
    value = header.number(tag)
    if value is None or value <= 0:
        raise ImageError(f"a PET series without {describe_tag(tag)}, which SUV needs; {REMEDY}")
    return value


def _moment(header: Elements, day: int, clock: int, of_clock: Elements | None = None) -> datetime:
    return _parsed(header.text(day), (of_clock or header).text(clock), clock)


def _parsed(day: bytes, clock: bytes, tag: int) -> datetime:
    digits, _, fraction = clock.split(b"+")[0].split(b"-")[0].partition(b".")
    try:
        if len(day) != 8 or len(digits) != 6:
            raise ValueError
        moment = datetime.strptime((day + digits).decode("ascii"), "%Y%m%d%H%M%S")
        return moment.replace(microsecond=int(fraction.ljust(6, b"0")[:6] or b"0"))
    except ValueError:
        raise ImageError(
            f"a PET series without a date and {describe_tag(tag)}, which SUV needs; {REMEDY}"
        ) from None

"""Pseudonyms, UIDs and date shifts: derived by HMAC-SHA-256, each for its own purpose."""

from __future__ import annotations

import hashlib
import hmac
import re
import uuid
from datetime import timedelta

from medfed.data.deidentify.secret import MAX_SHIFT_DAYS, SiteSecret

KEY = b"0123456789abcdef"
SECRET = SiteSecret(KEY)


def digest_of(purpose: str, text: str) -> bytes:
    return hmac.new(KEY, f"medfed/deidentify/{purpose}/{text}".encode(), hashlib.sha256).digest()


def test_a_code_is_the_beginning_of_the_digest_for_its_purpose() -> None:
    assert SECRET.bytes("patient", "Meier") == digest_of("patient", "Meier")
    assert SECRET.code("patient", "Meier") == digest_of("patient", "Meier").hex()[:12].upper()
    assert SECRET.code("study", "Meier") != SECRET.code("patient", "Meier")
    assert SiteSecret(b"another site's secret").code("patient", "Meier") != SECRET.code("patient", "Meier")


def test_a_uid_is_a_uuid_under_2_25_that_dicom_can_hold() -> None:
    uid = SECRET.uid("1.2.840.1")
    assert re.fullmatch(r"2\.25\.[1-9]\d*", uid)
    assert len(uid) <= 64
    number = uuid.UUID(int=int(uid.removeprefix("2.25.")))
    assert (number.version, number.variant) == (5, uuid.RFC_4122)
    # All bits but the six of version and variant are the digest's.
    free = ~((0xF << 76) | (0x3 << 62))
    assert number.int & free == int.from_bytes(digest_of("uid", "1.2.840.1")[:16], "big") & free
    assert SECRET.uid("1.2.840.1") == uid != SECRET.uid("1.2.840.2")


def test_dates_move_into_the_past_by_at_most_ten_years_and_a_day() -> None:
    digest = digest_of("dates", "Meier")
    days, seconds = int.from_bytes(digest[:8], "big") % 3650, int.from_bytes(digest[8:16], "big") % 86400
    assert SECRET.shift("Meier") == -timedelta(days=1 + days, seconds=seconds)
    shifts = [SECRET.shift(str(patient)) for patient in range(200)]
    assert all(timedelta(days=-MAX_SHIFT_DAYS - 1) < shift <= timedelta(days=-1) for shift in shifts)
    assert len(set(shifts)) == 200


def test_a_secret_is_not_printed() -> None:
    assert KEY.decode() not in repr(SECRET)

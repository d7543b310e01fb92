"""What a site's secret makes of identifiers: pseudonyms, UIDs and date shifts."""

from __future__ import annotations

import hashlib
import hmac
import uuid
from dataclasses import dataclass
from datetime import timedelta

# Dates move back by up to ten years and a fraction of a day, by the same amount for all dates of a patient.
MAX_SHIFT_DAYS = 3650


@dataclass(frozen=True, slots=True, repr=False)
class SiteSecret:
    """The site's secret, which derives pseudonyms, UIDs and date shifts, each for its own purpose."""

    key: bytes

    def bytes(self, purpose: str, text: str) -> bytes:
        return hmac.new(self.key, f"medfed/deidentify/{purpose}/{text}".encode(), hashlib.sha256).digest()

    def hex(self, purpose: str, text: str) -> str:
        return self.bytes(purpose, text).hex()

    def code(self, purpose: str, text: str) -> str:
        """Return a code of 12 characters that shows only whether two texts are the same."""
        return self.hex(purpose, text)[:12].upper()

    def uid(self, old: str) -> str:
        """Return the UID under 2.25 (PS3.5 B.2) that replaces another."""
        return f"2.25.{uuid.UUID(bytes=self.bytes('uid', old)[:16], version=5).int}"

    def shift(self, patient: str) -> timedelta:
        """Return the shift of a patient's dates, into the past."""
        digest = self.bytes("dates", patient)
        days = 1 + int.from_bytes(digest[:8], "big") % MAX_SHIFT_DAYS
        return timedelta(days=-days, seconds=-(int.from_bytes(digest[8:16], "big") % 86400))

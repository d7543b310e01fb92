"""Check that label and volume belong to the same patient, by keyed digests instead of identifiers.

A patient ID and the UIDs of a series become digests under a random key of this process, which is never
stored. Within the process equal digests mean equal identifiers; outside it they mean nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Iterable, Sequence

_KEY = os.urandom(32)
# Names the process that made a digest, so that digests of two processes are not compared.
_KEY_NAME = hashlib.sha256(b"name" + _KEY).hexdigest()[:8]


def identity_digests(patient: bytes, frames: Iterable[bytes], series: Iterable[bytes]) -> tuple[str, ...]:
    """Return digests of a patient ID, frames of reference and series; empty values have none."""
    named = [("patient", patient), *(("frame", uid) for uid in frames), *(("series", uid) for uid in series)]
    return tuple(f"{_KEY_NAME}:{kind}:{_digest(kind, value)}" for kind, value in named if value)


def _digest(kind: str, value: bytes) -> str:
    return hmac.new(_KEY, kind.encode() + b":" + value, hashlib.sha256).hexdigest()[:24]


def identities_differ(one: Sequence[str], other: Sequence[str], kind: str) -> bool:
    """Whether both name an identity of this kind, made in this process, and share none."""
    prefix = f"{_KEY_NAME}:{kind}:"
    first = {digest for digest in one if digest.startswith(prefix)}
    second = {digest for digest in other if digest.startswith(prefix)}
    return bool(first) and bool(second) and not first & second

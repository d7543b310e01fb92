"""Whether a label belongs to a volume, without either of them saying whose it is.

A patient's number and the UIDs of a series are turned into digests under a key that this process draws at
random and never writes down: within the process equal means equal, outside of it they mean nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Iterable, Sequence

_KEY = os.urandom(32)
# Says which process made a mark, so that marks of two processes are not compared.
_KEY_NAME = hashlib.sha256(b"name" + _KEY).hexdigest()[:8]


def marks(patient: bytes, frames: Iterable[bytes], series: Iterable[bytes]) -> tuple[str, ...]:
    """Return the marks of a patient, of frames of reference and of series; empty values have none."""
    named = [("patient", patient), *(("frame", uid) for uid in frames), *(("series", uid) for uid in series)]
    return tuple(f"{_KEY_NAME}:{kind}:{_digest(kind, value)}" for kind, value in named if value)


def _digest(kind: str, value: bytes) -> str:
    return hmac.new(_KEY, kind.encode() + b":" + value, hashlib.sha256).hexdigest()[:24]


def disagree(one: Sequence[str], other: Sequence[str], kind: str) -> bool:
    """Whether both say something of a kind, in this process, and have nothing of it in common."""
    begin = f"{_KEY_NAME}:{kind}:"
    left = {mark for mark in one if mark.startswith(begin)}
    right = {mark for mark in other if mark.startswith(begin)}
    return bool(left) and bool(right) and not left & right

"""Why a site stops, in the only words that it says to others.

A message of medfed's may hold a number of this hospital ("trains on 12 examples"), another library's a path
or a name. So a site that stops sends one of these fixed words and nothing else; the detail is in its own log.
"""

from __future__ import annotations

from enum import StrEnum

from medfed.errors import (
    DataError,
    EgressError,
    ExchangeError,
    MedfedError,
    PrivacyError,
    RunError,
    StudyError,
    UpdateError,
    WireError,
    place_in_plugin,
)


class DropOut(StrEnum):
    """The reasons for which a site stops before a study's end."""

    POLICY = "this hospital's policy does not allow the study"
    DATA = "this hospital's data cannot be used in the study"
    STUDY = "it cannot run the study, or this hospital no longer approves it"
    PRIVACY = "its privacy mechanism cannot keep its promise here"
    EGRESS = "it was about to send what is not declared to leave"
    UPDATE = "its training gave no valid update"
    HUB = "it refuses what the hub sent"
    EXCHANGE = "its connection failed"
    DISK = "its run folder cannot be read or written"
    ENDED = "its Trainer stopped before the study's last round"
    ERROR = "training stopped with an error"
    UNKNOWN = "for a reason that this version of medfed does not know"


# The most special first: an `EgressError` is an `UpdateError`.
_BY_ERROR: tuple[tuple[type[BaseException], DropOut], ...] = (
    (EgressError, DropOut.EGRESS),
    (UpdateError, DropOut.UPDATE),
    (PrivacyError, DropOut.PRIVACY),
    (DataError, DropOut.DATA),
    (StudyError, DropOut.STUDY),
    (WireError, DropOut.HUB),
    (ExchangeError, DropOut.EXCHANGE),
    (RunError, DropOut.DISK),
    (OSError, DropOut.DISK),
)


def reason_of(error: BaseException) -> DropOut:
    """Return in which of the fixed words a site says that this error stopped it."""
    return next((reason for kind, reason in _BY_ERROR if isinstance(error, kind)), DropOut.ERROR)


def detail_of(error: BaseException) -> str:
    """Return what this hospital's own log says: medfed's message, or the name of another library's error.

    Another library's message can quote a path, a header or a patient; medfed's messages never do.
    """
    if isinstance(error, MedfedError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"training stopped with {type(error).__name__}: {error.strerror}"  # the system's own words
    place = place_in_plugin(error)
    return f"training stopped with {type(error).__name__}{f' ({place})' if place else ''}"


def received_reason(text: str) -> DropOut:
    """Return the fixed words that a site sent; any others are not repeated."""
    return DropOut(text) if text in DropOut.__members__.values() else DropOut.UNKNOWN

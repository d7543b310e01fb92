"""What goes wrong with a connection to the broker, in words for a hospital's engineer."""

from __future__ import annotations

import logging
import os
import ssl

from medfed.wire.signing import Identity, serial_number

NO_STREAM = "the broker has no such stream yet: the hub was not started, or this site is not enrolled there"
LOST = (
    "the broker runs, but did not answer a request, as if it had lost it; the request is sent again (if this "
    "goes on, its log, nats-server.log beside nats.conf, says why: start it again)"
)
DOES_IT_RUN = (
    "does the broker run there (`medfed hub --broker`, or `medfed broker` for one of three), and does every "
    "firewall in between allow that port?"
)


def no_rights(party: str) -> str:
    """Return what a party is told that the broker lets neither read nor write."""
    return (
        f"the broker does not let '{party}' read or write this study: it does not name this site, or the hub "
        "has not admitted it; ask the coordinator (`medfed enrol study`)"
    )


def no_more_stored(party: str, why: str) -> str:
    """Return what a party is told that has stored as much as it may."""
    return (
        f"the broker stores no more for '{party}' ({why}) until the hub clears earlier rounds or the "
        "coordinator gives the broker more disk; the hub's status.json shows what is used (stored_bytes)"
    )


# What a broker's error says, in small letters, if a party may not publish on a subject.
DENIED = "permissions violation for publish"


def explain_refusal(text: str, identity: Identity) -> str:
    """Return a readable explanation of an error if one side rejects the other's certificate, otherwise ""."""
    lower = text.lower()
    if "certificate verify failed" in lower:
        reason = text.partition("certificate verify failed: ")[2].partition(" (_ssl")[0] or text
        if "expired" in lower:
            return f"the broker's own certificate has expired ({reason}); the coordinator has to renew it"
        if "mismatch" in lower:
            return (
                f"the server there has another name ({reason}); use an address that the coordinator gave to "
                f"`medfed enrol init --host`"
            )
        return (
            f"the server is not of the federation of '{identity.name}' ({reason}): it is another "
            f"federation's broker, or something in between intercepts TLS; compare the address, and the "
            f"authority's fingerprint, with the coordinator"
        )
    if any(phrase in lower for phrase in ("authorization", "bad certificate", "unknown ca", "expired")):
        until = identity.certificate.not_valid_after_utc
        return (
            f"the broker rejects '{identity.name}' ({text}): its certificate "
            f"({serial_number(identity.certificate)}, until {until:%Y-%m-%d}) is expired, revoked or of "
            f"another federation; ask the coordinator, for whom `medfed enrol list` shows which"
        )
    return ""


def first_line(error: Exception) -> str:
    """Return what an error of a connection says, in one line."""
    # A certificate's errors are OSErrors, too, with numbers of their own.
    if isinstance(error, OSError) and error.errno and not isinstance(error, ssl.SSLError):
        return os.strerror(error.errno)  # asyncio's own text is "Connect call failed ('10.0.0.1', 4222)"
    return str(error).split("\n")[0][:200]


def silence_asyncio() -> None:
    """Keep asyncio from warning of each connection that ends."""
    # Whenever a connection ends, asyncio's TLS warns that its stream reader cannot keep it half open.
    logging.getLogger("asyncio").addFilter(_no_eof_note)


def _no_eof_note(record: logging.LogRecord) -> bool:
    return "returning true from eof_received" not in record.msg

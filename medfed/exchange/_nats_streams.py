"""The settings of the hub's JetStream streams: the models, and what each site may store.

A site stores under the names of the studies that a hub runs, and of no others, and only so many bytes and
objects. What is over that is refused: with JetStream's `discard: old` an earlier chunk of the same update
would be deleted instead, unseen.

JetStream reserves each site's bytes on the broker's disk, and as many again for the models, in a stream to
which nobody writes (`ROOM`): the models themselves are not bounded, since a model that is refused would stop
the study. Where the disk is too small for all of it, sites and models get the same smaller share.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

GLOBAL, ROOM, BROKERS = "GLOB", "ROOM", "BROKERS"

# What a site may store before the hub knows the size of its model.
FIRST_SITE_BYTES = 256 << 20

# The smallest share of a disk with which an exchange can go on: a few chunks and messages.
MIN_SITE_BYTES = 4 << 20

# How many objects a site may store: heartbeats and messages, and one for each of so many bytes (a chunk has 1
# MiB).
_SMALL_OBJECTS, _OBJECT_BYTES = 10_000, 64 << 10

# How many other studies a site may still store for.
_OTHER_STUDIES = 15


def stream_of(name: str) -> str:
    """Return the stream that holds an object: the models', a site's, the brokers', or the room's."""
    parts = name.split("/")
    return {"glob": GLOBAL, "room": ROOM, "brokers": BROKERS}.get(parts[0]) or f"UP_{parts[2]}"


def stream_settings(
    stream: str, space: str, site_bytes: int, before: Mapping[str, Any] | None = None, replicas: int = 1
) -> dict[str, Any]:
    """Return the settings of a stream; what other studies need remains, by its settings `before`.

    replicas: how many brokers store it.
    """
    if stream == GLOBAL:
        own = _models()
    elif stream == BROKERS:
        own = {"subjects": ["brokers.>"], "discard": "old"}
    elif stream == ROOM:
        own = _room(site_bytes, before or {})
    else:
        own = _site(stream.removeprefix("UP_"), space, site_bytes, before or {})
    return {
        "name": stream,
        "retention": "limits",
        "storage": "file",
        "max_msgs_per_subject": 1,
        "allow_direct": True,
        "num_replicas": replicas,
        **own,
    }


def _models() -> dict[str, Any]:
    return {"subjects": ["glob.>"], "discard": "old"}


def _room(site_bytes: int, before: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of the stream that keeps room for the models: two of them and the hub's messages.

    An update of a round may take as much as eight models (`HubTransport`), so a site's bytes are enough.
    """
    max_bytes = max(site_bytes, int(before.get("max_bytes", 0)))
    return {"subjects": ["room"], **_limits(max_bytes), "discard": "new"}


def _site(site: str, space: str, site_bytes: int, before: Mapping[str, Any]) -> dict[str, Any]:
    own = f"up.{space}.{site}.>"
    # An earlier medfed let a site store under any name.
    others = [one for one in before.get("subjects", ()) if one != own and not one.startswith("up.*.")]
    max_bytes = max(site_bytes, int(before.get("max_bytes", 0)))
    return {
        "subjects": [*others[-_OTHER_STUDIES:], own],
        **_limits(max_bytes),
        "discard": "new",
    }


def _limits(max_bytes: int) -> dict[str, int]:
    return {"max_bytes": max_bytes, "max_msgs": _SMALL_OBJECTS + max_bytes // _OBJECT_BYTES}


def shrunk(before: Mapping[str, Any], site_bytes: int) -> dict[str, Any] | None:
    """Return the settings of a site's stream with at most `site_bytes`; None if it has no more already.

    With `discard: new` nothing that is stored is deleted.
    """
    if 0 < int(before.get("max_bytes", -1)) <= site_bytes:
        return None
    return {**before, **_limits(site_bytes), "discard": "new"}


def no_room(wanted: int, share: int, sites: int) -> str:
    """Return what a person must know of a disk that is too small for what all sites may store."""
    found = (
        f"the broker's disk has no room to reserve {wanted >> 20} MiB for each of {sites} sites "
        f"and for the models (together {wanted * (sites + 1) >> 20} MiB)"
    )
    done = (
        f"each may store {share >> 20} MiB, as much is kept for the models, and a larger update waits"
        if share >= MIN_SITE_BYTES
        else f"the hub waits for {MIN_SITE_BYTES >> 20} MiB for each"
    )
    remedy = "for more, make room or raise `disk` in enrolment/federation.json, and restart the broker"
    return f"{found}: {done}; {remedy}"

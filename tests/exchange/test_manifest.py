"""Manifests and control messages: what of a sealed one is refused, and which names a site may have."""

from __future__ import annotations

import msgspec
import pytest

from medfed.errors import ExchangeError, WireError
from medfed.exchange._manifest import (
    PROTOCOL,
    ControlMessage,
    Manifest,
    encode_sealed,
    open_control,
    open_manifest,
    validate_party_name,
)
from medfed.wire.signing import HUB, Unsigned

STUDY = "ab" * 32

# 25 bytes in chunks of 10: 10, 10 and 5.
MANIFEST = Manifest(PROTOCOL, "update", STUDY, "run", "north", 3, 25, 10, ["0" * 64, "1" * 64, "2" * 64])
HEARTBEAT = ControlMessage(PROTOCOL, "heartbeat", STUDY, "north", count=4)


def sealed(record, **changes) -> bytes:
    return encode_sealed(msgspec.structs.replace(record, **changes), Unsigned())


def test_the_spans_are_the_chunks_in_order():
    assert MANIFEST.spans == [(0, 10), (10, 10), (20, 5)]
    assert open_manifest(sealed(MANIFEST), Unsigned(), "north", "update", STUDY) == MANIFEST


@pytest.mark.parametrize(
    "data, message",
    [
        (sealed(MANIFEST, protocol="medfed-exchange-9"), "protocol 'medfed-exchange-9', this medfed uses"),
        (sealed(MANIFEST, party="south"), "its manifest is from 'south', expected 'north'"),
        (sealed(MANIFEST, study="cd" * 32), "it belongs to study cdcdcdcdcdcd, this is study abababababab"),
        (sealed(MANIFEST, what="global"), "expected the manifest of an update, found something else"),
        (sealed(HEARTBEAT), "expected the manifest of an update, found something else"),
        (sealed(MANIFEST, bytes=31), r"contradicts itself: round 3, 31 bytes in 3 chunks of 10"),
        (sealed(MANIFEST, bytes=20), r"20 bytes in 3 chunks of 10"),
        (sealed(MANIFEST, bytes=0, chunks=[]), r"0 bytes in 0 chunks of 10"),
        (sealed(MANIFEST, chunk_bytes=0), r"25 bytes in 3 chunks of 0"),
        (sealed(MANIFEST, round=-1), "contradicts itself: round -1"),
        (sealed(MANIFEST, chunks=["0" * 64, "1" * 64, "../../etc"]), "a chunk by something other than a SHA"),
        (
            sealed(MANIFEST, chunks=["0" * 64, "1" * 64, "A" * 64]),
            "a chunk by something other than a SHA",
        ),
        (Unsigned().seal(b'{"is":"manifest"}'), "its manifest cannot be decoded"),
        (Unsigned().seal(b"[" * 100_000), "its manifest cannot be decoded"),
    ],
)
def test_a_manifest_that_is_not_the_expected_one_is_refused(data, message):
    with pytest.raises(WireError, match=message):
        open_manifest(data, Unsigned(), "north", "update", STUDY)


def test_a_control_message_is_of_its_kind_and_study():
    assert open_control(sealed(HEARTBEAT), Unsigned(), "north", "heartbeat", STUDY) == HEARTBEAT
    with pytest.raises(WireError, match="expected the control message 'dropped_out', found something else"):
        open_control(sealed(HEARTBEAT), Unsigned(), "north", "dropped_out", STUDY)
    with pytest.raises(WireError, match="expected the control message 'heartbeat', found something else"):
        open_control(sealed(MANIFEST), Unsigned(), "north", "heartbeat", STUDY)
    with pytest.raises(WireError, match="both sides must run the same study file"):
        open_control(sealed(HEARTBEAT), Unsigned(), "north", "heartbeat", "cd" * 32)


def test_a_site_that_knows_no_study_takes_the_hubs_of_any():
    study = ControlMessage(PROTOCOL, "study", STUDY, HUB, "rounds: 3")
    assert open_control(sealed(study), Unsigned(), HUB, "study", None) == study


@pytest.mark.parametrize("name", ["north", "Site_2-b", "x" * 64])
def test_a_name_that_fits_a_path_and_a_subject_is_taken(name):
    assert validate_party_name(name) == name


@pytest.mark.parametrize("name", ["", "x" * 65, "a.b", "a/b", "..", "a b", "nord\n", "hub", "broker", "*"])
def test_a_name_that_fits_neither_or_is_taken_is_refused(name):
    with pytest.raises(ExchangeError, match="1 to 64 letters, digits, '-' or '_', and not 'hub' or 'broker'"):
        validate_party_name(name)

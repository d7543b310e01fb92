"""The names of a study's objects, their manifests and control messages, in a store that is a dict."""

from __future__ import annotations

import hashlib

import pytest

from medfed.exchange._manifest import PROTOCOL, ControlMessage
from medfed.exchange._object_store import MissingObject, chunk_name, manifest_name, pass_on
from medfed.exchange._study_store import StudyStore
from medfed.wire.signing import HUB, Unsigned

STUDY = "0123456789abcdef" * 4


class DictStore(dict):
    chunk_bytes = 4

    def put(self, name, data, if_absent=False):
        self.setdefault(name, data) if if_absent else self.update({name: data})


def objects(party: str) -> StudyStore:
    return StudyStore(DictStore(), Unsigned(), STUDY, party)


def test_names_hold_study_party_and_round():
    north = objects("north")
    assert north.update_prefix("north", 7) == "up/0123456789abcdef/north/r00007"
    assert north.global_prefix(12) == "glob/0123456789abcdef/r00012"
    assert north.site_object("north", "heartbeat") == "up/0123456789abcdef/north/heartbeat/m"
    assert north.hub_object("current") == "glob/0123456789abcdef/current/m"
    assert StudyStore(DictStore(), Unsigned(), "", "north").hub_object("current") == "glob/none/current/m"
    assert manifest_name("up/x") == "up/x/m"
    assert chunk_name("up/x", 3, "f" * 64) == f"up/x/c/3-{'f' * 32}"


@pytest.mark.parametrize("party, what", [("north", "update"), (HUB, "global")])
def test_a_manifest_describes_the_object_of_its_party(party, what):
    manifest = objects(party).describe("run", 5, [b"abc", b"defghi"])
    digests = [hashlib.sha256(chunk).hexdigest() for chunk in (b"abcd", b"efgh", b"i")]
    assert (manifest.what, manifest.party, manifest.round, manifest.run) == (what, party, 5, "run")
    assert (manifest.bytes, manifest.chunk_bytes, manifest.chunks) == (9, 4, digests)


def test_a_control_message_lies_under_its_partys_name():
    north, hub = objects("north"), objects(HUB)
    north.put_control("heartbeat", session="s", count=2)
    hub.put_control("state", "open")
    hub.put_control("study", "rounds: 3", name="glob/newest/study/m")
    assert set(north.store) == {"up/0123456789abcdef/north/heartbeat/m"}
    assert set(hub.store) == {"glob/0123456789abcdef/state/m", "glob/newest/study/m"}
    message = north.open_control(north.get_site_object("north", "heartbeat"), "north", "heartbeat")
    assert message == ControlMessage(PROTOCOL, "heartbeat", STUDY, "north", "", "s", 2)
    assert hub.open_control(hub.get_hub_object("state"), HUB, "state").text == "open"
    assert north.get_site_object("south", "heartbeat") is None


def test_a_chunk_that_is_missing_is_named_by_its_number():
    arrived = []
    take = pass_on(lambda name, data: arrived.append((name, data)), skip_missing=False)
    take("up/x/c/0-aa", b"x")
    assert arrived == [("up/x/c/0-aa", b"x")]
    with pytest.raises(MissingObject, match="chunk 17 is not in the store"):
        take("up/x/c/17-aa", None)
    pass_on(lambda name, data: arrived.append((name, data)), skip_missing=True)("up/x/c/17-aa", None)
    assert len(arrived) == 1

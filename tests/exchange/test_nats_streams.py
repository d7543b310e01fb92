"""What a site may store at the broker: its own studies' names, so many bytes and objects, and no more."""

from __future__ import annotations

import contextlib

import pytest
from broker_enrolment import Enrolment

from medfed.deployment.enrolment import enrol
from medfed.exchange._nats_store import NatsStore
from medfed.exchange._nats_streams import no_room, shrunk, stream_settings
from medfed.exchange._object_store import Unreachable
from medfed.wire.signing import Identity

STUDY = "12" * 32
SPACE = STUDY[:16]


def test_a_sites_stream_takes_its_studies_alone_and_refuses_what_is_too_much():
    settings = stream_settings("UP_north", SPACE, 640 << 20)
    assert settings["subjects"] == [f"up.{SPACE}.north.>"]
    assert (settings["max_bytes"], settings["max_msgs"]) == (671_088_640, 20_240)
    assert settings["discard"] == "new"
    before = {"subjects": ["up.*.north.>", "up.aa.north.>", f"up.{SPACE}.north.>"], "max_bytes": 900 << 20}
    again = stream_settings("UP_north", SPACE, 640 << 20, before)
    assert again["subjects"] == ["up.aa.north.>", f"up.{SPACE}.north.>"]
    assert again["max_bytes"] == 900 << 20
    many = {"subjects": [f"up.{number:02}.north.>" for number in range(40)], "max_bytes": -1}
    stream = stream_settings("UP_north", SPACE, 640 << 20, many)
    assert stream["subjects"] == [
        *(f"up.{number}.north.>" for number in range(25, 40)),
        f"up.{SPACE}.north.>",
    ]
    assert stream["max_bytes"] == 640 << 20


def test_a_share_takes_bytes_and_objects_and_nothing_that_is_stored():
    before = {**stream_settings("UP_north", SPACE, 640 << 20), "max_age": 0}
    # 10,000 small objects, and one for each 64 KiB of 8 MiB.
    assert shrunk(before, 8 << 20) == {**before, "max_bytes": 8_388_608, "max_msgs": 10_128}
    assert shrunk(before, 640 << 20) is None
    message = no_room(256 << 20, 8 << 20, 2)
    assert "no room to reserve 256 MiB for each of 2 sites and for the models (together 768 MiB)" in message
    assert ": each may store 8 MiB, as much is kept for the models, and a larger update waits" in message
    assert "the hub waits for 4 MiB for each" in no_room(256 << 20, 2 << 20, 2)


@pytest.fixture
def stores(enrolment, monkeypatch):
    monkeypatch.setattr("medfed.exchange._nats_store.FIRST_SITE_BYTES", 3 << 20)
    enrolment.start()
    opened = {
        party: NatsStore([enrolment.url], Identity(enrolment.credentials(party)), STUDY, timeout_s=5)
        for party in ("hub", "north", "south")
    }
    started = False
    while not started:  # the broker has only just been started
        with contextlib.suppress(Unreachable):
            opened["hub"].limit_sites(3 << 20)
            started = True
    yield opened
    for store in opened.values():
        store.close()


def test_one_site_cannot_fill_the_broker_and_a_revoked_ones_data_is_deleted(enrolment, stores):
    hub, north, south = stores["hub"], stores["north"], stores["south"]
    for number in (1, 2):
        south.put(f"up/{SPACE}/south/r00001/c/{number}", bytes(1 << 20))
    with pytest.raises(Unreachable, match=r"stores no more for 'south' .maximum bytes exceeded."):
        south.put(f"up/{SPACE}/south/r00001/c/3", bytes(1 << 20))
    # Nor under the name of a study that no hub runs; north goes on.
    with pytest.raises(Unreachable, match="the broker has no such stream"):
        south.put("up/junk/south/a/m", b"x")
    north.put(f"up/{SPACE}/north/r00001/c/1", bytes(1 << 20))
    used = hub.used_bytes()
    assert 2 << 20 < used["south"] < 3 << 20
    assert 1 << 20 < used["north"] < 2 << 20
    hub.limit_sites(8 << 20)
    south.put(f"up/{SPACE}/south/r00001/c/3", bytes(1 << 20))
    enrol.revoke(enrolment.authority, "south")
    told = hub.limit_sites(8 << 20)
    assert set(hub.used_bytes()) == {"north"}
    assert told == ("what 'south' stored at the broker is deleted: it is no longer enrolled",)
    assert hub.limit_sites(8 << 20) == ()
    assert hub.get(f"up/{SPACE}/north/r00001/c/1") == bytes(1 << 20)


def fill(store, site: str) -> int:
    """Return how many MiB a site can store before the broker refuses more."""
    for stored in range(40):
        try:
            store.put(f"up/{SPACE}/{site}/r00001/c/{stored}", bytes(1 << 20))
        except Unreachable:
            return stored
    return 40


def test_sites_that_fill_their_shares_leave_room_for_a_model(tmp_path, monkeypatch):
    """Of 40 MB two sites and the models wanted 16 MiB each: all get 8, and two full sites stop no model."""
    monkeypatch.setattr("medfed.exchange._nats_store.FIRST_SITE_BYTES", 4 << 20)
    enrolment = Enrolment(tmp_path, sites=("north", "south"), disk="40MB")
    enrolment.start()
    try:
        opened = {
            party: NatsStore([enrolment.url], Identity(enrolment.credentials(party)), STUDY, timeout_s=5)
            for party in ("hub", "north", "south")
        }
        with contextlib.ExitStack() as stack:
            for store in opened.values():
                stack.callback(store.close)
            limited = False
            while not limited:  # the broker has only just been started
                with contextlib.suppress(Unreachable):
                    opened["hub"].limit_sites(16 << 20)
                    limited = True
            for site in ("north", "south"):
                assert 6 <= fill(opened[site], site) <= 8
                with pytest.raises(Unreachable, match=f"stores no more for '{site}'"):
                    opened[site].put(f"up/{SPACE}/{site}/r00001/c/more", bytes(1 << 20))
            for number in range(7):
                opened["hub"].put(f"glob/{SPACE}/r00001/c/{number}", bytes(1 << 20))
            assert opened["north"].get(f"glob/{SPACE}/r00001/c/6") == bytes(1 << 20)
            assert set(opened["hub"].used_bytes()) == {"north", "south"}
    finally:
        enrolment.end()

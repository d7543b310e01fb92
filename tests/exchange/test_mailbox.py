"""Messages over an object store: the first one counts, a restart keeps it, and copies are refused."""

from __future__ import annotations

import msgspec
import pytest

from medfed.errors import WireError
from medfed.exchange._mailbox import HubMailbox, SiteMailbox
from medfed.exchange._study_store import StudyStore
from medfed.exchange.folder import FolderStore
from medfed.wire.messages import FORMAT, Message, seal_message
from medfed.wire.signing import HUB, Unsigned

STUDY, RUN = "ab" * 32, "run"
SPACE = STUDY[:16]


@pytest.fixture
def store(tmp_path):
    store = FolderStore(str(tmp_path / "share"))
    yield store
    store.close()


@pytest.fixture
def north(store, tmp_path):
    return SiteMailbox(StudyStore(store, Unsigned(), STUDY, "north"), tmp_path / "north")


@pytest.fixture
def hub(store, tmp_path):
    return HubMailbox(StudyStore(store, Unsigned(), STUDY, HUB), RUN, tmp_path / "hub")


def test_a_sites_first_message_of_an_attempt_counts(north, tmp_path):
    assert north.written("keys") is None
    north.write(RUN, 2, 1, "keys", b"first")
    for round, attempt in ((2, 1), (2, 0), (1, 9)):
        north.write(RUN, round, attempt, "keys", b"second")
        assert north.written("keys").data == b"first"
    # A process that starts again in the same folder finds it.
    assert SiteMailbox(north.objects, tmp_path / "north").written("keys").data == b"first"
    north.write(RUN, 2, 2, "keys", b"next attempt")
    assert north.written("keys").data == b"next attempt"
    north.write("another run", 1, 0, "keys", b"new run")
    assert north.written("keys").data == b"new run"
    assert north.written("shares") is None


def test_the_hubs_first_messages_of_an_attempt_count(hub):
    assert hub.written("keys") is None
    assert hub.write(2, 1, "keys", {"north": b"first"}) == {"north": b"first"}
    assert hub.write(2, 1, "keys", {"north": b"second"}) == {"north": b"first"}
    assert hub.write(1, 5, "keys", {"north": b"second"}) == {"north": b"first"}
    assert hub.written("keys") == ((2, 1), {"north": b"first"})
    assert hub.write(2, 2, "keys", {"north": b"second"}) == {"north": b"second"}


def test_messages_meet_where_their_names_say(north, hub, store):
    north.write(RUN, 2, 1, "keys", b"from north")
    north.deliver("keys")
    hub.deliver(2, 1, "members", "north", b"to north")
    assert store.get(f"up/{SPACE}/north/l-keys/m") is not None
    assert store.get(f"glob/{SPACE}/l-members-north/m") is not None
    arrived = hub.find(2, 1, "keys", "north")
    assert (arrived.site, arrived.message.data, arrived.error) == ("north", b"from north", None)
    assert arrived.sealed == store.get(f"up/{SPACE}/north/l-keys/m")
    assert hub.find(2, 1, "keys", "south") is None
    received = north.find(RUN, 2, {"keys": 0, "members": 1})
    assert (received.step, received.data) == ("members", b"to north")


@pytest.mark.parametrize("round, attempt, run", [(3, 1, RUN), (2, 2, RUN), (2, 1, "another")])
def test_the_hub_waits_on_where_a_message_is_of_another_round_attempt_or_run(north, hub, round, attempt, run):
    north.write(run, round, attempt, "keys", b"x")
    north.deliver("keys")
    assert hub.find(2, 1, "keys", "north") is None


@pytest.mark.parametrize("run, round, least", [("another", 2, 1), (RUN, 3, 1), (RUN, 2, 2)])
def test_a_site_waits_on_where_a_message_is_of_another_run_round_or_attempt(north, hub, run, round, least):
    hub.deliver(2, 1, "members", "north", b"x")
    assert north.find(run, round, {"members": least}) is None


def test_a_message_that_lies_under_another_steps_or_sites_name_is_refused(north, hub, store):
    own = Message(FORMAT, STUDY, RUN, "north", HUB, 2, 1, "keys", b"x")
    store.put(f"up/{SPACE}/north/l-shares/m", seal_message(own, Unsigned()))
    refused = hub.find(2, 1, "shares", "north")
    assert "site 'north', round 2, step shares: its message for step 'shares' is one for step 'keys'" in str(
        refused.error
    )
    assert refused.message is None
    for_south = msgspec.structs.replace(own, party=HUB, to="south", step="members")
    store.put(f"glob/{SPACE}/l-members-north/m", seal_message(for_south, Unsigned()))
    with pytest.raises(WireError, match="the hub's message for step 'members' is 'members' for another site"):
        north.find(RUN, 2, {"members": 1})


def test_a_secret_is_its_owners_alone_and_of_one_run(north, tmp_path):
    assert north.read_secret(RUN, "key") is None
    north.write_secret(RUN, "key", b"\x00secret")
    assert north.read_secret(RUN, "key") == b"\x00secret"
    assert north.read_secret("another", "key") is None
    (path,) = (tmp_path / "north").iterdir()
    assert path.stat().st_mode & 0o777 == 0o600

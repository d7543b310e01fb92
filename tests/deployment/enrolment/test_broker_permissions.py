"""The broker's permissions, tested with a plain NATS client and real certificates."""

from __future__ import annotations

import asyncio
import json
import ssl
from pathlib import Path

import nats
import nats.errors
import pytest
import torch
from broker_enrolment import Enrolment

from medfed.deployment.enrolment import enrol
from medfed.deployment.enrolment.configuration import admit_study
from medfed.exchange._object_store import Refused
from medfed.exchange.nats import Nats
from medfed.wire.signing import Identity
from medfed.wire.update import GlobalModel, Update
from medfed.wire.weights import Difference

STUDY = "12" * 32
SPACE = STUDY[:16]

# Seconds to wait for a request that must not be answered.
UNANSWERED_S = 0.5


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A broker, a hub that has published, and the sites north and south; south has sent an update."""
    folder = tmp_path_factory.mktemp("rights")
    enrolment = Enrolment(folder)
    enrolment.start()
    weights = {"a": torch.ones(40)}
    hub = Nats(**record(enrolment, "hub")).open_hub(STUDY, folder / "hub")
    hub.publish(GlobalModel(0, weights, study_digest=STUDY))
    south = Nats(**record(enrolment, "south")).open_site(STUDY, "south", folder / "south")
    south.fetch("south", 0)
    south.send(Update("south", 1, Difference({"a": weights["a"] + 1}, weights), 3))
    yield enrolment, hub
    south.close()
    hub.close()
    enrolment.end()


def record(enrolment: Enrolment, party: str) -> dict:
    return {"credentials": str(enrolment.credentials(party)), "urls": [enrolment.url]}


def tls(authority: Path, credentials: Path | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=authority / "authority.pem")
    if credentials is not None:
        context.load_cert_chain(credentials / "identity.pem", credentials / "identity.key")
    return context


async def connected(enrolment: Enrolment, credentials: Path | None, **settings):
    return await nats.connect(
        enrolment.url,
        tls=tls(enrolment.authority, credentials),
        allow_reconnect=False,
        connect_timeout=5,
        error_cb=silent,
        **settings,
    )


async def silent(error: Exception) -> None:
    """Ignore an expected error without printing it."""


def let_in(enrolment: Enrolment, credentials: Path | None) -> bool:
    async def tried() -> bool:
        try:
            client = await connected(enrolment, credentials)
            # With TLS 1.3 a client learns of its refused certificate only when it next reads.
            await client.flush(5)
        except Exception:
            return False
        await client.close()
        return True

    return asyncio.run(tried())


def test_a_site_with_its_certificate_is_admitted(place):
    assert let_in(place[0], place[0].credentials("north"))


def test_a_client_without_a_certificate_is_refused(place):
    assert not let_in(place[0], None)


def test_a_certificate_of_another_authority_is_refused(place, tmp_path):
    other = Enrolment(tmp_path)
    assert not let_in(place[0], other.credentials("north"))


def test_an_expired_client_certificate_is_refused(place):
    place[0].enrol("late")
    credentials, kit = place[0].credentials("late"), place[0].folder / "late.kit"
    enrol.sign(place[0].authority, credentials / "late.request.pem", kit, days=-1 / 24)
    (credentials / "identity.pem").write_text(json.loads(kit.read_text())["certificate"])
    assert not let_in(place[0], place[0].credentials("late"))
    with pytest.raises(enrol.ExchangeError, match="late's certificate expired on"):
        Nats(**record(place[0], "late")).open_site(STUDY, "late", place[0].folder / "late")


def test_the_brokers_own_certificate_admits_no_client(place):
    assert not let_in(place[0], place[0].authority / "broker")


def test_a_revoked_certificate_is_refused_and_a_new_one_admitted(place):
    enrolment = place[0]
    enrolment.enrol("gone")
    until(lambda: let_in(enrolment, enrolment.credentials("gone")))
    old = enrolment.folder / "old"
    enrolment.credentials("gone").rename(old)
    enrol.revoke(enrolment.authority, "gone")
    until(lambda: not let_in(enrolment, old))
    enrolment.enrol("gone")
    until(lambda: let_in(enrolment, enrolment.credentials("gone")))
    assert not let_in(enrolment, old)


def until(what) -> None:
    import time

    for _ in range(300):
        if what():
            return
        time.sleep(0.1)
    pytest.fail("waited in vain")


def as_north(place, subject: str, data: bytes = b"", reply: str = "") -> bytes | None:
    """Send a request as north; return the answer, or None if there is none."""

    async def request_once() -> bytes | None:
        client = await connected(place[0], place[0].credentials("north"))
        try:
            if reply:
                await client.publish(subject, data, reply=reply)
                await client.flush(5)
                await asyncio.sleep(UNANSWERED_S)
                return None
            return (await client.request(subject, data, UNANSWERED_S)).data
        except nats.errors.Error:
            return None
        finally:
            await client.close()

    return asyncio.run(request_once())


def stored(place, name: str) -> bytes | None:
    return place[1]._store.get(name)


def test_a_site_writes_and_reads_its_own_objects(place):
    answer = as_north(place, f"up.{SPACE}.north.r00009.m", b"mine")
    assert json.loads(answer)["stream"] == "UP_north"
    assert as_north(place, f"$JS.API.DIRECT.GET.UP_north.up.{SPACE}.north.r00009.m") == b"mine"
    assert as_north(place, f"$JS.API.DIRECT.GET.GLOB.glob.{SPACE}.current.m") is not None


@pytest.mark.parametrize(
    "name", [f"up/{SPACE}/south/r00002/m", f"glob/{SPACE}/current/m", f"glob/{SPACE}/r00007/m"]
)
def test_a_site_cannot_write_what_is_not_its_own(place, name):
    before = stored(place, name)
    assert as_north(place, name.replace("/", "."), b"forged") is None
    assert stored(place, name) == before


@pytest.mark.parametrize("what", ["m", "heartbeat.m", "r00001.m"])
def test_a_site_cannot_read_another(place, what):
    assert stored(place, f"up/{SPACE}/south/r00001/m") is not None
    assert as_north(place, f"$JS.API.DIRECT.GET.UP_south.up.{SPACE}.south.{what}") is None
    request = json.dumps({"last_by_subj": f"up.{SPACE}.south.r00001.m"}).encode()
    assert as_north(place, "$JS.API.DIRECT.GET.UP_south", request) is None
    assert as_north(place, "$JS.API.STREAM.MSG.GET.UP_south", request) is None


@pytest.mark.parametrize(
    "subject",
    [
        "$JS.API.INFO",
        "$JS.API.STREAM.NAMES",
        "$JS.API.STREAM.LIST",
        "$JS.API.STREAM.INFO.UP_south",
        "$JS.API.STREAM.PURGE.UP_south",
        "$JS.API.STREAM.DELETE.GLOB",
        "$JS.API.CONSUMER.CREATE.UP_south",
        "$SYS.REQ.SERVER.PING.CONNZ",
        "$SYS.REQ.ACCOUNT.HUB.CONNZ",
    ],
)
def test_a_site_cannot_enumerate_or_administer(place, subject):
    assert as_north(place, subject) is None
    assert stored(place, f"up/{SPACE}/south/r00001/m") is not None


def test_a_site_receives_nothing_of_another_site(place):
    async def received_subjects() -> list[str]:
        client = await connected(place[0], place[0].credentials("north"))
        subjects: list[str] = []

        async def note(message) -> None:
            subjects.append(message.subject)

        for wanted in ("glob.*.*.m", "up.>", ">"):
            await client.subscribe(wanted, cb=note)
        await client.flush(5)
        place[1].publish(GlobalModel(0, {"a": torch.ones(40)}, study_digest=STUDY))
        # South sends a heartbeat every two seconds.
        await asyncio.sleep(2.5)
        await client.close()
        return subjects

    subjects = asyncio.run(received_subjects())
    assert f"glob.{SPACE}.current.m" in subjects
    assert not [subject for subject in subjects if subject.startswith("up.")]


@pytest.mark.parametrize(
    "reply", [f"up.{SPACE}.south.r00003.m", f"glob.{SPACE}.current.m", f"glob.{SPACE}.r00008.m"]
)
@pytest.mark.parametrize(
    "subject",
    [
        f"up.{SPACE}.north.r00005.m",
        f"$JS.API.DIRECT.GET.UP_north.up.{SPACE}.north.r00009.m",
        f"$JS.API.DIRECT.GET.GLOB.glob.{SPACE}.current.m",
    ],
)
def test_nothing_can_be_injected_through_a_reply_subject(place, subject, reply):
    as_north(place, f"up.{SPACE}.north.r00009.m", b"mine")
    before = stored(place, reply.replace(".", "/"))
    as_north(place, subject, b"x", reply=reply)
    assert stored(place, reply.replace(".", "/")) == before


def test_a_site_reads_and_writes_the_studies_that_it_is_in_and_no_others(place):
    """The last test here: from the first study that is admitted on, no other can be read."""
    enrolment, hub = place
    other, folder = "34" * 32, place[0].folder
    models = Nats(**record(enrolment, "hub")).open_hub(other, folder / "other")
    models.publish(GlobalModel(0, {"a": torch.ones(4)}, study_digest=other))
    space = other[:16]
    read = f"$JS.API.DIRECT.GET.GLOB.glob.{space}.current.m"
    assert as_north(place, read) is not None  # before any study is offered
    admit_study(enrolment.authority, STUDY, ["north", "south"])
    models.advertise_study("name: other", ["south"])
    until(lambda: as_north(place, read) is None)
    # A site that asks nevertheless is told at once, and not after the time for an answer.
    store = Nats(**record(enrolment, "north"))._store(other, Identity(enrolment.credentials("north")))
    with pytest.raises(Refused, match="does not let 'north' read or write this study"):
        store.get(f"glob/{space}/current/m")
    with pytest.raises(Refused, match="the hub has not admitted it"):
        store.put(f"up/{space}/north/heartbeat/m", b"x")
    store.close()
    for subject in (
        f"$JS.API.DIRECT.GET.GLOB.glob.{space}.study.m",
        "$JS.API.DIRECT.GET.GLOB.glob.*.current.m",
        "$JS.API.DIRECT.GET.GLOB.glob.site-south.studies.m",
        f"up.{space}.north.heartbeat.m",
    ):
        assert as_north(place, subject, b"x") is None, subject
    request = json.dumps({"last_by_subj": f"glob.{space}.current.m"}).encode()
    assert as_north(place, "$JS.API.DIRECT.GET.GLOB", request) is None
    # Its own study and its own offers remain, and so does south's.
    assert as_north(place, f"$JS.API.DIRECT.GET.GLOB.glob.{SPACE}.current.m") is not None
    hub.advertise_study("name: own", ["north", "south"])
    (offer,) = Nats(**record(enrolment, "north")).offered_studies("north")
    assert (offer.digest, offer.text) == (STUDY, "name: own")
    both = Nats(**record(enrolment, "south")).offered_studies("south")
    assert [one.digest for one in both] == [other, STUDY]
    assert all(one.is_live for one in both)
    models.disconnect()
    live = {one.digest: one.is_live for one in Nats(**record(enrolment, "south")).offered_studies("south")}
    assert live == {other: False, STUDY: True}
    models = Nats(**record(enrolment, "hub")).open_hub(other, folder / "other")
    models.advertise_study("name: other", ["south"])
    models.close()  # a study that has ended is offered to nobody
    (left,) = Nats(**record(enrolment, "south")).offered_studies("south")
    assert left.digest == STUDY

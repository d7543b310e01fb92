"""An attacker who can write to the store can only withhold: each forgery is refused."""

from __future__ import annotations

import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from medfed.deployment.enrolment import enrol
from medfed.exchange.folder import Folder, FolderStore
from medfed.wire.update import GlobalModel, Update
from medfed.wire.weights import Difference, digest

STUDY = "ef" * 32
SPACE = STUDY[:16]
PATIENCE_S = 60


def model(value: float = 1.0) -> dict[str, torch.Tensor]:
    return {"a": torch.arange(600.0).reshape(20, 30) * value}


def update(site: str, round: int = 1) -> Update:
    weights = model()
    return Update(site, round, Difference({"a": weights["a"] + 1}, weights), 12)


class Meeting:
    """A hub, north and south with a shared folder that an attacker can write to."""

    def __init__(self, folder: Path) -> None:
        self.share = folder / "share"
        self.folder = folder
        self.authority = folder / "enrolment"
        enrol.init(self.authority, "test", ["127.0.0.1"])
        for site in ("north", "south"):
            self.enrol(site)
        self.hub = self.record(self.authority / "hub").open_hub(STUDY, folder / "hub")
        self.sites = {site: self.site(site) for site in ("north", "south")}
        self.hub.publish(GlobalModel(0, model(), study_digest=STUDY))
        for name, site in self.sites.items():
            site.fetch(name, 0)

    def enrol(self, site: str) -> None:
        request, _ = enrol.request(self.folder / "credentials" / site, site)
        enrol.sign(self.authority, request, self.folder / f"{site}.kit")
        enrol.accept(self.folder / "credentials" / site, self.folder / f"{site}.kit")

    def record(self, credentials: Path) -> Folder:
        return Folder(url=str(self.share), credentials=str(credentials), poll_s=0.02)

    def site(self, name: str):
        return self.record(self.folder / "credentials" / name).open_site(STUDY, name, self.folder / name)

    def up(self, site: str, round: int = 1) -> Path:
        return self.share / "up" / SPACE / site / f"r{round:05d}"

    @property
    def current(self) -> Path:
        return self.share / "glob" / SPACE / "current" / "m"

    def collected(self, round: int = 1) -> dict[str, str]:
        """Send from south, check that south's update counts, and return north's outcome."""
        self.sites["south"].send(update("south", round))
        arrivals = {
            arrival.site: arrival for arrival in self.hub.collect(round, ["north", "south"], PATIENCE_S)
        }
        assert arrivals["south"].error is None
        assert arrivals["north"].update is None
        assert arrivals["north"].bytes_up > 0
        return str(arrivals["north"].error)

    def close(self) -> None:
        for side in (self.hub, *self.sites.values()):
            side.close()


@pytest.fixture
def meeting(tmp_path, monkeypatch):
    monkeypatch.setattr(FolderStore, "settle_s", 0.0)  # nothing arrives late here
    opened = Meeting(tmp_path)
    yield opened
    opened.close()


def change(path: Path, at: int = -20) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_a_changed_chunk_is_refused(meeting):
    meeting.sites["north"].send(update("north"))
    change(next((meeting.up("north") / "c").iterdir()))
    assert (
        "site 'north', round 1: chunk 1 of 1 does not have the digest that its manifest names"
        in meeting.collected()
    )


def test_a_missing_chunk_is_refused(meeting):
    meeting.sites["north"].send(update("north"))
    next((meeting.up("north") / "c").iterdir()).unlink()
    assert "site 'north', round 1: chunk 0 is not in the store" in meeting.collected()


def test_a_changed_manifest_is_refused(meeting):
    meeting.sites["north"].send(update("north"))
    path = meeting.up("north") / "m"
    path.write_bytes(path.read_bytes().replace(b'"chunk_bytes":8388608', b'"chunk_bytes":8388609'))
    assert "its signature by 'north' is invalid" in meeting.collected()


def test_a_manifest_without_a_signature_is_refused(meeting):
    meeting.sites["north"].send(update("north"))
    path = meeting.up("north") / "m"
    path.write_bytes(b"{}\n" + path.read_bytes().partition(b"\n")[2])
    assert "it should be signed by 'north', but carries no signature" in meeting.collected()


@pytest.mark.parametrize(
    "data", [b"", b"no newline", b"\xff\n{}", b'{"a":1}\n{}', b'{"certificate":"x","signature":"y"}\n']
)
def test_rubbish_is_refused(meeting, data):
    meeting.up("north").mkdir(parents=True)
    (meeting.up("north") / "m").write_bytes(data or b" ")
    assert "site 'north', round 1:" in meeting.collected()


def test_one_site_cannot_speak_as_another(meeting):
    meeting.sites["south"].send(update("south"))
    shutil.copytree(meeting.up("south"), meeting.up("north"))
    assert "it is signed by 'south', expected 'north'" in meeting.collected()


def test_an_update_of_an_older_round_is_refused(meeting):
    meeting.sites["north"].send(update("north"))
    backup = meeting.folder / "kept"
    shutil.copytree(meeting.up("north"), backup)
    meeting.hub.publish(GlobalModel(1, model(2), study_digest=STUDY))
    meeting.sites["south"].fetch("south", 1)
    shutil.copytree(backup, meeting.up("north", 2))
    assert "its manifest is for round 1" in meeting.collected(2)


def test_a_revoked_site_is_refused(meeting):
    meeting.sites["north"].send(update("north"))
    enrol.revoke(meeting.authority, "north")
    assert "the certificate of 'north' was revoked" in meeting.collected()


def test_a_site_of_another_authority_is_refused(meeting, tmp_path):
    other = tmp_path / "other"
    enrol.init(other, "test", ["127.0.0.1"])
    request, _ = enrol.request(tmp_path / "fake", "north")
    enrol.sign(other, request, tmp_path / "fake.kit")
    enrol.accept(tmp_path / "fake", tmp_path / "fake.kit")
    fake = meeting.record(tmp_path / "fake")
    meeting.sites["north"].close()
    shutil.rmtree(meeting.share / "up" / SPACE / "north")
    from medfed.wire.signing import Identity

    site = meeting.sites["north"] = meeting.site("north")
    site._objects = replace(site._objects, seal=Identity(Path(fake.credentials)))
    site._newest_manifest = lambda: None
    site.send(update("north"))
    assert "the certificate of 'north' is not from this federation's authority" in meeting.collected()


def refused(meeting: Meeting, caplog, damage, mend) -> str:
    """Damage the model of round 1, check that north waits, repair it, and return north's log."""
    meeting.hub.publish(GlobalModel(1, model(2), study_digest=STUDY))
    undo = damage()
    received = []
    waiting = threading.Thread(
        target=lambda: received.append(meeting.sites["north"].fetch("north", 1)), daemon=True
    )
    waiting.start()
    logged = ""
    for _ in range(PATIENCE_S * 20):
        logged = "\n".join(
            record.getMessage() for record in caplog.records if "refused" in record.getMessage()
        )
        if logged:
            break
        waiting.join(0.05)
    assert not received
    mend(undo)
    waiting.join(PATIENCE_S)
    assert digest(received[0].weights) == digest(model(2))
    return logged


def test_an_older_model_is_not_taken(meeting, caplog):
    meeting.hub.publish(GlobalModel(1, model(2), study_digest=STUDY))
    old = meeting.current.read_bytes()
    meeting.sites["north"].fetch("north", 1)
    meeting.hub.publish(GlobalModel(2, model(3), study_digest=STUDY))
    meeting.sites["north"].fetch("north", 2)
    meeting.current.write_bytes(old)
    waiting = threading.Thread(target=lambda: meeting.sites["north"].fetch("north", 3), daemon=True)
    waiting.start()
    for _ in range(PATIENCE_S * 20):
        if "it is that of round 1, and this site already has that of round 2" in caplog.text:
            break
        waiting.join(0.05)
    else:
        pytest.fail("the older model was not refused")
    meeting.hub.publish(GlobalModel(3, model(4), study_digest=STUDY))
    waiting.join(PATIENCE_S)
    assert not waiting.is_alive()


def test_a_changed_model_is_refused_until_it_is_whole_again(meeting, caplog):
    chunk = lambda: next((meeting.share / "glob" / SPACE / "r00001" / "c").iterdir())  # noqa: E731
    logged = refused(meeting, caplog, lambda: change(chunk()), lambda _: change(chunk()))
    assert "chunk 1 of 1 does not have the digest that its manifest names" in logged


def test_a_model_that_a_site_signed_is_refused(meeting, caplog):
    def forge() -> bytes:
        true = meeting.current.read_bytes()
        text = true.partition(b"\n")[2]
        meeting.current.write_bytes(meeting.sites["south"]._objects.seal.seal(text))
        return true

    logged = refused(meeting, caplog, forge, meeting.current.write_bytes)
    assert "it is signed by 'south', expected 'hub'" in logged


def test_a_changed_study_is_refused(meeting):
    meeting.hub.advertise_study("rounds: 3\n", ["north"])
    assert meeting.sites["north"].study_text() == "rounds: 3\n"
    path = meeting.share / "glob" / SPACE / "study" / "m"
    path.write_bytes(path.read_bytes().replace(b"rounds: 3", b"rounds: 9"))
    with pytest.raises(Exception, match="its signature by 'hub' is invalid"):
        meeting.sites["north"].study_text()

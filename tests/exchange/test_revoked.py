"""The authority's list of revoked certificates comes with each model, and a hub cannot hold it back."""

from __future__ import annotations

import threading

import pytest
import torch
from broker_enrolment import Enrolment

from medfed.deployment.enrolment import enrol
from medfed.errors import WireError
from medfed.exchange.folder import Folder
from medfed.wire.messages import SiteChannel
from medfed.wire.signing import Identity
from medfed.wire.update import GlobalModel

STUDY = "a7" * 32
WAIT_S = 30


@pytest.fixture
def place(tmp_path):
    enrolment = Enrolment(tmp_path, ("north", "south"), port=1, websocket_port=2)

    def folder(party: str) -> Folder:
        return Folder(str(tmp_path / "share"), credentials=str(enrolment.credentials(party)), poll_s=0.02)

    hub = folder("hub").open_hub(STUDY, tmp_path / "hub")
    sides = {name: folder(name).open_site(STUDY, name, tmp_path / name) for name in ("north", "south")}
    yield enrolment, hub, sides
    for side in sides.values():
        side.close()
    hub.close()


def publish(hub, round: int) -> GlobalModel:
    model = GlobalModel(round, {"w": torch.full((3,), float(round))}, study_digest=STUDY)
    hub.publish(model)
    return model


def test_a_site_has_the_list_with_the_model_and_refuses_the_revoked_partys_message(place):
    enrolment, hub, sides = place
    model = publish(hub, 0)
    for name, side in sides.items():
        side.fetch(name, 0)
    SiteChannel(sides["south"], "south", 1, model=model).send(1, "keys", b"mine")
    (sealed,) = [one.sealed for one in hub.collect_messages(1, 1, "keys", ["south"], WAIT_S)]
    north = SiteChannel(sides["north"], "north", 1, model=model, parties=("north", "south"))
    assert north.open(sealed, "south").data == b"mine"
    enrol.revoke(enrolment.authority, "south")
    publish(hub, 1)
    sides["north"].fetch("north", 1)
    with pytest.raises(WireError, match="the certificate of 'south' was revoked"):
        north.open(sealed, "south")
    kept = (enrolment.credentials("north") / "revoked.crl").read_text()
    assert kept == Identity(enrolment.credentials("hub")).revocations()


def test_a_model_with_an_older_list_is_refused_with_the_reason_until_one_with_the_newest_comes(place):
    enrolment, hub, sides = place
    file = enrolment.credentials("hub") / "revoked.crl"
    older = file.read_bytes()
    enrol.revoke(enrolment.authority, "south")
    newest = file.read_bytes()
    publish(hub, 0)
    north, reasons, refused = sides["north"], [], threading.Event()
    north.on_refused = lambda reason: (reasons.append(reason), refused.set())
    north.fetch("north", 0)
    file.write_bytes(older)
    publish(hub, 1)
    received: list[GlobalModel] = []
    waiting = threading.Thread(target=lambda: received.append(north.fetch("north", 1)), daemon=True)
    waiting.start()
    assert refused.wait(WAIT_S)
    assert received == []
    assert "the hub's model is refused: its list of revoked certificates is of" in reasons[0]
    file.write_bytes(newest)
    publish(hub, 2)
    waiting.join(WAIT_S)
    assert [one.round for one in received] == [2]

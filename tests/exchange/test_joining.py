"""Sites that come later, or again: over memory, shared storage and a broker the same model."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from broker_enrolment import Enrolment

from medfed.aggregation.fedavg import FedAvg
from medfed.exchange import DropOut, MemoryExchange
from medfed.exchange.folder import Folder, FolderStore
from medfed.exchange.nats import Nats
from medfed.federation.config import HubConfig
from medfed.federation.hub import run_hub
from medfed.wire.update import Update
from medfed.wire.weights import Difference

STUDY = "cd" * 32
PATIENCE_S = 60
# What each site adds to the model that it gets, in every round.
ADDS = {"north": 1.0, "south": 3.0, "west": 8.0}


def until(what) -> None:
    end = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)


def take_part(side, site: str, seen: list[int] | None = None) -> None:
    """Train in every round that asks this site, until the final model."""
    received = side.fetch(site, 0)
    while not received.final:
        if received.selects(site):
            [] if seen is None else seen.append(received.round)
            local = {"w": received.weights["w"] + ADDS[site]}
            side.send(Update(site, received.round + 1, Difference(local, received.weights), 1))
        received = side.fetch(site, received.round + 1)
    side.send(Update(site, received.round + 1, {}, 0))


def start(function, *arguments) -> threading.Thread:
    thread = threading.Thread(target=function, args=arguments, daemon=True)
    thread.start()
    return thread


@pytest.fixture(params=["folder", "nats"])
def opened(request, tmp_path, monkeypatch):
    """Return what opens a party's side of the exchange."""
    monkeypatch.setattr(FolderStore, "heartbeat_s", 0.2)
    broker = None
    if request.param == "nats":
        broker = Enrolment(tmp_path / "federation", sites=("north", "south", "west"))
        broker.start()

    def open_(party: str):
        if broker is None:
            exchange = Folder(url=str(tmp_path / "share"), poll_s=0.01)
        else:
            settings = {key: value for key, value in broker.exchange_of(party).items() if key != "kind"}
            exchange = Nats(**settings)
        if party == "hub":
            return exchange.open_hub(STUDY, tmp_path / "hub")
        return exchange.open_site(STUDY, party, tmp_path / party)

    yield open_
    if broker is not None:
        broker.end()


def test_a_hospital_joins_a_running_study_and_begins_with_the_newest_model(opened):
    hub = opened("hub")
    hub.advertise_study("name: a", ["north", "south"])
    admitted, sides, seen = [], {}, []
    hub.on_admitted(lambda: admitted)
    config = HubConfig(
        rounds=3, sites=("north", "south"), rule=FedAvg(), joining=True, study_digest=STUDY, deadline_s=60.0
    )

    def on_round(report):
        if report.round == 1:  # admitted while the study runs, and started then
            admitted.append("west")
            assert hub.joined_sites() == set()  # it is admitted, and nothing was heard of it yet
            sides["west"] = opened("west")
            until(lambda: "west" in hub.joined_sites())
            threads.append(start(take_part, sides["west"], "west", seen))

    sides |= {site: opened(site) for site in ("north", "south")}
    threads = [start(take_part, sides[site], site) for site in ("north", "south")]
    final = run_hub(config, hub, {"w": torch.zeros(1)}, on_round=on_round)
    # By hand: a round adds (1 + 3) / 2, with west (1 + 3 + 8) / 3. Round 2 was asked for before west came.
    assert seen == [2]
    assert float(final.weights["w"]) == 2 + 2 + 4
    assert "west" in hub.monitored_sites
    for thread in threads:
        thread.join(PATIENCE_S)
    for side in sides.values():
        side.close()
    hub.close()


def test_in_one_process_the_same_rounds_give_the_same_model():
    exchange = MemoryExchange(STUDY)
    config = HubConfig(
        rounds=3, sites=("north", "south", "west"), rule=FedAvg(), joins={"west": 3}, study_digest=STUDY
    )
    seen: list[int] = []

    def west() -> None:
        exchange.wait_for_model(2)
        take_part(exchange, "west", seen)

    threads = [start(take_part, exchange, site) for site in ("north", "south")] + [start(west)]
    final = run_hub(config, exchange, {"w": torch.zeros(1)})
    for thread in threads:
        thread.join(PATIENCE_S)
    assert seen == [2]
    assert float(final.weights["w"]) == 2 + 2 + 4


def test_a_site_that_declined_and_then_agreed_is_taken_in_without_a_new_hub(opened, caplog):
    hub, north, south = opened("hub"), opened("north"), opened("south")
    south.drop_out("south", DropOut.POLICY)
    south.close()
    config = HubConfig(
        rounds=2, sites=("north", "south"), rule=FedAvg(), minimum=2, study_digest=STUDY, return_s=PATIENCE_S
    )
    again: list = []

    def agree() -> None:
        until(lambda: hub.pending_sites == ("south",))
        again.append(opened("south"))
        take_part(again[0], "south")

    threads = [start(take_part, north, "north"), start(agree)]
    final = run_hub(config, hub, {"w": torch.zeros(1)})
    assert float(final.weights["w"]) == 4.0
    assert caplog.text.count("for south to be started again") == 1
    assert "too few" not in caplog.text
    for thread in threads:
        thread.join(PATIENCE_S)
    for side in (north, *again, hub):
        side.close()

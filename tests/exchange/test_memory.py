"""The memory exchange beside its contract: what it refuses, forgets and stores."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import torch

from medfed.errors import ExchangeError
from medfed.exchange import MemoryExchange
from medfed.exchange.memory import Memory
from medfed.wire.update import GlobalModel, Update


def model(round: int) -> GlobalModel:
    return GlobalModel(round, {"w": torch.full((2,), float(round))}, study_digest="study")


def update(site: str, round: int) -> Update:
    return Update(site, round, {"w": torch.ones(2)}, 3)


def test_it_connects_no_other_process():
    with pytest.raises(ExchangeError, match=r"exchange\.kind: 'memory' connects sites of one process only"):
        Memory().open_site("study", "north", Path("north"))
    with pytest.raises(ExchangeError, match="which have the study already"):
        Memory().offered_studies("north")
    assert isinstance(Memory().open_hub("study", Path("hub")), MemoryExchange)


def test_an_update_is_counted_with_its_bytes_and_an_older_rounds_is_forgotten():
    seen: list[bytes] = []
    exchange = MemoryExchange("study", on_bytes=seen.append)
    size = exchange.publish(model(0))
    exchange.send(update("north", 1))
    (arrival,) = exchange.collect(1, ["north"], 5.0)
    assert [len(data) for data in seen] == [size, arrival.bytes_up]
    assert exchange.transmission(update("north", 1)).bytes == arrival.bytes_up
    exchange.publish(model(1))
    assert list(exchange.collect(1, ["north"], 0.01)) == []


def test_a_model_is_published_once_the_hubs_copy_is_safe():
    exchange = MemoryExchange("study")
    exchange.publish(model(0))

    def full() -> None:
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        exchange.publish(model(1), full)
    assert exchange.fetch("north", 0).round == 0


def test_a_closed_hub_is_named_to_whoever_waits_or_sends():
    exchange = MemoryExchange("study")
    exchange.publish(model(0))
    exchange.close()
    with pytest.raises(ExchangeError, match="site 'north' waits for round 1, but the hub has closed"):
        exchange.fetch("north", 1)
    with pytest.raises(ExchangeError, match="site 'north' sends for round 1, but the hub has closed"):
        exchange.send(update("north", 1))
    with pytest.raises(ExchangeError, match="'north' writes for round 1, but the hub has closed"):
        exchange.send_message("north", 1, 1, "keys", b"x")
    with pytest.raises(ExchangeError, match="site 'north' waits for a message of round 1, but the hub has"):
        exchange.receive_message("north", 1, {"keys": 1})
    assert list(exchange.collect(1, ["north"], None)) == []


def test_a_late_update_of_a_model_that_the_hub_no_longer_holds_is_refused():
    exchange = MemoryExchange("study", asynchronous=True)
    exchange.publish(model(5))
    exchange.send(update("north", 3))
    (refused,) = exchange.collect_async(6, ["north"], 5.0, 1)
    assert "site 'north', round 3: it was trained from a model that the hub no longer holds" in str(
        refused.error
    )
    # Sent again, as after a lost answer: it is not collected a second time.
    exchange.send(update("north", 3))
    assert list(exchange.collect_async(6, ["north"], 0.01, 1)) == []


def test_a_secret_lasts_as_long_as_its_folder(tmp_path):
    MemoryExchange("study", secrets=tmp_path).store_secret("north", "key", b"\x00secret")
    again = MemoryExchange("study", secrets=tmp_path)
    assert again.load_secret("north", "key") == b"\x00secret"
    assert again.load_secret("south", "key") is None
    assert (tmp_path / "north" / "key.secret").stat().st_mode & 0o777 == 0o600
    assert MemoryExchange("study").load_secret("north", "key") is None


def test_a_site_that_writes_to_the_shared_model_is_noticed_before_another_starts_from_it():
    exchange = MemoryExchange()
    exchange.publish(GlobalModel(0, {"w": torch.zeros(2)}))
    received = exchange.fetch("north", 0)
    assert exchange.fetch("south", 0).weights["w"].tolist() == [0, 0]
    received.weights["w"].add_(1)
    with pytest.raises(ExchangeError, match="round 0: 'w' of the hub's model was changed in place"):
        exchange.fetch("south", 0)


def test_a_site_that_is_not_asked_waits_for_the_model_that_it_trains_from_or_that_ends_the_study():
    exchange, received = MemoryExchange(only_selected=True), []
    exchange.publish(GlobalModel(0, {"w": torch.zeros(2)}, participants=("south",)))
    assert exchange.fetch("south", 0).round == 0

    def north() -> None:
        received.append(exchange.fetch("north", 0).round)
        received.append(exchange.fetch("north", 2).round)

    site = threading.Thread(target=north)
    site.start()
    exchange.publish(GlobalModel(1, {"w": torch.zeros(2)}, participants=("north", "south")))
    while not received:
        time.sleep(0.001)
    for round in (2, 3):
        exchange.publish(GlobalModel(round, {"w": torch.zeros(2)}, participants=("south",)))
    exchange.publish(GlobalModel(4, {"w": torch.zeros(2)}, participants=(), final=True))
    site.join(10)
    assert received == [1, 4]


def test_a_site_that_is_not_asked_is_told_when_the_hub_closes():
    exchange = MemoryExchange(only_selected=True)
    exchange.publish(GlobalModel(0, {"w": torch.zeros(2)}, participants=("south",)))
    exchange.close()
    with pytest.raises(ExchangeError, match="'north' waits for round 0, but the hub has closed"):
        exchange.fetch("north", 0)

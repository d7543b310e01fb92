"""Site and hub say once what they wait for, and since when."""

from __future__ import annotations

import pytest
from chunked_updates import STUDY

from medfed.errors import ExchangeError
from medfed.exchange._waiting import SitesAwaited, WaitReporter


def test_a_long_wait_is_one_line_and_a_short_one_none():
    said: list[str] = []
    told = WaitReporter("north", said.append)
    told.look(None, 1000.0)
    told.look(("model", 1000.0), 1059.0)
    assert said == []
    told.look(("model", 1000.0), 1060.0)
    told.look(("model", 1000.0), 1065.0)
    assert said == ["north waits for the hub's model since 1970-01-01T00:16:40+00:00"]
    told.look(("message", 2000.0), 2100.0)
    assert said[1:] == ["north waits for the hub's message since 1970-01-01T00:33:20+00:00"]


def test_the_hub_says_once_per_site_and_round_what_it_waits_for_and_whether_the_site_is_there():
    said: list[str] = []
    told = SitesAwaited(said.append)
    ages = {"north": 2.0, "south": 500.0}
    for now in (1000.0, 1059.0):
        told.look(["north", "south", "west"], "update of round 1", ages, now)
    assert said == []
    for now in (1060.0, 1599.0):
        told.look(["north", "south", "west"], "update of round 1", ages, now)
    since = "update of round 1 since 1970-01-01T00:16:40+00:00"
    assert said == [
        f"the hub waits for south's {since}; it was last heard of at 1970-01-01T00:09:20+00:00",
        f"the hub waits for west's {since}; it has never been connected to this hub",
    ]
    told.look(["north"], "update of round 1", ages, 1600.0)
    assert said[2:] == [f"the hub waits for north's {since}; it is connected"]
    told.look(["west"], "update of round 2", ages, 1700.0)
    told.look(["west"], "update of round 2", ages, 1760.0)
    assert len(said) == 4


def test_a_site_and_a_hub_say_it_whoever_uses_them(folder_exchange, tmp_path, monkeypatch, caplog):
    """Statistics before a study and scripts of your own wait at the same sides as the commands."""
    monkeypatch.setattr("medfed.exchange._waiting.TELL_WAIT_S", 0.0)
    monkeypatch.setattr("medfed.exchange._waiting.TELL_CONNECTED_S", 0.0)
    hub = folder_exchange.open_hub(STUDY, tmp_path / "hub")
    north = folder_exchange.open_site(STUDY, "north", tmp_path / "north")
    north.max_wait_s, north.awaited_as = 0.05, "sum of all hospitals' statistics"
    with pytest.raises(ExchangeError, match="no model came"):
        north.fetch("north", 0)
    assert [*hub.collect(1, ["north"], 0.05)] == []
    hub.awaited_as = "statistics"
    assert [*hub.collect_messages(2, 0, "keys", ["north"], 0.05)] == []
    said = [line.partition(" since ")[0] for line in caplog.messages]
    assert said.count("north waits for the hub's sum of all hospitals' statistics") == 1
    assert said.count("the hub waits for north's update of round 1") == 1
    assert said.count("the hub waits for north's statistics") == 1
    north.close()
    hub.close()

"""Several hubs at one exchange: another study's disturbs nobody, a second one of one study is refused."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from medfed.errors import EndedError, ExchangeError
from medfed.exchange.folder import Folder, FolderStore
from medfed.wire.update import GlobalModel

A, B = "aa" * 32, "bb" * 32
PATIENCE_S = 30


@pytest.fixture
def share(tmp_path, monkeypatch):
    monkeypatch.setattr(FolderStore, "heartbeat_s", 0.4)
    monkeypatch.setattr(FolderStore, "settle_s", 0.0)
    return Folder(url=str(tmp_path / "share"), poll_s=0.01)


def model(study: str, value: float = 1.0, round: int = 0) -> GlobalModel:
    return GlobalModel(round, {"w": torch.full((3,), value)}, study_digest=study)


def until(what) -> None:
    end = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_second_hub_of_one_study_is_refused_and_touches_nothing(share, tmp_path):
    first = share.open_hub(A, tmp_path / "first")
    first.advertise_study("name: a", ["north"])
    first.publish(model(A))
    north = share.open_site(A, "north", tmp_path / "north")
    with pytest.raises(ExchangeError, match="another hub runs this study at this exchange now"):
        share.open_hub(A, tmp_path / "second")
    assert north.fetch("north", 0).round == 0
    assert [one.digest for one in share.offered_studies("north")] == [A]
    # Killed, it stands in nobody's way, and its own run goes on at once.
    first.disconnect()
    share.open_hub(A, tmp_path / "first").disconnect()
    share.open_hub(A, tmp_path / "second").close()
    north.close()


def test_a_hub_whose_run_is_continued_elsewhere_stops(share, tmp_path):
    import shutil

    first = share.open_hub(A, tmp_path / "first")
    first.publish(model(A))
    shutil.copytree(tmp_path / "first", tmp_path / "copy")
    second = share.open_hub(A, tmp_path / "copy")
    with pytest.raises(ExchangeError, match="another hub of this study was started later"):
        list(first.collect(1, ["north"], PATIENCE_S))
    assert second._presence._replaced is None
    first.disconnect()
    second.close()


def test_two_studies_are_both_offered_and_one_that_has_ended_is_not(share, tmp_path):
    hubs = [share.open_hub(study, tmp_path / study[:2]) for study in (A, B)]
    for hub, text, sites in zip(hubs, ("name: a", "name: b"), (["north"], ["north", "south"]), strict=True):
        hub.advertise_study(text, sites)
    assert [(one.digest, one.text, one.is_live) for one in share.offered_studies("north")] == [
        (A, "name: a", True),
        (B, "name: b", True),
    ]
    assert [one.digest for one in share.offered_studies("south")] == [B]
    hubs[1].close()
    assert [one.digest for one in share.offered_studies("north")] == [A]
    # A hospital that was away when it ended still finds the study that it had begun.
    assert {one.digest for one in share.offered_studies("south", known=[B])} == {B}
    hubs[0].disconnect()
    hubs[0] = share.open_hub(B, tmp_path / "bb")
    hubs[0].advertise_study("name: b", ["north"])
    live = {one.digest: one.is_live for one in share.offered_studies("north")}
    assert live == {A: False, B: True}
    hubs[0].close()


def test_hubs_that_offer_at_once_end_up_with_both_studies_on_the_list(share, tmp_path, monkeypatch):
    from medfed.exchange import _hub_transport

    for name in ("CHECK_STORE_S", "CHECK_OFFERS_S"):
        monkeypatch.setattr(_hub_transport, name, 0.05)
    first, second = (share.open_hub(study, tmp_path / study[:2]) for study in (A, B))
    first.advertise_study("name: a", ["north"])
    second.advertise_study("name: b", ["north"])
    # As if the second had read the list before the first one wrote its own study.
    second._objects.put_control("offers", f'["{B}"]', name="glob/site-north/studies/m")
    first.publish(model(A))
    assert list(first.collect(1, ["north"], 0.5)) == []
    assert [one.digest for one in share.offered_studies("north")] == [B, A]
    first.disconnect()
    second.disconnect()


def test_a_site_gives_up_once_its_hub_is_silent_and_not_while_the_others_train(share, tmp_path):
    hub = share.open_hub(A, tmp_path / "hub")
    hub.publish(model(A))
    north = share.open_site(A, "north", tmp_path / "north")
    north.max_silence_s = 2.0
    north.fetch("north", 0)
    threads = []

    def publish_late() -> None:
        time.sleep(3.0)  # its heartbeats go on meanwhile
        hub.publish(model(A, round=1))
        hub.disconnect()

    threads.append(threading.Thread(target=publish_late))
    threads[0].start()
    assert north.fetch("north", 1).round == 1
    threads[0].join()
    with pytest.raises(EndedError, match=r"no sign of life from the hub for .* hours \(give_up_hours"):
        north.fetch("north", 2)
    north.close()


def test_a_site_that_is_offered_nothing_gives_up_and_says_once_what_it_waits_for(share):
    said: list[str] = []
    with pytest.raises(EndedError, match=r"no study was offered to it within 0\.0001 hours"):
        share.offered_studies("north", max_wait_s=0.36, log=said.append)
    assert said == ["site north waits until the hub offers a study that has a site 'north'"]


def test_a_site_whose_study_has_ended_without_it_does_not_wait(share, tmp_path, monkeypatch):
    monkeypatch.setattr(FolderStore, "settle_s", 3600.0)
    hub = share.open_hub(A, tmp_path / "hub")
    hub.publish(model(A))
    north = share.open_site(A, "north", tmp_path / "north")
    north.fetch("north", 0)
    hub.close()
    with pytest.raises(EndedError, match="the hub has closed the study"):
        north.fetch("north", 1)
    north.close()


def test_a_final_model_that_a_share_shows_after_the_studys_end_is_waited_for(share, tmp_path, monkeypatch):
    monkeypatch.setattr(FolderStore, "settle_s", 3600.0)
    hub = share.open_hub(A, tmp_path / "hub")
    hub.publish(model(A))
    north = share.open_site(A, "north", tmp_path / "north")
    north.fetch("north", 0)
    early = {name: hub._objects.get_hub_object(name) for name in ("current", "announced")}
    hub.publish(GlobalModel(1, {"w": torch.zeros(3)}, final=True, study_digest=A))
    late = {name: hub._objects.get_hub_object(name) for name in early}
    hub.close()
    store = share._store()
    for name, data in early.items():  # the synchronised copy is behind
        store.put(north._objects.hub_object(name), data)
    threading.Timer(
        0.5, lambda: [store.put(north._objects.hub_object(name), data) for name, data in late.items()]
    ).start()
    assert north.fetch("north", 1).final
    north.close()
    store.close()

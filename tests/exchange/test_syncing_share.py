"""A share that each machine has a copy of, synchronised in any order, late and in halves."""

from __future__ import annotations

import shutil
import threading

import pytest
import torch
from synchroniser import Synchroniser

from medfed.errors import WireError
from medfed.exchange.folder import Folder, FolderStore
from medfed.wire.update import GlobalModel, Update
from medfed.wire.weights import Difference

STUDY = "ab" * 32
PATIENCE_S = 60
ROUNDS = 3


@pytest.fixture
def synchronised(tmp_path, monkeypatch):
    monkeypatch.setattr(FolderStore, "chunk_bytes", 200)
    made = []

    def make(seed: int, *sites: str) -> dict[str, Folder]:
        made.append(Synchroniser(tmp_path, sites, seed, STUDY))
        return {party: Folder(url=str(copy), poll_s=0.01) for party, copy in made[-1].copies.items()}

    yield make
    for one in made:
        one.stop()


@pytest.mark.parametrize("seed", [1, 2])
def test_pieces_that_come_late_in_any_order_or_in_halves_are_waited_for(synchronised, tmp_path, seed):
    parties = synchronised(seed, "north", "south")
    failed: list[BaseException] = []

    def train(site: str, plus: float) -> None:
        try:
            side = parties[site].open_site(STUDY, site, tmp_path / f"{site}-run")
            for round in range(ROUNDS):
                weights = side.fetch(site, round).weights
                delta = Difference({name: weights[name] + plus for name in weights}, weights)
                side.send(Update(site, round + 1, delta, 1))
            assert side.fetch(site, ROUNDS).final
            side.close()
        except BaseException as error:
            failed.append(error)
            raise

    threads = [threading.Thread(target=train, args=one) for one in (("north", 1.0), ("south", 3.0))]
    hub = parties["hub"].open_hub(STUDY, tmp_path / "hub-run")
    for thread in threads:
        thread.start()
    weights = {f"layer{number}": torch.zeros(40) for number in range(5)}
    for round in range(ROUNDS):
        hub.publish(GlobalModel(round, weights, study_digest=STUDY))
        arrived = sorted(hub.collect(round + 1, ["north", "south"], PATIENCE_S), key=lambda one: one.site)
        assert [one.error for one in arrived] == [None, None]
        # By hand: the sites add 1 and 3, so that the mean rises by 2 in each round.
        sums = [float(one.update.delta["layer4"].mean()) for one in arrived]
        assert sums == [1.0, 3.0]
        weights = {name: tensor + 2.0 for name, tensor in weights.items()}
    hub.publish(GlobalModel(ROUNDS, weights, study_digest=STUDY, final=True))
    for thread in threads:
        thread.join(PATIENCE_S)
    assert failed == []
    hub.close()


def test_a_piece_that_never_comes_is_told_at_once_and_refused_at_the_deadline(synchronised, tmp_path, caplog):
    parties = synchronised(3, "north")
    hub = parties["hub"].open_hub(STUDY, tmp_path / "hub-run")
    hub.publish(GlobalModel(0, {"w": torch.zeros(200)}, study_digest=STUDY))
    north = parties["north"].open_site(STUDY, "north", tmp_path / "north-run")
    weights = north.fetch("north", 0).weights
    north.send(Update("north", 1, Difference({"w": weights["w"] + 1}, weights), 1))
    chunks = tmp_path / "north" / "up" / STUDY[:16] / "north" / "r00001" / "c"
    lost = sorted(chunks.iterdir())[1]
    lost.unlink()
    shutil.rmtree(tmp_path / "hub" / "up" / STUDY[:16] / "north" / "r00001" / "c", ignore_errors=True)
    (arrival,) = hub.collect(1, ["north"], 3)
    assert isinstance(arrival.error, WireError)
    assert "by the deadline it was not whole: chunk" in str(arrival.error)
    assert "its update is not whole yet" in caplog.text
    north.close()
    hub.close()


class LateShare:
    """Two copies of a share: a test says when, and in which order, the hub sees what the site wrote."""

    def __init__(self, folder) -> None:
        self.folder, self.copies = folder, {"hub": folder / "hub", "north": folder / "north"}
        self.hub = Folder(url=str(self.copies["hub"]), poll_s=0.01).open_hub(STUDY, folder / "hub-run")
        self.site = None

    def publish(self, round: int, value: float) -> None:
        model = GlobalModel(round, {"w": torch.tensor([value])}, study_digest=STUDY, asynchronous=True)
        self.hub.publish(model)
        shutil.copytree(self.copies["hub"] / "glob", self.copies["north"] / "glob", dirs_exist_ok=True)

    def train(self, round: int, to: float) -> None:
        """Send the update of the model of a round."""
        if self.site is None:
            self.site = Folder(url=str(self.copies["north"]), poll_s=0.01).open_site(
                STUDY, "north", self.folder / "north-run"
            )
        weights = self.site.fetch("north", round).weights
        self.site.send(Update("north", round + 1, Difference({"w": torch.tensor([to])}, weights), 1))

    def show(self, *names: str) -> None:
        """Let the hub see some of what the site wrote."""
        own = f"up/{STUDY[:16]}/north"
        for name in names:
            source, target = self.copies["north"] / own / name, self.copies["hub"] / own / name
            shutil.copytree(source, target, dirs_exist_ok=True)

    def collect(self, round: int, deadline_s: float = 0.5) -> list:
        return list(self.hub.collect_async(round, ["north"], deadline_s, 1))

    def close(self) -> None:
        if self.site is not None:
            self.site.close()
        self.hub.close()


@pytest.fixture
def late_share(tmp_path):
    share = LateShare(tmp_path)
    yield share
    share.close()


def deltas(received) -> list:
    return [(one.update.round, float(one.update.delta["w"])) if one.update else one.error for one in received]


def test_without_rounds_a_later_update_that_is_shown_first_waits_for_the_earlier_one(late_share, caplog):
    late_share.publish(0, 0.0)
    late_share.train(0, to=1.0)
    late_share.publish(1, 10.0)  # another site's update was merged
    late_share.train(1, to=12.0)
    late_share.show("announced", "r00002")
    assert deltas(late_share.collect(2)) == []
    assert "round 1: its update is not whole yet (its manifest is not there" in caplog.text
    late_share.show("r00001")
    # By hand: from 0 to 1, and from 10 to 12.
    assert deltas(late_share.collect(2)) == [(1, 1.0)]
    assert deltas(late_share.collect(2)) == [(2, 2.0)]


def test_without_rounds_an_update_that_never_comes_is_refused_by_name_and_the_next_one_counts(
    late_share, monkeypatch
):
    monkeypatch.setattr(late_share.hub._partial, "_settle_s", 0.2)
    late_share.publish(0, 0.0)
    late_share.train(0, to=1.0)
    late_share.publish(1, 10.0)
    late_share.train(1, to=12.0)
    late_share.show("announced", "r00002")
    (refused,) = late_share.hub.collect_async(2, ["north"], 5, 1)
    assert (
        "site 'north', round 1: its manifest is not there, and a later update says that it was sent"
        in str(refused.error)
    )
    assert deltas(late_share.collect(2)) == [(2, 2.0)]


def test_without_rounds_a_round_for_which_nothing_was_sent_is_not_waited_for(late_share):
    late_share.publish(0, 0.0)
    late_share.train(0, to=1.0)
    late_share.show("announced", "r00001")
    assert deltas(late_share.collect(1)) == [(1, 1.0)]
    for round in range(1, 8):
        late_share.publish(round, 10.0)
    late_share.train(7, to=12.0)
    late_share.show("announced", "r00008")
    assert deltas(late_share.collect(8)) == [(8, 2.0)]


def test_without_rounds_a_hub_that_starts_again_does_not_wait_for_what_it_refused_and_deleted(late_share):
    late_share.publish(0, 0.0)
    late_share.train(0, to=1.0)
    late_share.show("announced", "r00001")
    assert deltas(late_share.collect(1)) == [(1, 1.0)]  # and is refused by the merge, which is not shown here
    late_share.publish(1, 0.0)
    late_share.hub.disconnect()
    late_share.hub = Folder(url=str(late_share.copies["hub"]), poll_s=0.01).open_hub(
        STUDY, late_share.folder / "hub-run"
    )
    late_share.publish(1, 0.0)
    late_share.train(1, to=5.0)
    late_share.show("announced", "r00002")
    assert deltas(late_share.collect(2)) == [(2, 5.0)]

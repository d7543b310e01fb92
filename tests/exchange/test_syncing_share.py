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

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest
import torch

# Make the helpers in this folder importable; test modules are imported by path and have no package.
sys.path.insert(0, str(Path(__file__).parent))

import party
from chunked_updates import CHUNK_BYTES, PATIENCE_S, STUDY, filled
from federation import Federation, federations
from link import Link
from simulated import simulated

from medfed.exchange.folder import Folder, FolderStore
from medfed.federation.site import SiteRun, train_site
from medfed.wire.update import GlobalModel
from medfed.wire.weights import digest, weights_of


@pytest.fixture
def federation(tmp_path):
    yield from federations(lambda exchange_of, **settings: Federation(tmp_path, exchange_of, **settings))


@pytest.fixture
def link(enrolment, tmp_path):
    started = Link(enrolment, tmp_path)
    yield started
    started.close()


@pytest.fixture
def folder_exchange(tmp_path, monkeypatch) -> Folder:
    """Return an exchange over a folder in chunks of 1000 bytes."""
    monkeypatch.setattr(FolderStore, "chunk_bytes", CHUNK_BYTES)
    return Folder(url=str(tmp_path / "share"), poll_s=0.01)


@pytest.fixture
def hub_and_north(folder_exchange, tmp_path):
    """A hub, and a site that has the untrained model."""
    hub = folder_exchange.open_hub(STUDY, tmp_path / "hub")
    hub.publish(GlobalModel(0, filled(0.0), study_digest=STUDY))
    north = folder_exchange.open_site(STUDY, "north", tmp_path / "north")
    north.fetch("north", 0)
    yield hub, north
    north.close()
    hub.close()


@pytest.fixture
def sender_waits(hub_and_north, monkeypatch):
    """Return an event that whoever sends waits for after 10 chunks."""
    may_continue = threading.Event()
    put_many = FolderStore.put_many

    def put_some(self, objects, stored):
        def paused():
            for number, piece in enumerate(objects):
                if number == 10:
                    assert may_continue.wait(PATIENCE_S)
                yield piece

        return put_many(self, paused(), stored)

    monkeypatch.setattr(FolderStore, "put_many", put_some)
    yield may_continue
    may_continue.set()


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """Return the final digest of the study in `party.py`, run in one process over the memory exchange."""
    digests: dict[tuple, str] = {}

    def run(sites=("north", "south"), rounds=3, width=64) -> str:
        key = (sites, rounds, width)
        if key not in digests:
            folder = tmp_path_factory.mktemp("memory")
            settings = {"rounds": rounds, "width": width}

            def fit(name, exchange):
                (folder / name).mkdir()
                train_site(
                    name,
                    party.initial(settings),
                    party.Cases(name),
                    exchange,
                    party.training(settings),
                    SiteRun(folder / name),
                )

            threads = torch.get_num_threads()
            torch.set_num_threads(1)
            result = simulated(
                {name: (lambda exchange, name=name: fit(name, exchange)) for name in sites},
                weights_of(party.initial(settings)),
                rule=party.FedAvg(),
                rounds=rounds,
                study_digest=party.STUDY,
                minimum=len(sites),
            )
            torch.set_num_threads(threads)
            digests[key] = digest(result.weights)
        return digests[key]

    return run

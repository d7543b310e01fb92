from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

# Make the helpers in this folder importable; test modules are imported by path and have no package.
sys.path.insert(0, str(Path(__file__).parent))

import party
from broker_enrolment import Enrolment
from federation import Federation, federations
from simulated import simulated

from medfed.federation.site import SiteRun, train_site
from medfed.wire.weights import digest, weights_of


@pytest.fixture
def federation(tmp_path):
    yield from federations(lambda exchange_of, **settings: Federation(tmp_path, exchange_of, **settings))


@pytest.fixture
def enrolment(tmp_path):
    found = Enrolment(tmp_path)
    yield found
    found.end()


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """Return the final digest of the study in `party.py`, run in one process over the memory exchange."""
    found: dict[tuple, str] = {}

    def run(sites=("north", "south"), rounds=3, width=64) -> str:
        key = (sites, rounds, width)
        if key not in found:
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
                study=party.STUDY,
                minimum=len(sites),
            )
            torch.set_num_threads(threads)
            found[key] = digest(result.weights)
        return found[key]

    return run

"""Sites of one process: turns, random states of their own, and the sites that functions are given for."""

from __future__ import annotations

import random
import threading

import numpy as np
import pytest
import torch

from medfed.aggregation.fedavg import FedAvg
from medfed.errors import StudyError
from medfed.federation.config import HubConfig
from medfed.federation.simulation import SiteScheduler, simulate


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002


def seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)


def test_a_site_that_waits_goes_on_with_its_own_random_states() -> None:
    scheduler, drawn, order = SiteScheduler(), {}, []
    north_waits, south_done = threading.Event(), threading.Event()

    def north() -> None:
        with scheduler.turn():
            seed_all(1)
            first = draw()
            with scheduler.idle():
                north_waits.set()
                assert south_done.wait(20)
            order.append("north")
            drawn["north"] = (first, draw())

    def south() -> None:
        assert north_waits.wait(20)
        with scheduler.turn():
            seed_all(2)
            order.append("south")
            drawn["south"] = (draw(), draw())
        south_done.set()

    seed_all(3)
    threads = [threading.Thread(target=site) for site in (north, south)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert order == ["south", "north"]
    after = draw()
    for seed, site in ((1, "north"), (2, "south")):
        seed_all(seed)
        assert drawn[site] == (draw(), draw())
    seed_all(3)
    assert after == draw()


def test_one_site_works_at_a_time() -> None:
    scheduler, working, most = SiteScheduler(), [0], [0]

    def site() -> None:
        with scheduler.turn():
            for _ in range(50):
                working[0] += 1
                most[0] = max(most[0], working[0])
                working[0] -= 1
                with scheduler.idle():
                    pass

    threads = [threading.Thread(target=site) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert most == [1]


def test_a_function_is_needed_for_each_site_of_the_hub() -> None:
    config = HubConfig(1, ("north", "south"), FedAvg())
    with pytest.raises(
        StudyError,
        match=r"^simulate: HubConfig\.sites are north, south, functions are given for north, west;",
    ):
        simulate({"west": lambda exchange: None, "north": lambda exchange: None}, {}, config)

"""An attacker joins the quickstart's four hospitals: robust rules train on, FedAvg fails. More in benchmarks/robust.py."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from attacks import SMALL, Attacked, Hospitals, dice_after, hospitals

from medfed.rules import Rule
from medfed.rules.centred_clipping import CentredClipping
from medfed.rules.fedavg import FedAvg
from medfed.rules.geometric_median import GeometricMedian

pytestmark = pytest.mark.slow

# The bound: within this of the clean run.
WITHIN = 0.05


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def found() -> Hospitals:
    return hospitals(SMALL)


@pytest.fixture(scope="module")
def clean(found: Hospitals) -> float:
    return dice_after(found, FedAvg())


def test_the_clean_run_learns(clean: float) -> None:
    assert clean > 0.6


@pytest.mark.parametrize("attack", ["sign_flip", "times_a_million", "random"])
def test_fedavg_fails(found: Hospitals, clean: float, attack: str) -> None:
    assert dice_after(found, Attacked(rule=FedAvg(), attack=attack)) < clean - 0.3


@pytest.mark.parametrize(
    "rule, attack",
    [
        (CentredClipping(), "sign_flip"),
        (GeometricMedian(), "times_a_million"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_robust_rule_stays_near_the_clean_run(
    found: Hospitals, clean: float, rule: Rule, attack: str
) -> None:
    assert dice_after(found, Attacked(rule=rule, attack=attack)) > clean - WITHIN

"""Two of eight sites of the quickstart's hospitals attack: robust rules train on, FedAvg fails. All in benchmarks/robust.py."""

from __future__ import annotations

import pytest
import torch
from attacks import SMALL, Attacked, Hospitals, dice_after, hospitals

from medfed.rules import Rule
from medfed.rules.fedavg import FedAvg
from medfed.rules.median import Median
from medfed.rules.multi_krum import MultiKrum
from medfed.rules.trimmed_mean import TrimmedMean

torch.set_num_threads(1)

pytestmark = pytest.mark.slow

# The bound: within this of the clean run.
WITHIN = 0.05


@pytest.fixture(scope="module")
def found() -> Hospitals:
    return hospitals(SMALL)


@pytest.fixture(scope="module")
def clean(found: Hospitals) -> float:
    return dice_after(found, FedAvg())


def test_the_clean_run_learns(clean: float) -> None:
    assert clean > 0.5


@pytest.mark.parametrize("attack", ["sign_flip", "times_a_million"])
def test_fedavg_fails(found: Hospitals, clean: float, attack: str) -> None:
    assert dice_after(found, Attacked(rule=FedAvg(), attack=attack)) < clean - 0.3


@pytest.mark.parametrize(
    "rule, attack",
    [
        (Median(), "times_a_million"),
        (MultiKrum(attackers=2), "sign_flip"),
        (TrimmedMean(trim=2), "a_little"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_robust_rules_stay_near_the_clean_run(
    found: Hospitals, clean: float, rule: Rule, attack: str
) -> None:
    assert dice_after(found, Attacked(rule=rule, attack=attack)) > clean - WITHIN

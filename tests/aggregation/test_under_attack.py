"""One of nine sites attacks the quickstart study: robust rules train as without it, FedAvg fails.

Each of the four hospitals is split into two sites, and each rule is compared with its own run on the
eight honest sites. benchmarks/robust.py has more attacks and longer runs, and RESULTS-robust.md lists
what each paper guarantees.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from attacks import SMALL, Attacked, Hospitals, dice_after, hospitals

from medfed.aggregation import Rule
from medfed.aggregation.bulyan import Bulyan
from medfed.aggregation.centred_clipping import CentredClipping
from medfed.aggregation.fedavg import FedAvg
from medfed.aggregation.geometric_median import GeometricMedian
from medfed.aggregation.krum import Krum
from medfed.aggregation.median import Median
from medfed.aggregation.multi_krum import MultiKrum
from medfed.aggregation.trimmed_mean import TrimmedMean

pytestmark = pytest.mark.slow

# The largest accepted loss of Dice against the clean run.
WITHIN = 0.05


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def attacked_hospitals() -> Hospitals:
    return hospitals((*SMALL, "train.rounds=4"), parts=2)


def test_fedavg_learns_and_an_attacker_ruins_it(attacked_hospitals: Hospitals) -> None:
    clean = dice_after(attacked_hospitals, FedAvg())
    assert clean > 0.4
    assert dice_after(attacked_hospitals, Attacked(rule=FedAvg(), attack="random")) < clean - 0.3


@pytest.mark.parametrize(
    "rule, attack",
    [
        (Median(), "sign_flip"),
        (TrimmedMean(trim=1), "times_a_million"),
        (Krum(mixing=True), "a_little"),
        (MultiKrum(mixing=True), "random"),
        (Bulyan(mixing=True), "sign_flip"),
        (GeometricMedian(), "times_a_million"),
        (CentredClipping(), "a_little"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_robust_rule_stays_near_its_clean_run(
    attacked_hospitals: Hospitals, rule: Rule, attack: str
) -> None:
    clean = dice_after(attacked_hospitals, rule)
    assert dice_after(attacked_hospitals, Attacked(rule=rule, attack=attack)) > clean - WITHIN

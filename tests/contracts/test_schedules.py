"""Every schedule of the registry keeps the contract of medfed.testing; some are compared with torch's."""

from __future__ import annotations

from math import cos, pi

import pytest
import torch
from contract import checks_of, run

from medfed.errors import StudyError
from medfed.models.schedules.cosine import Cosine
from medfed.models.schedules.polynomial import Polynomial
from medfed.models.schedules.step import Step
from medfed.models.schedules.warmup_cosine import WarmupCosine
from medfed.registry import kinds
from medfed.testing import check_schedule
from medfed.testing._schedules import EPOCHS, optimiser, rates


@checks_of(check_schedule)
@pytest.mark.parametrize("name", sorted(kinds("schedules")))
def test_it_keeps_the_contract(name: str, check: str) -> None:
    run(check_schedule, check, kinds("schedules")[name]())  # type: ignore[arg-type]


def test_cosine_is_torchs() -> None:
    peer = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser(), T_max=EPOCHS, eta_min=0.05)
    assert rates(Cosine(floor=0.1).build(optimiser(), EPOCHS), EPOCHS) == pytest.approx(rates(peer, EPOCHS))


def test_polynomial_is_torchs() -> None:
    peer = torch.optim.lr_scheduler.PolynomialLR(optimiser(), total_iters=EPOCHS, power=0.9)
    assert rates(Polynomial().build(optimiser(), EPOCHS), EPOCHS) == pytest.approx(rates(peer, EPOCHS))


def test_step_is_torchs() -> None:
    peer = torch.optim.lr_scheduler.StepLR(optimiser(), step_size=5, gamma=0.3)
    ours = Step(every=5, gamma=0.3).build(optimiser(), EPOCHS)
    assert rates(ours, EPOCHS) == pytest.approx(rates(peer, EPOCHS))


def test_warmup_rises_in_a_line_and_falls_by_half_a_cosine() -> None:
    schedule = WarmupCosine(warmup=4, floor=0.2)
    factors = [schedule.factor(epoch, 12) for epoch in range(12)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4] == 1.0
    # Half of the eight epochs after the warm-up.
    assert factors[8] == pytest.approx(0.6)
    assert factors[11] == pytest.approx(0.2 + 0.8 * (1 + cos(pi * 7 / 8)) / 2)


def test_a_warmup_as_long_as_the_run_is_refused() -> None:
    with pytest.raises(StudyError, match="warmup: 5 of 5 epochs leaves no epoch"):
        WarmupCosine(warmup=5).build(optimiser(), 5)

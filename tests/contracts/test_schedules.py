"""What every schedule keeps: a factor from 0 to 1 for every epoch, and a checkpoint of plain numbers.

The schedules are those the folder holds, so a new file is held to this without an edit here.
"""

from __future__ import annotations

import io
from math import cos, isfinite, pi

import msgspec
import pytest
import torch

from medfed import registry as kinds
from medfed.errors import StudyError
from medfed.models.schedules import Schedule
from medfed.models.schedules.cosine import Cosine
from medfed.models.schedules.polynomial import Polynomial
from medfed.models.schedules.step import Step
from medfed.models.schedules.warmup_cosine import WarmupCosine

SCHEDULES = kinds.kinds("schedules")
EPOCHS = 12


@pytest.fixture(params=sorted(SCHEDULES))
def schedule(request: pytest.FixtureRequest) -> Schedule:
    return SCHEDULES[request.param]()  # type: ignore[return-value]


def optimiser(lr: float = 0.5) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)


def rates(scheduler: torch.optim.lr_scheduler.LRScheduler, epochs: int) -> list[float]:
    """Return the rate during each epoch, stepping as Lightning does: after an epoch's last batch."""
    found = []
    for _ in range(epochs):
        found.append(scheduler.get_last_lr()[0])
        scheduler.optimizer.step()
        scheduler.step()
    return found


def test_each_epoch_trains_at_the_rate_times_its_factor(schedule: Schedule) -> None:
    factors = [schedule.factor(epoch, EPOCHS) for epoch in range(EPOCHS)]
    assert all(isfinite(factor) and 0 <= factor <= 1 for factor in factors)
    assert max(factors) == 1
    assert factors[0] > 0
    assert rates(schedule.build(optimiser(), EPOCHS), EPOCHS) == pytest.approx([0.5 * f for f in factors])


def test_stepping_on_after_the_run_is_harmless(schedule: Schedule) -> None:
    assert all(isfinite(rate) and rate >= 0 for rate in rates(schedule.build(optimiser(), 6), 9))


def test_it_goes_on_from_a_checkpoint_that_torch_reads_without_pickle(schedule: Schedule) -> None:
    whole = rates(schedule.build(optimiser(), EPOCHS), EPOCHS)
    first_optimiser = optimiser()
    first = schedule.build(first_optimiser, EPOCHS)
    rates(first, 5)
    file = io.BytesIO()
    torch.save([first.state_dict(), first_optimiser.state_dict()], file)
    file.seek(0)
    state, optimiser_state = torch.load(file, weights_only=True)
    second_optimiser = optimiser()
    second = schedule.build(second_optimiser, EPOCHS)
    second.load_state_dict(state)
    second_optimiser.load_state_dict(optimiser_state)
    assert rates(second, EPOCHS - 5) == whole[5:]


def test_a_study_file_can_hold_it(schedule: Schedule) -> None:
    assert msgspec.json.decode(msgspec.json.encode(schedule), type=type(schedule)) == schedule


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

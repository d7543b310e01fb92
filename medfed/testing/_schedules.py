"""The contract of a schedule: a factor from 0 to 1 for every epoch, and a checkpoint of plain numbers."""

from __future__ import annotations

import io
from math import isclose, isfinite

import torch

from medfed.models.schedules import Schedule
from medfed.testing._contract import OF_EVERY_KIND, Contract

check_schedule: Contract[Schedule] = Contract("schedule", OF_EVERY_KIND)

EPOCHS = 12


def optimiser(lr: float = 0.5) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)


def rates(scheduler: torch.optim.lr_scheduler.LRScheduler, epochs: int) -> list[float]:
    """Return the rate during each epoch, stepping as Lightning does: after an epoch's last batch."""
    result = []
    for _ in range(epochs):
        result.append(float(scheduler.get_last_lr()[0]))
        scheduler.optimizer.step()
        scheduler.step()
    return result


@check_schedule.check
def each_epoch_trains_at_the_rate_times_its_factor(schedule: Schedule) -> None:
    factors = [schedule.factor(epoch, EPOCHS) for epoch in range(EPOCHS)]
    assert all(isfinite(factor) and 0 <= factor <= 1 for factor in factors)
    assert max(factors) == 1
    assert factors[0] > 0
    trained = rates(schedule.build(optimiser(), EPOCHS), EPOCHS)
    assert all(
        isclose(rate, 0.5 * factor, rel_tol=1e-6) for rate, factor in zip(trained, factors, strict=True)
    )


@check_schedule.check
def stepping_on_after_the_run_is_harmless(schedule: Schedule) -> None:
    assert all(isfinite(rate) and rate >= 0 for rate in rates(schedule.build(optimiser(), 6), 9))


@check_schedule.check
def it_goes_on_from_a_checkpoint_that_torch_reads_without_pickle(schedule: Schedule) -> None:
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

"""The learning rate over time: one file a schedule, named after it.

To add one, write `schedules/<name>.py` with a `Schedule` record tagged `<name>` that says the rate's `factor`
at an epoch; the contract test in tests/contracts finds it. A schedule sees one continuous run: the epochs of
all rounds together, counted through.
"""

from medfed.models.schedules._schedule import Schedule

__all__ = ["Schedule"]

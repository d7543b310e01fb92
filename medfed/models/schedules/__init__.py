"""The learning rate over time: one file per schedule, named after it.

To add one, write `schedules/<name>.py` with a `Schedule` record tagged `<name>` that returns the rate's
`factor` at an epoch; the contract test in tests/contracts finds it. A schedule sees one continuous run:
epochs are counted over all rounds.
"""

from medfed.models.schedules._schedule import Schedule

__all__ = ["Schedule"]

"""Where a run's numbers go while it trains: one file per tracker, named after it, over Lightning's loggers.

To add one, write `trackers/<name>.py` with a `Tracker` record tagged `<name>` that opens a logger; the
contract test in tests/contracts finds it. A hub's study names its trackers, and they get what the hub records
of each round; a hospital's own site file names the hospital's, and they get what its Trainer logs. Neither
names the other's. A tracker that fails is told once and left out; it never costs a round.
"""

from medfed.runs.trackers._tracker import TrackedRun, Tracker, missing_packages, outside
from medfed.runs.trackers._tracking import Tracking, logger_of

__all__ = ["TrackedRun", "Tracker", "Tracking", "logger_of", "missing_packages", "outside"]

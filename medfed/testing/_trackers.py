"""The contract of a tracker: a logger of Lightning that takes numbers and writes in the run folder only."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from pytorch_lightning.loggers import Logger

from medfed.runs.trackers import TrackedRun, Tracker
from medfed.testing._contract import OF_EVERY_KIND, Contract, NotApplicable

check_tracker: Contract[Tracker] = Contract("tracker", OF_EVERY_KIND)


@check_tracker.check
def it_names_its_server_without_opening_anything(tracker: Tracker) -> None:
    assert tracker.address == "" or tracker.address.startswith(("http://", "https://"))


@check_tracker.check
def it_takes_numbers_and_writes_in_the_run_folder_only(tracker: Tracker) -> None:
    missing = [package for package in tracker.packages if find_spec(package) is None]
    if missing or tracker.address:
        raise NotApplicable(f"it needs {', '.join(missing) or 'its server'}")
    with TemporaryDirectory() as folder:
        run = TrackedRun(Path(folder) / "run", "study", "hub")
        run.folder.mkdir()
        logger = tracker.open(run)
        assert isinstance(logger, Logger)
        logger.log_metrics({"val/dice": 0.5}, step=1)
        logger.save()
        logger.finalize("success")
        assert [path.name for path in Path(folder).iterdir()] == ["run"]
        assert [path.name for path in run.folder.iterdir()] == ["trackers"]
        assert any(path.is_file() for path in run.place.rglob("*"))

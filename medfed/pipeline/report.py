"""Write a run's report again."""

from __future__ import annotations

from pathlib import Path

from medfed.errors import RunError
from medfed.evaluation import report
from medfed.files import private_files
from medfed.runs.folder import RunFolder


@private_files()
def report_run(run: str | Path) -> RunFolder:
    """Write a run's rows and report from its cases and the hospitals' reported rows; return the run folder.

    Raises:
        RunError: if this is not a run folder, or nothing was measured in it yet.
    """
    folder = RunFolder(Path(run))
    folder.read_facts()
    if not any(path.exists() for path in (folder.cases, folder.reported, folder.rows)):
        raise RunError(
            f"{folder.path}: nothing was measured in this run yet; finish it with medfed train --resume"
        )
    report.write_report(folder.path)
    return folder

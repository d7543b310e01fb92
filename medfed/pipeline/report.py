"""Write a run's report again."""

from __future__ import annotations

import logging
from pathlib import Path

from medfed.errors import RunError, StudyError
from medfed.evaluation import report
from medfed.files import private_files
from medfed.runs.folder import RunFolder
from medfed.study.reading import plugins_in, read_run_study, read_text

log = logging.getLogger("medfed.pipeline.report")


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
    _use_plugins(folder)
    report.write_report(folder.path)
    return folder


def _use_plugins(folder: RunFolder) -> None:
    """Make the metrics of the run's plug-ins known; without their code the report has their numbers alone."""
    try:
        named = plugins_in(read_text(folder.study), folder.study.name)
        if named:
            read_run_study(folder.study)
    except StudyError as error:
        log.warning("the report shows the plug-ins' metrics without title, unit and direction: %s", error)

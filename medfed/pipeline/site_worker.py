"""Trains sites of a study in a worker of a simulation (`simulation: {engine: processes}` or `ray`).

The process that has the hub has read and screened each hospital's cases; what it left out is left out here
without being read, and a hospital whose files have changed since is refused.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from medfed.errors import DataError, RunError
from medfed.evaluation.inference import SiteCases
from medfed.exchange._worker_link import Connection, StartSite
from medfed.federation._site_worker import SiteWork, WorkerSide, serve
from medfed.files import private_files
from medfed.pipeline._told_to_workers import SiteTold, StudyTold, cases_digest
from medfed.pipeline.factory import folders_of, hospital_of
from medfed.pipeline.federate import StudyRun, site_function
from medfed.pipeline.suppress_warnings import suppress_warnings
from medfed.runs.folder import RunFolder
from medfed.runs.progress import Progress
from medfed.study.canonical import study_digest
from medfed.study.reading import read_study
from medfed.study.study import Study

# How long a display may show an older step of a site, in seconds.
_SHOWN_S = 0.1


def main(end: int | Connection) -> None:
    """Train the sites that the process at the other end of this connection, or of a socket, starts."""
    with private_files(), suppress_warnings():
        serve(end, _begin)


def _begin(work: Mapping[str, Any], side: WorkerSide) -> SiteWork:
    told = msgspec.convert(work, StudyTold)
    study, folder = _study(told), RunFolder(Path(told.folder))
    progress = _Forwarded(side)

    def train(start: StartSite) -> None:
        hospitals = {start.site: _hospital(study, start.site, msgspec.convert(start.work, SiteTold))}
        run = StudyRun(study, folder, hospitals, progress, side.audit(start.site), start.resume)
        site_function(run, start.site)(side.exchange)

    return train


def _study(told: StudyTold) -> Study:
    """Return the study that a worker was told, its plug-ins loaded."""
    with tempfile.TemporaryDirectory(prefix="medfed-") as folder:
        path = Path(folder) / "study.yaml"
        path.write_text(told.study, encoding="utf-8")
        study = read_study(path, needs_start=False)
    if study_digest(study) != told.digest:
        raise RunError(
            f"a worker process reads study {study_digest(study)[:12]}, expected {told.digest[:12]}: medfed, "
            "a package with kinds of its own or the file that the study starts from has changed since the "
            "run began; continue with --resume"
        )
    return study


def _hospital(study: Study, site: str, told: SiteTold) -> SiteCases:
    """Return a hospital's data as the process that has the hub holds them."""
    hospital = hospital_of(study, site, folders_of(study)[site], told.secret)
    data = hospital.data
    data.leave_out_tokens(told.left_out_tokens)
    data.left_out, data.unit = told.left_out, told.unit
    data.seed, data.batch, data.steps = told.seed, told.batch, told.steps
    if cases_digest(data) != told.cases:
        raise DataError(
            f"site '{site}': its folder holds other cases than when this run read it; restore them and "
            "continue with --resume, or start a new run (--out)"
        )
    return hospital


class _Forwarded(Progress):
    """Sends what a person sees to the process that shows it."""

    def __init__(self, side: WorkerSide) -> None:
        self._side, self._shown_s = side, 0.0

    def training(self, site: str, step: int, steps: int) -> None:
        now = time.monotonic()
        if step == 0 or now - self._shown_s > _SHOWN_S:
            self._shown_s = now
            self._side.report(site, "training", step, steps)

    def log(self, text: str) -> None:
        self._side.report("", "line", text)

"""Several runs in one folder, each complete with its report: the methods of a comparison, the folds.

A run that is finished is not trained again; one that was interrupted goes on; one that was interrupted while
the hospitals' cases were read, before it had a study, begins anew.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from medfed.files import private_folder
from medfed.pipeline.create_run import check_digest, check_empty
from medfed.pipeline.train import train
from medfed.runs.folder import RunFolder
from medfed.runs.progress import Progress
from medfed.study.canonical import study_digest
from medfed.study.reading import read_run_study
from medfed.study.study import Study


def open_folder(study: Study, out: Path | None, resume: bool, of: str) -> Path:
    """Return the folder of several runs, created if needed: `out`, else runs/NAME-`of`.

    Raises:
        RunError: if it is not empty, and the runs are not resumed.
    """
    folder = out or Path("runs") / f"{study.name}-{of}"
    if not resume:
        check_empty(folder, "continue with --resume, or give another --out")
    private_folder(folder)
    return folder


def finished_run(study: Study, path: Path, progress: Progress) -> RunFolder:
    """Return the finished run of a study in this folder, trained as far as it is not.

    Raises:
        RunError: if the folder holds a run of another study.
    """
    folder = RunFolder(path)
    if not folder.facts.exists():
        if folder.status.exists() and not folder.hub.exists():
            shutil.rmtree(path)  # nothing was trained: a run has its facts before its first round
        return train(study, out=path, progress=progress)
    check_digest(folder, study, "resume with the file and the --set that started it, or give another --out")
    if _is_finished(folder, study):
        return folder
    return train(study, out=path, resume=True, progress=progress)


def _is_finished(folder: RunFolder, study: Study) -> bool:
    """Return whether a run ended that compares with the same models, which its digest does not say."""
    facts = folder.read_facts()
    if not facts.is_finished or facts.digest != study_digest(study):
        return False
    return read_run_study(folder.study).evaluation == study.evaluation

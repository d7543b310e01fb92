"""What every experiment demands that trains on the same patients more than once: seeds, folds, a search.

Two trainings under differential privacy spend the budget of both, and a mechanism's epsilon is of one; sums
of two trainings tell more than those of one. In a simulation one person has all data, and nothing is
protected from anyone: the same study without its mechanism answers the same question.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace

from medfed.errors import StudyError
from medfed.evaluation.inference import SiteCases
from medfed.files import private_folder
from medfed.pipeline.federate import StudyRun
from medfed.registry import kind_of
from medfed.runs.folder import RunFolder
from medfed.study.study import Study
from medfed.wire.audit_log import AuditLog


def require_no_privacy(study: Study, named: str, remedy: str) -> None:
    """Check that training again would not tell more than a study's privacy counts.

    Args:
        study: the study that would be trained again.
        named: what would train again, the first words of the error.
        remedy: what to do instead.

    Raises:
        StudyError: if the study has a privacy mechanism.
    """
    if kind_of(study.privacy) != "none":
        raise StudyError(
            f"{named}, and each training tells more of the same patients than the privacy of "
            f"'{kind_of(study.privacy)}' counts; {remedy}"
        )


def run_again(run: StudyRun, study: Study, folder: RunFolder) -> StudyRun:
    """Return the run of another study on the same cases and splits, in a folder of its own.

    The studies may differ in seed, batch and steps, and in whatever is no part of the data.
    """
    private_folder(folder.path)
    hospitals = _as_batched(run.hospitals, study)
    # Its merges are not those of the study's model.
    return replace(run, study=study, folder=folder, hospitals=hospitals, audit=AuditLog(folder.audit))


def _as_batched(hospitals: Mapping[str, SiteCases], study: Study) -> dict[str, SiteCases]:
    """Return the hospitals with the same cases and splits, in the study's order and batches of training."""
    batched = {}
    for site, hospital in hospitals.items():
        data = copy.copy(hospital.data)
        data.seed, data.steps, data.batch = study.seed, study.train.steps, study.at(site).train.batch
        batched[site] = replace(hospital, data=data)
    return batched

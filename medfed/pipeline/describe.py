"""`medfed describe` over hospitals that are all in this process: Table 1, and the plan, without training."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import yaml

from medfed.errors import MedfedError
from medfed.evaluation.inference import SiteCases
from medfed.exchange.memory import Memory
from medfed.files import private_files, write_whole
from medfed.pipeline.create_run import choose_folder, create_run, finish_run
from medfed.pipeline.describing import describe_here, keep_statistics
from medfed.pipeline.factory import bears_of, folders_of, hospital_of, require_training_cases, screen_hospital
from medfed.pipeline.noised_statistics import simulated_releases
from medfed.pipeline.planning import needs_plan, plan_from, summary_of
from medfed.runs.folder import RunFolder
from medfed.runs.progress import Progress
from medfed.study.canonical import study_digest
from medfed.study.reading import read_study
from medfed.study.study import Describe, Study
from medfed.wire.audit_log import AuditLog


def only_described(study: Study) -> Study:
    """Return the study that ends with its hospitals' statistics; it has a digest of its own."""
    section = msgspec.structs.replace(study.describe or Describe(), only=True)
    return msgspec.structs.replace(study, describe=section)


@private_files()
def describe_study(
    study_file: Path,
    *,
    out: Path | None = None,
    overrides: Sequence[str] = (),
    progress: Progress | None = None,
) -> RunFolder:
    """Write Table 1 of a study's hospitals, whose folders the study names, into a run folder.

    A hospital whose data cannot be used is left out, and named.

    Raises:
        StudyError: if the study cannot be used.
        DataError: if no hospital has enough patients.
        QuorumError: if too few hospitals are left.
        RunError: if the run folder is taken.
    """
    progress, began = progress or Progress(), time.monotonic()
    study = only_described(read_study(study_file, overrides))
    folder = choose_folder(study, out, False)
    hospitals = _opened(study, progress)
    data = {site: hospital.data for site, hospital in hospitals.items()}
    facts = create_run(folder, study, data)
    audit = AuditLog(folder.audit)
    audit.write("began", study=study_digest(study), sites=sorted(study.sites), resumed=False)
    statistics = describe_here(study, data, audit, releases=simulated_releases(study, hospitals, folder))
    keep_statistics(folder, study, study_digest(study), statistics)
    if needs_plan(study):
        write_plan(folder, plan_from(study, statistics.total), progress)
    finish_run(folder, facts, began)
    return folder


def is_in_one_process(study_file: Path, overrides: Sequence[str] = ()) -> bool:
    """Whether a study's hospitals are folders of this machine, and its exchange is within one process."""
    study = read_study(study_file, overrides)
    return isinstance(study.exchange, Memory) and all(study.sites.values())


def write_plan(folder: RunFolder, planned: Study, progress: Progress) -> None:
    """Write the planned `data` section into a run folder, to be put into the study."""
    section = {"data": msgspec.to_builtins(planned.data)}
    write_whole(folder.plan, yaml.safe_dump(section, sort_keys=False, allow_unicode=True))
    progress.log(f"planned from the statistics: {summary_of(planned.data)}; in {folder.plan}")


def _opened(study: Study, progress: Progress) -> dict[str, SiteCases]:
    """Return the training hospitals whose data can be used."""
    data: dict[str, SiteCases] = {}
    for site, path in folders_of(study).items():
        if site not in study.sites:
            continue
        try:
            hospital = hospital_of(study, site, path)
            screen_hospital(hospital, bears_of(study), prepare=False)
            require_training_cases(hospital)
            data[site] = hospital
        except MedfedError as error:
            progress.log(f"{error}; the table is made without this hospital")
    return data

"""What the worker processes of a simulation are told of a run, so that they train from the same data."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import msgspec
import yaml

from medfed.data.datamodule import SiteDataModule
from medfed.evaluation.inference import SiteCases
from medfed.federation.worker_processes import available_cores
from medfed.runs.folder import RunFolder
from medfed.study.canonical import study_digest, to_dict
from medfed.study.study import Study


class StudyTold(msgspec.Struct, frozen=True):
    """The study as YAML with absolute paths, its digest, and the run's folder."""

    study: str
    digest: str
    folder: str


class SiteTold(msgspec.Struct, frozen=True):
    """How a site's data were opened, what was left out of them, and a digest of the cases that are left."""

    secret: bytes
    seed: int
    batch: int
    steps: int | None
    left_out: dict[str, int]
    left_out_tokens: list[str]
    unit: str
    cases: str


def told_of_study(study: Study, folder: RunFolder) -> dict[str, Any]:
    """Return what each worker is told of a run."""
    text = yaml.safe_dump(to_dict(study), sort_keys=False, allow_unicode=True)
    told = StudyTold(text, study_digest(study), str(folder.path.resolve()))
    plain: dict[str, Any] = msgspec.to_builtins(told)
    return plain


def told_of_site(hospital: SiteCases) -> dict[str, Any]:
    """Return what a worker is told of a site whose cases were read and screened here."""
    data = hospital.data
    told = SiteTold(
        hospital.secret,
        data.seed,
        data.batch,
        data.steps,
        dict(data.left_out),
        list(data.left_out_tokens),
        data.unit,
        cases_digest(data),
    )
    plain: dict[str, Any] = msgspec.to_builtins(told, builtin_types=(bytes,))
    return plain


def cases_digest(data: SiteDataModule) -> str:
    """Return the SHA-256 of the tokens of the cases that train and validate, in order."""
    lines = [f"{split} {case.token}" for split in ("train", "val") for case in data.cases(split)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def cost_of(study: Study, site: str, data: SiteDataModule) -> float:
    """Return how many training steps a site's round takes, by which sites are spread over workers."""
    train = study.at(site).train
    return train.epochs * (data.steps or math.ceil(data.examples / train.batch))


def threads_of(study: Study) -> int | None:
    """Return with how many threads each hospital is trained in a simulation, None if with torch's own."""
    simulation, workers = study.simulation, min(study.simulation.workers, len(study.sites))
    if simulation.threads is not None or simulation.engine == "threads":
        return simulation.threads
    if simulation.engine == "ray":
        return 1  # the cores are those of other machines
    return max(1, available_cores() // max(1, workers))


def computing_of(study: Study) -> str:
    """Return by how many worker processes and threads a simulation is trained, '' if as torch does."""
    threads, workers = threads_of(study), min(study.simulation.workers, len(study.sites))
    if study.simulation.engine == "processes":
        return f"{workers} worker processes of {threads} threads"
    if study.simulation.engine == "ray":
        return f"{workers} Ray workers of {threads} threads"
    return "" if threads is None else f"{threads} threads"

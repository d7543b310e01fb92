"""Cases that trained a run's model are not measured as unseen ones, under whatever name their folder comes.

A case is recognised by its content: an image by the voxels that the network sees, a row of a table by its
patient, cells and target. All cases of a patient who has one such case are left out, and the number of such
patients is told. An image that was stored with other grey values, or resampled, is not recognised.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from medfed.data.datamodule import SiteDataModule
from medfed.evaluation.inference import SiteCases
from medfed.runs.folder import RunFolder
from medfed.runs.trained import TrainedCases, read_trained, write_trained

# The splits whose cases made the model: weights, and rounds and operating points.
SPLITS_OF_TRAINING = ("train", "val")
# What is behind a split's name where the digests are of a table's rows without their targets.
INPUTS = " inputs"

UNCHECKED = (
    "whether these patients trained the model could not be checked: digests of the cases that trained stay "
    "in the hospitals' own run folders"
)


def contents_of(data: SiteDataModule) -> dict[str, bytes]:
    """Return the content of each case of a site, by token; a case without one is not recognised."""
    if data.is_table:
        rows = data.rows
        cells = zip(rows.numbers.tolist(), rows.words.tolist(), rows.targets.tolist(), strict=True)
        return {
            case.token: hashlib.sha256(repr((case.patient, *row)).encode()).digest()
            for case, row in zip(rows.index.cases, cells, strict=True)
        }
    return data.image_digests


def inputs_of(data: SiteDataModule) -> dict[str, bytes]:
    """Return the content of each row of a table by token, without the target, which new patients lack."""
    rows = data.rows
    cells = zip(rows.numbers.tolist(), rows.words.tolist(), strict=True)
    return {
        case.token: hashlib.sha256(repr(("inputs", case.patient, *row)).encode()).digest()
        for case, row in zip(rows.index.cases, cells, strict=True)
    }


def record_trained(folder: RunFolder, hospitals: Mapping[str, SiteCases]) -> TrainedCases:
    """Write digests of the cases that these hospitals train with into the run folder, and return all."""
    contents = {}
    for site, hospital in hospitals.items():
        recorded = {"": contents_of(hospital.data)}
        if hospital.data.is_table:
            recorded[INPUTS] = inputs_of(hospital.data)
        contents[site] = {
            f"{split}{kind}": [
                by_token[case.token] for case in hospital.data.cases(split) if case.token in by_token
            ]
            for kind, by_token in recorded.items()
            for split in SPLITS_OF_TRAINING
        }
    return write_trained(folder.trained, contents)


def former_run(start: str | None) -> TrainedCases | None:
    """Return the cases that trained the run whose checkpoint a study starts from, if it is in such a run."""
    if start is None or not Path(start).is_file():
        return None
    return read_trained(RunFolder(Path(start).resolve().parent.parent).trained)


def without_seen(
    folder: RunFolder, hospital: SiteCases, *, trains: bool, start: str | None = None
) -> tuple[SiteCases, str]:
    """Return a hospital with the cases marked that trained, and a sentence on them; '' if there is none.

    Args:
        folder: the run, whose trained.json knows which cases trained.
        hospital: the hospital to measure.
        trains: whether it trains in this run under its own name; its own training cases are then not tested.
        start: the study's first checkpoint, whose own run may have trained with these cases.
    """
    contents = contents_of(hospital.data)
    if trains:
        tested = {case.token for case in hospital.data.cases("test")}
        contents = {token: content for token, content in contents.items() if token in tested}
    runs = [run for run in (read_trained(folder.trained), former_run(start)) if run is not None]
    if not runs:
        return hospital, "" if trains else f"{UNCHECKED}."
    tokens = set().union(*(run.seen(contents) for run in runs))
    patients = {hospital.data.case(token).patient for token in tokens}
    if not patients:
        return hospital, ""
    seen = frozenset(token for token in contents if hospital.data.case(token).patient in patients)
    several = len(patients) != 1
    return replace(hospital, seen=seen), (
        f"{len(patients)} {'patients are' if several else 'patient is'} not measured, as images or rows of "
        f"{'theirs' if several else 'that patient'} trained the model or chose it"
    )


def patients_seen(hospital: SiteCases) -> int:
    """Return how many of a hospital's patients are not measured because they trained."""
    return len({hospital.data.case(token).patient for token in hospital.seen})


def all_seen(hospital: SiteCases, cases: int) -> str:
    """Return why a hospital whose cases all trained is not measured."""
    return (
        f"hospital '{hospital.name}': all {cases} cases are of patients who trained this model or chose it, "
        "whatever the folder is called; they say nothing of patients it has not seen. Give a folder of others"
    )

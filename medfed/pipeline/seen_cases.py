"""Cases that trained a run's model are not measured as unseen ones, under whatever name their folder comes.

A case is recognised by its content: an image by the voxels that the network sees, a row of a table by its
patient and features. All cases of a patient who has one such case are left out, and the number of such
patients is told. An image that was stored with other grey values, or resampled, is not recognised. Rows that
equal one that trained under another patient's number are left out, too, if there are more than by chance.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from medfed.data.datamodule import SiteDataModule
from medfed.evaluation.inference import SiteCases
from medfed.runs.folder import RunFolder
from medfed.runs.provenance import merges_of
from medfed.runs.trained import TrainedCases, read_trained, write_trained

# The splits whose cases made the model: weights, and rounds and operating points.
SPLITS_OF_TRAINING = ("train", "val")
# What is behind a split's name where the digests are of a table's rows without their targets.
INPUTS = " inputs"
# Likewise of a table's rows without their patients.
ROWS = " rows"
# As many rows, and as many times the number expected by chance, may equal rows that trained without a word:
# different patients may be alike in the few features of a table.
ALIKE, TIMES = 2, 3

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


def rows_of(data: SiteDataModule) -> dict[str, bytes]:
    """Return the content of each row of a table by token, with the target, whoever the patient is."""
    rows = data.rows
    cells = zip(rows.numbers.tolist(), rows.words.tolist(), rows.targets.tolist(), strict=True)
    return {
        case.token: hashlib.sha256(repr(("row", *row)).encode()).digest()
        for case, row in zip(rows.index.cases, cells, strict=True)
    }


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
            recorded |= {INPUTS: inputs_of(hospital.data), ROWS: rows_of(hospital.data)}
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
    data = hospital.data
    contents = [contents_of(data), *([inputs_of(data)] if data.is_table else [])]
    if trains:
        tested = {case.token for case in data.cases("test")}
        contents = [{token: one[token] for token in one if token in tested} for one in contents]
    runs = [run for run in (read_trained(folder.trained), former_run(start)) if run is not None]
    if not runs:
        return hospital, "" if trains else f"{UNCHECKED}."
    tokens = set().union(*(run.seen(one) for run in runs for one in contents))
    elsewhere = _not_merged(folder, [one[token] for one in contents for token in one if token in tokens])
    rows = rows_of(data) if data.is_table else {}
    others = {token: row for token, row in rows.items() if token in contents[0].keys() - tokens}
    alike = _alike(runs, others, hospital.name if trains else "")
    # Of a hospital that trains itself they are told alone: it has its own test patients.
    patients = {data.case(token).patient for token in (tokens if trains else tokens | alike)}
    seen = frozenset(token for token in contents[0] if data.case(token).patient in patients)
    said = "; ".join(filter(None, (_left_out(len(patients)) + elsewhere, _renumbered(len(alike), trains))))
    return (replace(hospital, seen=seen) if seen else hospital), said


def _left_out(patients: int) -> str:
    """Return how many patients are not measured, and why; '' if there is none."""
    if not patients:
        return ""
    several = patients != 1
    return (
        f"{patients} {'patients are' if several else 'patient is'} not measured, as images or rows of "
        f"{'theirs' if several else 'that patient'} trained a model of this run or chose it"
    )


def _alike(runs: Sequence[TrainedCases], rows: Mapping[str, bytes], besides: str) -> set[str]:
    """Return the tokens of rows that equal one that trained, if they are more than chance explains."""
    equal = set().union(*(run.seen(rows, besides) for run in runs))
    trained = sum(
        len(digests)
        for run in runs
        for splits in run.sites.values()
        for split, digests in splits.items()
        if split.endswith(ROWS)
    )
    return equal if len(equal) > _by_chance(list(rows.values()), trained) else set()


def _by_chance(rows: Sequence[bytes], trained: int) -> float:
    """Return how many of these rows may equal one of `trained` rows of others, as these equal each other."""
    pairs = sum(number * (number - 1) for number in Counter(rows).values())
    among = max(len(rows) * (len(rows) - 1), 1)
    return max(ALIKE, TIMES * len(rows) * trained * pairs / among)


def _renumbered(alike: int, measured: bool) -> str:
    """Return how many rows equal one that trained under another patient's number; '' if there is none."""
    if not alike:
        return ""
    equal = (
        f"{alike} rows equal one that trained, in every feature and in what is predicted, under another "
        "patient's number, which is more than chance explains"
    )
    return f"{equal}: if they are the same patients, results are too good" if measured else equal


def _not_merged(folder: RunFolder, contents: Iterable[bytes]) -> str:
    """Return of which hospitals' patients the federated model learned nothing, as no update was merged."""
    trained, merges = read_trained(folder.trained), merges_of(folder)
    if trained is None or not merges:
        return ""
    sites = {site for content in contents if (site := trained.site_of(content)) is not None}
    never = sorted(sites - merges.keys())
    if not never:
        return ""
    return (
        f" (no update of {', '.join(never)} was merged: patients of that hospital trained or chose other "
        "models of this run, and not the federated one)"
    )


def patients_seen(hospital: SiteCases) -> int:
    """Return how many of a hospital's patients are not measured because they trained."""
    return len({hospital.data.case(token).patient for token in hospital.seen})


def all_seen(hospital: SiteCases, cases: int) -> str:
    """Return why a hospital whose cases all trained is not measured."""
    return (
        f"hospital '{hospital.name}': all {cases} cases are of patients who trained a model of this run or "
        "chose it, whatever the folder is called; they say nothing of patients it has not seen. "
        "Give a folder of others"
    )

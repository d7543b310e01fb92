"""A hospital withdraws: its updates are taken out of the model by training again without them.

Nothing can be subtracted from a merged model, for every later update was trained from it. So training
goes back to the last model that the hospital had no part in, the one before its first merged update where
it was kept (`federation/membership.py`) and else the untrained one, and goes on without it. The study
without the hospital has another digest, so that every other hospital is asked again. The former run's
folder stays as it is, but for a line in its audit log: whether its models are deleted, and who has a
copy, is for people to settle.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from medfed.errors import RunError, StudyError
from medfed.federation import membership as joins
from medfed.files import write_whole
from medfed.runs.folder import RunFolder
from medfed.study.study import Study, digest
from medfed.wire.audit_log import AuditLog, Signer

# The record in the new run's folder.
FILE = "withdrawn.json"


@dataclass(frozen=True)
class Withdrawal:
    """What was done: who withdrew, when its first update had been merged (None: never), where
    training goes on from.
    """

    site: str
    joined: int | None
    retrained_from: int
    study_before: str
    study: str
    when: str


def without(study: Study, site: str) -> Study:
    """Return the study of the other hospitals; a quorum of more sites than are left becomes
    all that are left.

    Raises:
        StudyError: if the hospital is not in the study, or too few are left for its rule.
    """
    if site not in study.sites:
        raise StudyError(
            f"study '{study.name}': --without {site}: no such hospital; there are {', '.join(sorted(study.sites))}"
        )
    sites = {name: where for name, where in study.sites.items() if name != site}
    fewest = study.rule.fewest_sites()
    if len(sites) < max(fewest, 1):
        raise StudyError(
            f"study '{study.name}': without {site} {len(sites)} hospitals are left, and its rule needs {max(fewest, 1)}"
        )
    sampling = msgspec.structs.replace(study.sampling, minimum=min(study.minimum, len(sites)))
    return msgspec.structs.replace(study, sites=sites, sampling=sampling)


def prepare(
    study: Study, site: str, before: RunFolder, after: RunFolder, identity: Signer | None = None
) -> Withdrawal:
    """Put the model to go on from into a new run's folder, and write the withdrawal down in
    both runs; return it.

    `study` is the former study, with the hospital. A hub that starts with the new folder and `without(study,
    site)` then goes on from there. `identity` signs the logs, where the hub has one.

    Raises:
        RunError: if the former run is not of this study.
    """
    found = before.read_facts()["digest"]
    if found != digest(study):
        raise RunError(
            f"{before.path}: holds a run of study {found[:12]}, the study file's digest is {digest(study)[:12]}; give the "
            f"file and the --set of the run that the hospital withdraws from"
        )
    smaller = without(study, site)
    first = first_merged(before, site)
    newest_round = first - 1 if first is not None else study.train.rounds
    path = _checkpoint(before.hub, newest_round)
    start = 0 if path is None else _round(path)
    if path is not None and start:
        _restore(path, after.hub, digest(smaller))
        _carry(before, after, site, start)
    record = Withdrawal(site, first, start, digest(study), digest(smaller), _now())
    write_whole(after.path / FILE, msgspec.json.encode(record))
    AuditLog(after.audit, identity).write("withdrawn", **asdict(record))
    AuditLog(before.audit, identity).write("withdrawn", **asdict(record))
    return record


def recorded(run: RunFolder) -> dict[str, Any] | None:
    """Return the withdrawal that a run came from, or None."""
    path = run.path / FILE
    return msgspec.json.decode(path.read_bytes()) if path.exists() else None


def facts(run: RunFolder) -> dict[str, Any]:
    """Return what a run's facts say of the withdrawal that it came from, written there; nothing
    if there was none.
    """
    record = recorded(run)
    if record is None:
        return {}
    run.write_facts({**run.read_facts(), "withdrawn": record})
    return {"withdrawn": record}


def first_merged(run: RunFolder, site: str) -> int | None:
    """Return the first round of a run into which an update of this site was merged, or None if there is none."""
    rounds = [line["round"] for line in _lines(run) if line["site"] == site and line["status"] == "merged"]
    known = joins.joined(run.hub).get(site)
    return min([*rounds, *([known] if known is not None else [])], default=None)


def _lines(run: RunFolder) -> Iterator[dict[str, Any]]:
    if run.rounds.exists():
        for line in run.rounds.read_bytes().splitlines():
            yield msgspec.json.decode(line)


def _checkpoint(hub: Path, newest_round: int) -> Path | None:
    """Return the newest readable checkpoint of at most this round."""
    kept = [*hub.glob("round-*.safetensors"), *(hub / joins.FOLDER).glob("round-*.safetensors")]
    for path in sorted(kept, key=_number, reverse=True):
        if _number(path) <= newest_round and _round(path) == _number(path):
            return path
    return None


def _number(path: Path) -> int:
    return int(path.stem.removeprefix("round-"))


def _round(path: Path) -> int:
    try:
        with safe_open(path, framework="pt") as file:
            return int(file.metadata()["round"])
    except Exception:  # cut short by a power loss: an older one serves
        return -1


def _restore(path: Path, hub: Path, study: str) -> None:
    """Write a checkpoint to the new run's folder, as one of the new study."""
    hub.mkdir(parents=True, exist_ok=True)
    save_file(load_file(path), hub / path.name, metadata={"round": str(_number(path)), "study": study})


def _carry(before: RunFolder, after: RunFolder, site: str, start: int) -> None:
    """Take along what the model that training goes on from is made of: its rounds, and who
    had joined by then.
    """
    kept = [
        msgspec.json.encode(line) + b"\n"
        for line in _lines(before)
        if line["round"] <= start and line["site"] != site
    ]
    write_whole(after.rounds, b"".join(kept))
    known = {name: at for name, at in joins.joined(before.hub).items() if at <= start and name != site}
    write_whole(after.hub / joins.FILE, msgspec.json.encode(known))
    for path in (before.hub / joins.FOLDER).glob("round-*.safetensors"):
        if _number(path) < start:
            (after.hub / joins.FOLDER).mkdir(exist_ok=True)
            shutil.copyfile(path, after.hub / joins.FOLDER / path.name)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

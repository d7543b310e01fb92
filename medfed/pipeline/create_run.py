"""How a run folder begins: where it lies, which study it holds, and a line for every round."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import yaml

from medfed.errors import RunError
from medfed.pipeline import privacy_facts
from medfed.pipeline.factory import network_of
from medfed.registry import kind_of
from medfed.files import write_whole
from medfed.runs.folder import RunFolder
from medfed.runs.rounds import RoundReport
from medfed.study.study import Study, digest, resolved

if TYPE_CHECKING:
    from medfed.data.datamodule import SiteDataModule


def folder_for(study: Study, out: Path | None, resume: bool) -> RunFolder:
    """Return the run folder: the one named, or the next free runs/NAME, or with `resume` the newest of those."""
    if out is None:
        taken = sorted(Path("runs").glob(f"{study.name}*"), key=lambda path: (len(path.name), path.name))
        mine = [path for path in taken if path.name == study.name or _numbered(path.name, study.name)]
        if resume and not mine:
            raise RunError(f"runs/{study.name}: nothing to resume; leave --resume away to start")
        if resume:
            out = mine[-1]
        else:
            out = Path("runs") / (
                study.name if not mine else f"{study.name}-{_number(mine[-1].name, study.name) + 1}"
            )
    folder = RunFolder(out)
    if resume:
        found = folder.read_facts()["digest"]
        if found != digest(study):
            raise RunError(
                f"{out}: holds a run of study {found[:12]}, the study file's digest is {digest(study)[:12]}; resume with "
                f"the file and the --set that started it, or start anew with another --out"
            )
    elif out.exists() and any(out.iterdir()):
        raise RunError(f"{out}: is not empty; go on with --resume, or give another --out")
    out.mkdir(parents=True, exist_ok=True)
    return folder


def _numbered(name: str, study: str) -> bool:
    return name.startswith(f"{study}-") and name.removeprefix(f"{study}-").isdigit()


def _number(name: str, study: str) -> int:
    return int(name.removeprefix(f"{study}-")) if _numbered(name, study) else 1


def begin(folder: RunFolder, study: Study, data: dict[str, SiteDataModule]) -> dict[str, Any]:
    write_study(folder, study)
    facts = {
        "study": study.name,
        "digest": digest(study),
        "seed": study.seed,
        "task": kind_of(study.task),
        "classes": list(getattr(study.task, "classes", ())),
        "sites": sorted(study.sites),
        "held_out": sorted(study.held_out),
        "cases": {site: {split: len(one.cases(split)) for split in ("train", "val", "test")}
                  for site, one in data.items()},
        "layouts": {site: one.index.layout for site, one in data.items()},
        "notes": {site: list(one.notes) for site, one in data.items()},
        "privacy": {"kind": kind_of(study.privacy), "notes": privacy_facts.notes(study, network_of(study))},
        # What could not be made or measured, each with its reason: a model by its name, a hospital by its.
        "missing_models": {},
        "unmeasured": {},
        "started": now(),
        **surroundings(),
    }  # fmt: skip
    folder.write_facts(facts)
    return facts


def write_study(folder: RunFolder, study: Study) -> None:
    plain = resolved(study)
    write_whole(folder.study, yaml.safe_dump(plain, sort_keys=False, allow_unicode=True).encode())
    # For the report, which may be shared: without the folders, which only this machine's owner needs to know.
    shared = {**plain, "sites": sorted(study.sites), "held_out": sorted(study.held_out)}
    shared["start"] = study.start and Path(study.start).name
    write_whole(folder.study.with_suffix(".json"), msgspec.json.encode(shared))


def write_round(folder: RunFolder, found: RoundReport) -> None:
    """Append a line a site; a round that is reported again after a resume is written again, and
    the last one counts.
    """
    with folder.rounds.open("ab") as file:
        for answer in found.results:
            line = {
                "round": found.round,
                "site": answer.site,
                "status": answer.status,
                "reason": answer.reason,
                "examples": answer.examples,
                "seconds": round(answer.seconds, 3),
                "bytes_up": answer.bytes_up,
                "bytes_down": found.bytes_down if answer.status != "not sampled" else 0,
                "scalars": dict(answer.scalars),
            }
            file.write(msgspec.json.encode(line) + b"\n")


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

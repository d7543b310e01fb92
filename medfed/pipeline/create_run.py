"""Create, resume and finish a run: choose its folder, write its study and its facts."""

from __future__ import annotations

import csv
import io
import logging
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
import yaml
from msgspec import UNSET

from medfed.data.datamodule import SiteDataModule
from medfed.data.splits import SPLITS
from medfed.errors import RunError
from medfed.files import describe_exposed, private_folder, utc_now, write_whole
from medfed.models.pretrained.load import LoadedStart
from medfed.pipeline import privacy_facts
from medfed.pipeline._told_to_workers import computing_of
from medfed.pipeline.factory import network_of, started_network
from medfed.registry import kind_of
from medfed.runs.command_line import shown_command, typed_command
from medfed.runs.facts import PrivacyFacts, RunFacts, StartFacts, hardware, package_versions
from medfed.runs.folder import RunFolder
from medfed.study.canonical import comparisons_of, study_digest, to_dict
from medfed.study.reading import read_run_study
from medfed.study.study import Study

log = logging.getLogger("medfed.pipeline.create_run")


def open_run(run: str | Path | RunFolder) -> tuple[RunFolder, RunFacts, Study]:
    """Return an existing run's folder, its facts and its study.

    Raises:
        RunError: if this is not a run folder.
    """
    folder = run if isinstance(run, RunFolder) else RunFolder(Path(run))
    return folder, folder.read_facts(), read_run_study(folder.study)


def check_empty(folder: Path, remedy: str) -> None:
    """Check that a folder is empty or missing.

    Raises:
        RunError: with the remedy, if it is neither.
    """
    if folder.exists() and any(folder.iterdir()):
        raise RunError(f"{folder}: is not empty; {remedy}")


def check_digest(folder: RunFolder, study: Study, remedy: str) -> None:
    """Check that a run is one of this study.

    Raises:
        RunError: with the remedy, if it is not.
    """
    digest, expected = folder.read_facts().digest, study_digest(study)
    if digest != expected:
        raise RunError(
            f"{folder.path}: holds a run of study {digest[:12]}, the study file's digest is {expected[:12]}; "
            f"{remedy}"
        )


def choose_folder(study: Study, out: Path | None, resume: bool) -> RunFolder:
    """Return the run folder, created if needed: `out`, else the next free runs/NAME, or the one to resume.

    Raises:
        RunError: if there is no run of this study to resume, or the folder is not empty.
    """
    if out is None:
        going_on = run_to_resume(study) if resume else None
        out = _newest_or_next(study.name, resume) if going_on is None else going_on
        if going_on is not None and out != (newest := _newest_or_next(study.name, resume)):
            log.warning(
                "%s is another study's run, or never began to train: this goes on with %s", newest, out
            )
    folder = RunFolder(out)
    if resume:
        remedy = "resume with the file and the --set that started it, or start anew with another --out"
        check_digest(folder, study, remedy)
    else:
        check_empty(out, "resume the run with --resume, or give another --out")
    private_folder(out)
    return folder


def run_to_resume(study: Study) -> Path | None:
    """Return the newest run folder of this study, or the newest that has begun to train and is not finished.

    A hub that was refused before its first model, because another one runs the study, leaves an empty run: to
    go on with that one would begin the study again, under another number, and every site would refuse it.
    """
    numbers = {
        _number(path.name, study.name): RunFolder(path) for path in Path("runs").glob(f"{study.name}*")
    }
    runs = [numbers[one] for one in sorted(numbers, reverse=True) if one and numbers[one].facts.exists()]
    same = [one for place, one in enumerate(runs) if _is_of(one, study, newest=place == 0)]
    begun = [one for one in same if any(one.hub.glob("round-*.safetensors"))]
    if not begun or begun[0].read_facts().is_finished:
        return same[0].path if same else None
    return begun[0].path


def _is_of(folder: RunFolder, study: Study, *, newest: bool) -> bool:
    """Return whether a run is one of this study; one that cannot be read is told if it is the newest."""
    try:
        return folder.read_facts().digest == study_digest(study)
    except RunError:
        if newest:
            raise
        return False


def _newest_or_next(study: str, resume: bool) -> Path:
    numbers = [number for path in Path("runs").glob(f"{study}*") if (number := _number(path.name, study))]
    newest = max(numbers, default=0)
    if resume and not newest:
        raise RunError(f"runs/{study}: there is no run to resume; omit --resume to start one")
    number = newest if resume else newest + 1
    return Path("runs") / (study if number == 1 else f"{study}-{number}")


def _number(name: str, study: str) -> int:
    """Return the number of a run folder's name: 1 for 'lesions', 2 for 'lesions-2', 0 for another study's."""
    if name == study:
        return 1
    suffix = name.removeprefix(f"{study}-")
    # Not isdigit: it is true of '²', which int() refuses.
    return int(suffix) if name != suffix and suffix.isdecimal() else 0


def create_run(
    folder: RunFolder, study: Study, data: Mapping[str, SiteDataModule], own: str = ""
) -> RunFacts:
    """Write study and facts into a run folder and return the facts.

    `data` holds this process's sites; `own` is the one whose own part in a study of several parties this is.
    """
    if exposed := describe_exposed(folder.path):
        log.warning("%s", exposed)
    write_study(folder, study)
    _, loaded = started_network(study)
    notes = privacy_facts.privacy_notes(study, network_of(study))
    facts = RunFacts(
        study=study.name,
        digest=study_digest(study),
        seed=study.seed,
        task=kind_of(study.task),
        classes=list(getattr(study.task, "classes", ())),
        # A hospital that joins is none of those that the study names.
        sites=sorted({*study.sites, *(site for site in data if study.trains(site))}),
        held_out=sorted(study.held_out),
        own=own,
        cases={site: {split: len(one.cases(split)) for split in SPLITS} for site, one in data.items()},
        layouts={site: one.index.layout for site, one in data.items()},
        notes={site: list(one.notes) for site, one in data.items()},
        left_out={site: one.left_out for site, one in data.items() if one.left_out},
        warnings={site: list(one.warnings) for site, one in data.items() if one.warnings},
        privacy=PrivacyFacts(kind_of(study.privacy), notes),
        start=UNSET if loaded is None else _record_start(folder, study, loaded),
        started=utc_now(),
        versions=package_versions(),
        hardware=hardware(computing_of(study)),
        command=record_command(folder),
        comparisons=_comparisons(folder, study),
        withdrawn=folder.read_withdrawal() or UNSET,
    )
    folder.write_facts(facts)
    return facts


def record_command(folder: RunFolder) -> str:
    """Keep the line that was typed in command.txt, and return all of this run's lines without folders."""
    former = folder.read_facts().command if folder.facts.is_file() else ""
    if typed := typed_command(sys.argv):
        known = folder.command.read_text(encoding="utf-8") if folder.command.is_file() else ""
        write_whole(folder.command, f"{known}{typed}\n")
    return "\n".join(line for line in (former, shown_command(sys.argv)) if line)


def _comparisons(folder: RunFolder, study: Study) -> list[str]:
    """Return the comparisons that the study makes or that this run was to make before it was resumed."""
    former = folder.read_facts().comparisons if folder.facts.is_file() else []
    return sorted({*former, *comparisons_of(to_dict(study)["evaluation"])})


def _record_start(folder: RunFolder, study: Study, loaded: LoadedStart) -> StartFacts:
    """Write what became of each tensor of the study's start into the run folder, and return it in short."""
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(("what", "tensor", "shape", "why"))
    for line in loaded.tensors:
        writer.writerow((line.what, line.name, "x".join(map(str, line.shape)), line.why))
    write_whole(folder.start, lines.getvalue().encode())
    classes = tuple(getattr(study.task, "classes", ()))
    return StartFacts(
        file=loaded.file,
        sha256=loaded.sha256,
        share=loaded.share,
        bundle=loaded.bundle,
        licence=loaded.licence,
        lines=[*loaded.lines(), *_other_classes(loaded, classes, study.network_head)],
    )


def _other_classes(loaded: LoadedStart, classes: tuple[str, ...], head: str) -> Iterator[str]:
    """Yield a line if the start's last layer was loaded whose outputs the bundle names otherwise."""
    same = [one.lower() for one in loaded.classes] == [one.lower() for one in classes]
    last = [line.what for line in loaded.tensors if line.what != "left" and line.name.startswith(f"{head}.")]
    if head and set(last) == {"loaded"} and classes and loaded.classes and not same:
        yield (
            f"the bundle's outputs: {', '.join(loaded.classes)}; the study's classes: {', '.join(classes)}; "
            "its last layer was loaded nevertheless; `start: {anew: [head]}` starts it anew"
        )


def finish_run(folder: RunFolder, facts: RunFacts, began: float) -> None:
    """Mark a run as finished in its facts; `began` is the monotonic time of its start."""
    seconds = round(time.monotonic() - began, 1)
    folder.write_facts(msgspec.structs.replace(facts, seconds=seconds, finished=utc_now()))


def write_study(folder: RunFolder, study: Study) -> None:
    """Write study.yaml, and study.json without folders and addresses, which reports and dossiers may show."""
    plain = to_dict(study)
    write_whole(folder.study, yaml.safe_dump(plain, sort_keys=False, allow_unicode=True))
    public = {**plain, "sites": sorted(study.sites), "held_out": sorted(study.held_out)}
    if (start := study.given_start) is not None:
        public["start"] = study.starting_from(Path(start.path).name).start
    del public["search"]  # run.json has it where it was made
    del public["simulation"]  # of the machine, and no part of what was computed
    del public["trackers"]  # addresses inside a hospital or a coordinator's network, as of the exchange
    public["exchange"] = {"kind": kind_of(study.exchange)}
    public["plugins"] = {name: {"digest": plugin.digest} for name, plugin in study.plugins.items()}
    write_whole(folder.public_study, msgspec.json.encode(public))

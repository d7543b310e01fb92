"""Exact unlearning: after a hospital withdraws, the model is trained again without its updates.

Nothing can be subtracted from a merged model, because every later update was trained from it. Training
therefore goes back to the last model to which the hospital had not contributed: the one before its first
merged update if it was kept (`federation/membership.py`), else the untrained one. The study without the
hospital has another digest, so every other hospital is asked again. The former run's folder stays as it is,
except for a line in its audit log: people decide whether its models are deleted, and who has a copy.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import msgspec
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from medfed.errors import StudyError
from medfed.federation import membership
from medfed.files import private_folder, utc_now, write_whole
from medfed.pipeline.create_run import check_digest, choose_folder
from medfed.pipeline.experiments.leave_one_out import require_noised_sums, study_without
from medfed.runs.facts import Withdrawal
from medfed.runs.folder import RunFolder
from medfed.runs.progress import Progress
from medfed.runs.rounds import encode_rounds, read_rounds
from medfed.study.canonical import study_digest
from medfed.study.study import Study
from medfed.wire.audit_log import AuditLog, Signer


@dataclass(frozen=True)
class Retraining:
    """A study from which a hospital withdrew; `former` is its former run, None if retraining is resumed."""

    former_study: Study
    site: str
    former: RunFolder | None

    @property
    def study(self) -> Study:
        """The study of the remaining hospitals."""
        return remaining_study(self.former_study, self.site)


def retraining(study: Study, site: str, former: Path | None, resume: bool) -> Retraining:
    """Return the retraining without a hospital; `former` is its former run, the study's newest one if None.

    Raises:
        RunError: if there is no such run of this study.
    """
    return Retraining(study, site, None if resume else choose_folder(study, former, resume=True))


def prepare_retraining(
    again: Retraining, folder: RunFolder, progress: Progress, identity: Signer | None = None
) -> None:
    """Prepare a new run's folder to train from before the hospital joined; nothing to do in a resumed one."""
    if again.former is not None:
        record = prepare(again.former_study, again.site, again.former, folder, identity)
        progress.log(f"without {again.site}: training goes on from round {record.retrained_from}")


def remaining_study(study: Study, site: str) -> Study:
    """Return the study of the other hospitals; a quorum larger than their number becomes that number.

    Raises:
        StudyError: if the hospital is not in the study, too few are left for its rule, or the study hides
            updates in sums without noise, of which a second one would show the hospital's update.
    """
    if site not in study.sites:
        raise StudyError(
            f"study '{study.name}': --without {site}: no such hospital; there are "
            f"{', '.join(sorted(study.sites))}"
        )
    require_noised_sums(study, f"--without {site}")
    others, fewest = len(study.sites) - 1, max(study.rule.min_sites, 1)
    if others < fewest:
        raise StudyError(
            f"study '{study.name}': without {site} {others} hospitals are left, and its rule needs {fewest}"
        )
    return study_without(study, site)


def prepare(
    study: Study, site: str, before: RunFolder, after: RunFolder, identity: Signer | None = None
) -> Withdrawal:
    """Copy the model to resume from into a new run's folder, and record the withdrawal in both runs.

    `study` is the former study, with the hospital. A hub that starts with the new folder and
    `remaining_study(study, site)` resumes from that model. `identity` signs the logs, if the hub has one.

    Raises:
        RunError: if the former run is not of this study.
    """
    check_digest(before, study, "give the file and the --set of the run that the hospital withdraws from")
    smaller = remaining_study(study, site)
    first = first_merged(before, site)
    newest_round = first - 1 if first is not None else study.train.rounds
    path = _checkpoint(before.hub, newest_round)
    start = 0 if path is None else _stored_round(path)
    if path is not None and start:
        _copy_checkpoint(path, after.hub, study_digest(smaller))
        _copy_history(before, after, site, start)
    record = Withdrawal(site, first, start, study_digest(study), study_digest(smaller), utc_now())
    write_whole(after.withdrawal, msgspec.json.encode(record))
    for folder in (after, before):
        AuditLog(folder.audit, identity).write("withdrawn", **msgspec.structs.asdict(record))
    return record


def first_merged(run: RunFolder, site: str) -> int | None:
    """Return the first round into which an update of this site was merged, or None if there is none."""
    rounds = [line.round for line in read_rounds(run.rounds) if line.site == site and line.status == "merged"]
    known = membership.first_rounds(run.hub).get(site)
    return min([*rounds, *([known] if known is not None else [])], default=None)


def _checkpoint(hub: Path, newest_round: int) -> Path | None:
    """Return the newest readable checkpoint of at most this round."""
    paths = [*hub.glob("round-*.safetensors"), *(hub / membership.FOLDER).glob("round-*.safetensors")]
    for path in sorted(paths, key=_named_round, reverse=True):
        if _named_round(path) <= newest_round and _stored_round(path) == _named_round(path):
            return path
    return None


def _named_round(path: Path) -> int:
    return int(path.stem.removeprefix("round-"))


def _stored_round(path: Path) -> int:
    """Return the round that a checkpoint holds, -1 if it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            return int(file.metadata()["round"])
    except Exception:  # noqa: BLE001 - cut short by a power loss: an older one serves
        return -1


def _copy_checkpoint(path: Path, hub: Path, study: str) -> None:
    """Write a checkpoint to the new run's folder, as one of the new study."""
    private_folder(hub)
    metadata = {"round": str(_named_round(path)), "study": study}
    save_file(load_file(path), hub / path.name, metadata=metadata)


def _copy_history(before: RunFolder, after: RunFolder, site: str, start: int) -> None:
    """Copy what belongs to the model that training resumes from: its rounds, and who had joined by then."""
    lines = [line for line in read_rounds(before.rounds) if line.round <= start and line.site != site]
    write_whole(after.rounds, encode_rounds(lines))
    joined = {
        name: number
        for name, number in membership.first_rounds(before.hub).items()
        if number <= start and name != site
    }
    write_whole(after.hub / membership.FILE, msgspec.json.encode(joined))
    for path in (before.hub / membership.FOLDER).glob("round-*.safetensors"):
        if _named_round(path) < start:
            private_folder(after.hub / membership.FOLDER)
            shutil.copyfile(path, after.hub / membership.FOLDER / path.name)

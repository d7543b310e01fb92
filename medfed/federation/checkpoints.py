"""The hub's checkpoints: the newest models and rule states of a study, from which a run resumes.

Where a study keeps its best model, the best one so far stays beside them, in `best/`, and each checkpoint
says which it is and how it was judged.
"""

from __future__ import annotations

import logging
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec
import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor

from medfed.aggregation import State
from medfed.errors import DECODING_ERRORS, RunError
from medfed.federation import membership
from medfed.federation.model_selection import NOT_JUDGED, Judged
from medfed.files import not_written, replacing, write_whole
from medfed.runs.rounds import RoundReport, SiteResult
from medfed.wire import encoding
from medfed.wire.update import GlobalModel

log = logging.getLogger("medfed.federation.checkpoints")

# How many checkpoints stay on disk: the newest, and the one before it in case a power loss tore it.
MAX_CHECKPOINTS = 2


# In a hub's folder: the best model so far, and the report of a round until it is recorded.
BEST, UNRECORDED = "best", "unrecorded.json"


# In the metadata of a file of tensors: its `checksum`.
CHECKSUM = "checksum"


class Checkpoint(NamedTuple):
    """A model, the rule's state, and which round was the best when it was merged."""

    model: GlobalModel
    state: State
    best: Judged = NOT_JUDGED


def load_latest_checkpoint(folder: Path, study_digest: str = "") -> Checkpoint | None:
    """Return the newest checkpoint in a hub's folder, or None.

    One that a power loss cut short, or whose bytes are no longer those that were written, is passed over
    with a warning.

    Raises:
        RunError: if the newest readable one belongs to another study, or none can be read.
    """
    paths = sorted(folder.glob("round-*.safetensors"), reverse=True)
    found = next(_readable(paths, study_digest), None)
    if paths and found is None:
        raise RunError(
            f"none of the hub's {len(paths)} checkpoints can be read: they are damaged; restore the run "
            "folder from a back-up and resume, or start a new run in another folder (--out)"
        )
    return found


def load_best_checkpoint(folder: Path, best: Judged, study_digest: str = "") -> Checkpoint:
    """Return the checkpoint of the best round, which `save_round` kept.

    Raises:
        RunError: if it is missing or damaged.
    """
    path = folder / BEST / _name(best.round)
    found = next(_readable([path], study_digest), None)
    if found is None:
        raise RunError(
            f"the model of round {best.round}, the best by its validation scores, is missing or damaged in "
            f"the run folder ({BEST}/); restore it from a backup, or train again"
        )
    return found


def _readable(paths: Iterable[Path], study_digest: str) -> Iterator[Checkpoint]:
    for path in paths:
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                metadata = file.metadata()
            tensors = load_file(path)
            # An earlier medfed wrote another one, or none.
            damaged = CHECKSUM in metadata and metadata[CHECKSUM] != checksum(tensors, metadata)
        except Exception:  # noqa: BLE001 - whatever is in a torn file, it is damaged
            damaged = True
        if damaged:
            log.warning(
                "hub: the checkpoint %s is damaged and not used; look after the disk of the run folder",
                path.name,
            )
            continue
        if study_digest and metadata["study"] != study_digest:
            raise RunError(
                f"this run folder holds a run of study {metadata['study'][:12]}, the study file's digest is "
                f"{study_digest[:12]}; resume with the file that started it, or choose another run folder "
                "(--out)"
            )
        weights: dict[str, Tensor] = {}
        state: dict[str, dict[str, Tensor]] = {}
        for full, tensor in tensors.items():
            group, _, name = full.partition("/")
            own = weights if group == "weights" else state.setdefault(group.removeprefix("state:"), {})
            own[name] = tensor
        chosen = int(metadata["chosen"]) if "chosen" in metadata else None
        best = msgspec.json.decode(metadata["best"], type=Judged) if "best" in metadata else NOT_JUDGED
        yield Checkpoint(
            GlobalModel(int(metadata["round"]), weights, study_digest=study_digest, chosen=chosen),
            state,
            best,
        )


def checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Return the CRC-32 of tensors, their names and forms, and what is said of them.

    A disk's error changes it; it is no signature.
    """
    total = 0
    for key in sorted(metadata.keys() - {CHECKSUM}):
        total = zlib.crc32(f"{key}={metadata[key]}\n".encode(), total)
    for name in sorted(tensors):
        tensor = tensors[name]
        total = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode(), total)
        data = tensor.contiguous().reshape(-1).view(torch.uint8)
        total = zlib.crc32(memoryview(data.numpy()), total)  # type: ignore[arg-type]
    return f"{total:08x}"


def _name(round: int) -> str:
    return f"round-{round:05d}.safetensors"


def save_round(
    folder: Path, current: GlobalModel, state: State, results: Iterable[SiteResult], best: Judged = NOT_JUDGED
) -> None:
    """Write the checkpoint of a merged round, and which sites were merged into it.

    Where the round before turned out to be the best so far, its checkpoint is kept.
    """
    if best.round and best.round == current.round - 1:
        keep_best(folder, best.round)
    save_checkpoint(folder, current, state, best)
    merged = [result.site for result in results if result.status == "merged"]
    membership.record_first_rounds(folder, current.round, merged)


def keep_report(folder: Path, report: RoundReport) -> None:
    """Keep a round's report until it is recorded, on disk before the checkpoint from which a hub resumes.

    Else a hub that is killed between its checkpoint and its record would leave the round out of the record.
    """
    try:
        write_whole(folder / UNRECORDED, msgspec.json.encode(report), durable=True)
    except OSError as error:
        raise _not_written(report.round, error) from None


def unrecorded_report(folder: Path, round: int) -> RoundReport | None:
    """Return the report that was kept and not recorded, if its round is in the checkpoint of this round."""
    path = folder / UNRECORDED
    if not path.exists():
        return None
    try:
        report = msgspec.json.decode(path.read_bytes(), type=RoundReport)
    except DECODING_ERRORS:
        log.warning(
            "hub: %s is damaged: the record of the last round before it was stopped is lost", path.name
        )
        return None
    return report if report.round <= round else None


def forget_report(folder: Path) -> None:
    """Forget the report that was kept, once it is recorded."""
    (folder / UNRECORDED).unlink(missing_ok=True)


def _not_written(round: int, error: OSError) -> RunError:
    what = f"round {round}: its checkpoint could not be written: {error.strerror or type(error).__name__}"
    return not_written(what, error, f"resume with --resume, from round {round - 1}")


def keep_best(folder: Path, round: int) -> None:
    """Keep a copy of this round's checkpoint, whose model is the best so far."""
    kept = folder / BEST / _name(round)
    with replacing(kept, durable=True) as unfinished:
        shutil.copyfile(folder / kept.name, unfinished)


def save_checkpoint(folder: Path, current: GlobalModel, state: State, best: Judged = NOT_JUDGED) -> None:
    """Write a model and the rule's state, on disk when this returns, and delete what is older than needed.

    Raises:
        StorageError: if the disk is full.
        RunError: if it cannot be written for another reason.
    """
    tensors = {f"weights/{name}": tensor.contiguous() for name, tensor in current.weights.items()}
    for group, named in state.items():
        tensors |= {f"state:{group}/{name}": tensor.contiguous() for name, tensor in named.items()}
    metadata = {"round": str(current.round), "study": current.study_digest}
    if best.round:
        metadata["best"] = msgspec.json.encode(best).decode()
    if current.chosen is not None:
        metadata["chosen"] = str(current.chosen)
    metadata[CHECKSUM] = checksum(tensors, metadata)
    path = folder / _name(current.round)
    try:
        with replacing(path, durable=True) as unfinished, unfinished.open("wb") as file:
            for piece in encoding.safetensors_pieces(tensors, metadata):
                file.write(piece)
    except OSError as error:
        raise _not_written(current.round, error) from None
    for old in sorted(folder.glob("round-*.safetensors"))[:-MAX_CHECKPOINTS]:
        old.unlink()
    # The checkpoint before the newest may still name the best model before this one.
    for old in sorted((folder / BEST).glob("round-*.safetensors"))[:-MAX_CHECKPOINTS]:
        old.unlink()

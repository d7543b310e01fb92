"""The hub's checkpoints: the newest models and rule states of a study, from which a run resumes."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

import safetensors
from safetensors.torch import load_file
from torch import Tensor

from medfed.aggregation import State
from medfed.errors import RunError
from medfed.federation import membership
from medfed.files import replacing
from medfed.runs.rounds import SiteResult
from medfed.wire import encoding
from medfed.wire.update import GlobalModel
from medfed.wire.weights import digest

log = logging.getLogger("medfed.federation.checkpoints")

# How many checkpoints stay on disk: the newest, and the one before it in case a power loss tore it.
MAX_CHECKPOINTS = 2


def load_latest_checkpoint(folder: Path, study_digest: str = "") -> tuple[GlobalModel, State] | None:
    """Return the newest model and rule state in a hub's folder, or None.

    One that a power loss cut short, or whose bytes are no longer those that were written, is passed over
    with a warning.

    Raises:
        RunError: if the newest readable one belongs to another study, or none can be read.
    """
    paths = sorted(folder.glob("round-*.safetensors"), reverse=True)
    for path in paths:
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                metadata = file.metadata()
            tensors = load_file(path)
            # An earlier medfed wrote none.
            damaged = digest(tensors) != metadata.get("sha256", digest(tensors))
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
        return GlobalModel(int(metadata["round"]), weights, study_digest=study_digest), state
    if paths:
        raise RunError(
            f"none of the hub's {len(paths)} checkpoints can be read: they are damaged; restore the run "
            "folder from a back-up and resume, or start a new run in another folder (--out)"
        )
    return None


def save_round(folder: Path, current: GlobalModel, state: State, results: Iterable[SiteResult]) -> None:
    """Write the checkpoint of a merged round, and which sites were merged into it."""
    save_checkpoint(folder, current, state)
    merged = [result.site for result in results if result.status == "merged"]
    membership.record_first_rounds(folder, current.round, merged)


def save_checkpoint(folder: Path, current: GlobalModel, state: State) -> None:
    """Write a model and the rule's state, on disk when this returns, and delete what is older than needed.

    Raises:
        RunError: if the disk is full or cannot be written.
    """
    tensors = {f"weights/{name}": tensor.contiguous() for name, tensor in current.weights.items()}
    for group, named in state.items():
        tensors |= {f"state:{group}/{name}": tensor.contiguous() for name, tensor in named.items()}
    metadata = {
        "round": str(current.round),
        "study": current.study_digest,
        "sha256": digest(tensors),
    }
    path = folder / f"round-{current.round:05d}.safetensors"
    try:
        with replacing(path, durable=True) as unfinished, unfinished.open("wb") as file:
            for piece in encoding.safetensors_pieces(tensors, metadata):
                file.write(piece)
    except OSError as error:
        raise RunError(
            f"round {current.round}: its checkpoint could not be written: "
            f"{error.strerror or error}; free disk space in the run folder and resume with --resume, "
            f"from round {current.round - 1}"
        ) from None
    for old in sorted(folder.glob("round-*.safetensors"))[:-MAX_CHECKPOINTS]:
        old.unlink()

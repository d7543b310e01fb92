"""The hub's last models in a site's own folder, each with the digests of its chunks beside it.

An earlier process may have left them, and a disk may have changed them since: none is used before it was
compared with its digests.
"""

from __future__ import annotations

from pathlib import Path

from medfed.errors import WireError
from medfed.exchange._chunks import download, has_chunks
from medfed.exchange._manifest import Manifest
from medfed.exchange._study_store import StudyStore
from medfed.wire import encoding

# How many stay: the newest, and the one from which a site's last checkpoint may have been trained.
MAX_CACHED_MODELS = 2


class ReceivedModels:
    """The models that a site holds of one study."""

    def __init__(self, objects: StudyStore, folder: Path) -> None:
        self._objects, self._folder = objects, folder

    def path(self, round: int) -> Path:
        """Return where the model of a round is, or would be."""
        return self._folder / f"r{round:05d}.global"

    @property
    def newest(self) -> int:
        """The newest round of which there is a model; -1 if there is none."""
        return max(self._rounds(), default=-1)

    def fetch(self, manifest: Manifest) -> Path:
        """Return the model that a manifest names, fetched if it is not here as it was sent.

        Raises:
            WireError: if it is not what the manifest names.
            MissingObject: if some of it is not in the store.
        """
        path = self.path(manifest.round)
        known, chunks = path.with_suffix(".chunks"), "\n".join(manifest.chunks)
        cached = known.exists() and known.read_bytes() == chunks.encode()
        if not (cached and has_chunks(path, manifest.chunk_bytes, manifest.chunks)):
            download(self._objects.store, manifest, self._objects.global_prefix(manifest.round), path)
            known.write_text(chunks)
        received = encoding.read_global(path, self._objects.study_digest)
        if received.round != manifest.round:
            path.unlink()
            raise WireError(
                f"the manifest says round {manifest.round}, the model in it says round {received.round}"
            )
        for old in sorted(self._rounds())[:-MAX_CACHED_MODELS]:
            for suffix in (".global", ".chunks", ".partial", ".got"):
                self.path(old).with_suffix(suffix).unlink(missing_ok=True)
        return path

    def is_whole(self, round: int, chunk_bytes: int) -> bool:
        """Return whether the model of a round is still the one that was received."""
        path = self.path(round)
        known = path.with_suffix(".chunks")
        chunks = known.read_text(errors="replace").splitlines() if known.exists() else []
        return has_chunks(path, chunk_bytes, chunks)

    def _rounds(self) -> list[int]:
        return [int(path.stem[1:]) for path in self._folder.glob("r*.chunks")]

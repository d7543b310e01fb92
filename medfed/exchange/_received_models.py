"""The hub's last models in a site's own folder, each with the digests of its chunks beside it.

An earlier process may have left them, and a disk may have changed them since: none is used before it was
compared with its digests.
"""

from __future__ import annotations

from pathlib import Path

from medfed.errors import WireError
from medfed.exchange._chunks import download, has_chunks, prefetch
from medfed.exchange._manifest import Manifest
from medfed.exchange._study_store import StudyStore
from medfed.wire import encoding
from medfed.wire.open_file import may_be_read

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
            prefix = self._objects.global_prefix(manifest.round)
            download(self._objects.store, manifest, prefix, path, overwrite=self._reuse_oldest(path))
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

    def prefetch(self, manifest: Manifest) -> bool:
        """Fetch available chunks of a model that is still being published; return whether there were any."""
        path = self.path(manifest.round)
        if path.exists():
            return False
        prefix = self._objects.global_prefix(manifest.round)
        return prefetch(self._objects.store, manifest, prefix, path, overwrite=self._reuse_oldest(path))

    def _reuse_oldest(self, path: Path) -> bool:
        """Turn the oldest model's file into the partial file of a new model, if nobody reads it any more.

        Writing to pages that the system holds already takes a fifth of the time of new ones. The oldest model
        would be removed as soon as the new one is here. If this process may still read a tensor of it, it is
        left alone.

        Returns:
            Whether there is a partial file to overwrite.
        """
        partial, rounds = path.with_suffix(".partial"), sorted(self._rounds())
        if not partial.exists() and not path.exists() and len(rounds) >= MAX_CACHED_MODELS:
            oldest = self.path(rounds[0])
            if oldest.exists() and not may_be_read(oldest):
                # Its digests first: without them it is no model any more.
                oldest.with_suffix(".chunks").unlink()
                oldest.replace(partial)
        return partial.exists()

    def is_whole(self, round: int, chunk_bytes: int) -> bool:
        """Return whether the model of a round is still the one that was received."""
        path = self.path(round)
        known = path.with_suffix(".chunks")
        chunks = known.read_text(errors="replace").splitlines() if known.exists() else []
        return has_chunks(path, chunk_bytes, chunks)

    def _rounds(self) -> list[int]:
        return [int(path.stem[1:]) for path in self._folder.glob("r*.chunks")]

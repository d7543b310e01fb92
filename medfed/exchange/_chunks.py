"""Bytes on their way in files: cut into chunks, hashed, sent and received, and gone on with after a kill -9.

Nothing here is fsynced: a process that is killed leaves its files whole, and after a power loss the digests
show what is not, and it is fetched or made again.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from medfed.errors import WireError
from medfed.exchange._manifest import Manifest
from medfed.exchange._object_store import Buffer, ObjectStore, Parts, chunk_name


def split_chunks(pieces: Iterable[Buffer], size: int) -> Iterator[Parts]:
    """Yield the same bytes in chunks of one size, the last one shorter, each as the parts it lies
    in: none is copied.
    """
    held: list[Buffer] = []
    room = size
    for piece in pieces:
        view = memoryview(piece)
        while len(view) >= room:
            yield [*held, view[:room]]
            view, held, room = view[room:], [], size
        if view:
            held.append(view)
            room -= len(view)
    if held:
        yield held


class OutgoingUpdate:
    """One update on its way: in a file, with what of it has arrived, so that a restart sends only the rest."""

    def __init__(self, folder: Path, round: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # One file for every round, written over: pages that a system has at hand already cost a fifth of new
        # ones (0.25 and 1.3 s for 400 MB).
        self._path = folder / "update"
        self._acknowledged = folder / f"r{round:05d}.stored"
        self._manifest = folder / f"r{round:05d}.manifest"
        self._delivered = folder / f"r{round:05d}.delivered"
        self._changed = threading.Condition()
        # How many of its chunks are in the file. The file may be longer than they are: until the last one is
        # written, it ends in what is left of a longer update before.
        self._count = 0
        self._described: Manifest | None = None
        self._written = True
        self._error: BaseException | None = None
        self.round = round

    @property
    def complete(self) -> bool:
        """Whether the whole update is in the file, from this process or one before."""
        return self._manifest.exists()

    @property
    def writing(self) -> bool:
        """Whether a thread of this process fills the file at the moment."""
        return not self._written

    @property
    def delivered(self) -> bool:
        """Whether the hub's side holds all of it and its manifest."""
        return self._delivered.exists()

    @property
    def manifest(self) -> Manifest:
        """The manifest of the update that is in the file, or on its way there."""
        return self._described or msgspec.json.decode(self._manifest.read_bytes(), type=Manifest)

    def write(self, chunks: Iterable[Parts], described: Manifest) -> None:
        """Begin to fill the file with an update's chunks in a thread of its own; `chunks` follows it.

        The manifest, which is kept beside the file once that is whole, names what the update was when it was
        measured: whoever reads it later holds the file to it. No other update may be on its way into the
        file: `settle` says when the last one is through.
        """
        for old in (*self._path.parent.glob("*.stored"), *self._path.parent.glob("*.manifest")):
            old.unlink(missing_ok=True)
        self._written, self._count, self._error, self._described = False, 0, None, described
        # Opened here, so that a full or missing disk is known at once.
        file = self._path.open("rb+" if self._path.exists() else "wb")

        def fill() -> None:
            try:
                with file:
                    total = 0
                    for chunk in chunks:
                        file.writelines(chunk)
                        file.flush()
                        total += sum(map(len, chunk))
                        with self._changed:
                            self._count += 1
                            self._changed.notify_all()
                    file.truncate(total)
                aside = self._manifest.with_suffix(".writing")
                aside.write_bytes(msgspec.json.encode(described))
                aside.replace(self._manifest)
            except BaseException as error:
                self._error = error
            with self._changed:
                self._written = True
                self._changed.notify_all()

        threading.Thread(target=fill, name="medfed-outgoing", daemon=True).start()

    def wait_written(self) -> None:
        """Return when no thread of this process writes into the file any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._written)

    def chunks(self, prefix: str) -> Iterator[tuple[str, Parts]]:
        """Yield name and content (in one part) of each chunk that has not arrived yet, as the file fills.

        Raises:
            WireError: if the file is shorter than its manifest says.
        """
        found, arrived = self.manifest, self._arrived()
        with self._path.open("rb") as file:
            for index, ((first, length), digest) in enumerate(zip(found.spans, found.chunks, strict=True)):
                with self._changed:
                    self._changed.wait_for(lambda: self._written or index < self._count)  # noqa: B023
                    if self._error is not None:
                        raise self._error
                if index not in arrived:
                    data = os.pread(file.fileno(), length, first)
                    if len(data) != length:
                        raise WireError(
                            f"the update on its way (outbox/update in this site's folder) ends in chunk {index + 1}, after "
                            f"{len(data)} of its {length} bytes: something else wrote to it"
                        )
                    yield chunk_name(prefix, index, digest), [data]
        # Until then the file may be longer, and has no manifest beside it.
        self.wait_written()
        if self._error is not None:
            raise self._error

    def intact(self) -> bool:
        """Whether the file of an earlier process still holds every byte that its manifest names."""
        found = self.manifest
        try:
            with self._path.open("rb") as file:
                return all(
                    hashlib.sha256(os.pread(file.fileno(), length, first)).hexdigest() == digest
                    for (first, length), digest in zip(found.spans, found.chunks, strict=True)
                )
        except OSError:
            return False

    def arrived(self, name: str) -> None:
        """Note that a chunk is stored at the other side."""
        index = int(name.rpartition("/")[2].partition("-")[0])
        with self._acknowledged.open("ab") as file:
            file.write(index.to_bytes(4, "little"))

    def _arrived(self) -> set[int]:
        try:
            data = self._acknowledged.read_bytes()
        except FileNotFoundError:
            return set()
        return {int.from_bytes(data[at : at + 4], "little") for at in range(0, len(data) - 3, 4)}

    def mark_delivered(self) -> None:
        """Note that all of it and its manifest arrived."""
        self._delivered.touch()
        self._acknowledged.unlink(missing_ok=True)

    def mark_lost(self) -> None:
        """Note that nothing of it is at the other side any more."""
        self._acknowledged.unlink(missing_ok=True)
        self._delivered.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove every trace of it."""
        for path in (self._acknowledged, self._manifest, self._delivered):
            path.unlink(missing_ok=True)


def download(store: ObjectStore, found: Manifest, prefix: str, path: Path, write_over: bool = False) -> None:
    """Put the bytes that a manifest names into a file, going on where an earlier call stopped.

    With `write_over` a file that is there is written over instead of replaced; nobody may still read it then.

    Raises:
        WireError: if a chunk is not what the manifest names.
        MissingObject: if one is not there.
    """
    coming = _Incoming(found, prefix, path, write_over)
    coming.receive(store, coming.left())
    os.truncate(coming.partial, found.bytes)
    coming.partial.replace(path)
    coming.record.unlink()


def prefetch(store: ObjectStore, found: Manifest, prefix: str, path: Path, write_over: bool = False) -> bool:
    """Put some of the chunks into the file that `bring` will fill, as far as they are there;
    return whether any was.

    The manifest is of something that is still on its way. What is brought counts for nothing until `bring` is
    called with the same chunks; what does not fit is left to it.
    """
    coming = _Incoming(found, prefix, path, write_over)
    return coming.receive(store, coming.left()[:PREFETCH_CHUNKS], ahead=True)


# How many chunks are asked for at once that may not be there yet.
PREFETCH_CHUNKS = 4


class _Incoming:
    """A file on its way here: what is there of it, and a record of which chunks that is, of which manifest."""

    def __init__(self, found: Manifest, prefix: str, path: Path, write_over: bool) -> None:
        self._found, self._prefix = found, prefix
        self.partial, self.record = path.with_suffix(".partial"), path.with_suffix(".got")
        self._wanted = combined_digest(found.chunks)
        held = self.record.read_bytes() if self.record.exists() and self.partial.exists() else b""
        if held[:32] == self._wanted:
            self._got = {int.from_bytes(held[at : at + 4], "little") for at in range(32, len(held) - 3, 4)}
            return
        self._got = set()
        path.parent.mkdir(parents=True, exist_ok=True)
        self.record.unlink(missing_ok=True)
        if write_over and path.exists():
            path.replace(self.partial)
        elif not write_over:
            self.partial.unlink(missing_ok=True)
        self.partial.touch()
        self.record.write_bytes(self._wanted)

    def left(self) -> list[int]:
        """The chunks that are not here yet, in order."""
        return [index for index in range(len(self._found.chunks)) if index not in self._got]

    def receive(self, store: ObjectStore, wanted: Iterable[int], ahead: bool = False) -> bool:
        """Fetch chunks into the file, and return whether any came; those asked for `ahead` need not
        be there, nor fit.

        Raises:
            WireError: if a chunk is not what the manifest names.
            MissingObject: if one is not there.
        """
        spans, came = self._found.spans, False
        names = {chunk_name(self._prefix, index, self._found.chunks[index]): index for index in wanted}
        with self.partial.open("rb+") as file, self.record.open("ab", buffering=0) as got:

            def take(name: str, data: bytes | memoryview) -> None:
                nonlocal came
                index = names[name]
                first, length = spans[index]
                if len(data) == length and hashlib.sha256(data).hexdigest() == self._found.chunks[index]:
                    _write(file.fileno(), data, first)
                    got.write(index.to_bytes(4, "little"))
                    came = True
                elif not ahead:
                    raise WireError(
                        f"chunk {index + 1} of {len(self._found.chunks)} does not have the digest that its manifest names: "
                        f"it was changed or damaged on the way"
                    )

            store.get_many(list(names), take, skip=ahead)
        return came


def combined_digest(chunks: Iterable[str]) -> bytes:
    """Return the SHA-256 of chunks' SHA-256 (in hex, one after the other): it stands for all their bytes."""
    return hashlib.sha256("".join(chunks).encode()).digest()


def measured(pieces: Iterable[Buffer], size: int) -> tuple[int, list[str]]:
    """Return how many bytes there are, and each chunk's SHA-256."""
    total, digests = 0, []
    for chunk in split_chunks(pieces, size):
        sha = hashlib.sha256()
        for part in chunk:
            sha.update(part)
            total += len(part)
        digests.append(sha.hexdigest())
    return total, digests


def _write(handle: int, data: bytes | memoryview, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(handle, view, offset)
        view, offset = view[written:], offset + written

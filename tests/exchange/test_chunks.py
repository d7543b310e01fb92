"""Objects are cut into chunks, and a chunk counts only with the digest that its manifest names."""

from __future__ import annotations

import hashlib

from chunked_updates import STUDY, received_chunks
from hypothesis import given
from hypothesis import strategies as st

from medfed.exchange._chunks import download, prefetch, split_chunks
from medfed.exchange._manifest import PROTOCOL, Manifest
from medfed.exchange._object_store import chunk_name
from medfed.exchange.folder import FolderStore


@given(st.lists(st.binary(max_size=40), max_size=8), st.integers(1, 17))
def test_chunks_are_the_same_bytes_all_of_one_size_but_the_last(pieces, size):
    chunks = [b"".join(chunk) for chunk in split_chunks(iter(pieces), size)]
    assert b"".join(chunks) == b"".join(pieces)
    assert all(len(chunk) == size for chunk in chunks[:-1])
    assert all(0 < len(chunk) <= size for chunk in chunks[-1:])


def test_a_chunk_is_cut_without_a_copy():
    buffer = bytearray(b"abcdefgh")
    chunks = list(split_chunks([b"12", memoryview(buffer)], 4))
    buffer[:] = b"ABCDEFGH"
    assert [b"".join(chunk) for chunk in chunks] == [b"12AB", b"CDEF", b"GH"]


def test_a_damaged_chunk_is_not_taken_ahead(tmp_path):
    store = FolderStore(str(tmp_path / "share"))
    chunks = [b"a" * 1000, b"b" * 1000, b"c" * 10]
    digests = [hashlib.sha256(chunk).hexdigest() for chunk in chunks]
    manifest = Manifest(PROTOCOL, "update", STUDY, "run", "north", 1, 2010, 1000, digests)
    names = [chunk_name("up/x", index, name) for index, name in enumerate(digests)]
    store.put(names[0], chunks[0])
    store.put(names[1], b"B" + chunks[1][1:])
    path = tmp_path / "spool" / "north.update"
    assert prefetch(store, manifest, "up/x", path)
    assert received_chunks(path.parent, "north") == 1
    assert not prefetch(store, manifest, "up/x", path)
    store.put(names[1], chunks[1])
    store.put(names[2], chunks[2])
    download(store, manifest, "up/x", path)
    assert path.read_bytes() == b"".join(chunks)
    store.close()


def test_chunks_of_an_earlier_process_that_a_disk_changed_are_fetched_again(tmp_path, monkeypatch):
    store = FolderStore(str(tmp_path / "share"))
    chunks = [b"a" * 1000, b"b" * 1000, b"c" * 10]
    digests = [hashlib.sha256(chunk).hexdigest() for chunk in chunks]
    manifest = Manifest(PROTOCOL, "update", STUDY, "run", "north", 1, 2010, 1000, digests)
    for index in (0, 1):
        store.put(chunk_name("up/x", index, digests[index]), chunks[index])
    path = tmp_path / "spool" / "north.update"
    assert prefetch(store, manifest, "up/x", path)
    partial = path.with_suffix(".partial")
    partial.write_bytes(b"A" + partial.read_bytes()[1:])
    monkeypatch.setattr("medfed.exchange._chunks._STARTED", b"another process")
    store.put(chunk_name("up/x", 2, digests[2]), chunks[2])
    download(store, manifest, "up/x", path)
    assert path.read_bytes() == b"".join(chunks)
    store.close()

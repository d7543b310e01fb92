"""Names of stored objects, and what is done with an object that does not exist."""

from __future__ import annotations

import pytest

from medfed.exchange._object_store import MissingObject, chunk_name, manifest_name, pass_on

DIGEST = "0123456789abcdef" * 4


def test_a_chunks_name_has_its_index_and_half_of_its_digest() -> None:
    assert chunk_name("up/s/north/r1", 3, DIGEST) == f"up/s/north/r1/c/3-{DIGEST[:32]}"
    assert manifest_name("up/s/north/r1") == "up/s/north/r1/m"


def test_an_object_is_passed_on_and_a_missing_one_is_skipped_or_named_by_its_index() -> None:
    received: list[tuple[str, object]] = []
    name = chunk_name("up/s/north/r1", 3, DIGEST)
    for skip_missing in (True, False):
        pass_on(lambda *pair: received.append(pair), skip_missing)(name, b"1")
    assert received == [(name, b"1")] * 2
    pass_on(lambda *pair: received.append(pair), True)(name, None)
    assert len(received) == 2
    with pytest.raises(MissingObject, match=r"^chunk 3 is not in the store$"):
        pass_on(lambda *pair: received.append(pair), False)(name, None)


def test_an_empty_object_exists() -> None:
    received: list[object] = []
    pass_on(lambda name, data: received.append(data), False)("a/c/0-x", b"")
    assert received == [b""]

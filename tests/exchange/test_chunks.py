from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from medfed.exchange._chunks import split_chunks


@given(st.lists(st.binary(max_size=40), max_size=8), st.integers(1, 17))
def test_chunks_are_the_same_bytes_all_of_one_size_but_the_last(pieces, size):
    found = [b"".join(chunk) for chunk in split_chunks(iter(pieces), size)]
    assert b"".join(found) == b"".join(pieces)
    assert all(len(chunk) == size for chunk in found[:-1])
    assert all(0 < len(chunk) <= size for chunk in found[-1:])


def test_a_chunk_is_cut_without_a_copy():
    buffer = bytearray(b"abcdefgh")
    chunks = list(split_chunks([b"12", memoryview(buffer)], 4))
    buffer[:] = b"ABCDEFGH"
    assert [b"".join(chunk) for chunk in chunks] == [b"12AB", b"CDEF", b"GH"]

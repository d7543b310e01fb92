"""The digests of the cases that trained: what is recognised, and what the file tells nobody."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

import pytest

from medfed.errors import RunError
from medfed.runs.trained import TrainedCases, read_trained, write_trained


def test_a_digest_is_the_keyed_sha256_of_the_content() -> None:
    expected = hmac.new(b"\x07" * 32, b"an image", hashlib.sha256).hexdigest()[:32]
    assert TrainedCases("07" * 32).digest(b"an image") == expected


def test_what_trained_anywhere_is_seen_except_at_the_site_that_is_left_out(tmp_path: Path) -> None:
    trained = write_trained(
        tmp_path / "trained.json", {"north": {"train": [b"a"], "val": [b"b"]}, "south": {"train": [b"c"]}}
    )
    contents = {"token-a": b"a", "token-b": b"b", "token-c": b"c", "token-new": b"d"}
    assert trained.seen(contents) == {"token-a", "token-b", "token-c"}
    assert trained.seen(contents, besides="north") == {"token-c"}


def test_a_later_run_adds_to_the_file_under_the_same_key(tmp_path: Path) -> None:
    path = tmp_path / "trained.json"
    first = write_trained(path, {"north": {"train": [b"a"]}})
    second = write_trained(path, {"north": {"train": [b"a", b"b"]}})
    assert second.key == first.key
    assert set(second.sites["north"]["train"]) == {first.digest(b"a"), first.digest(b"b")}
    assert read_trained(path) == second


def test_digests_of_two_runs_cannot_be_compared_and_tell_no_order(tmp_path: Path) -> None:
    contents = [bytes([number]) for number in range(20)]
    one, other = (
        write_trained(tmp_path / name, {"north": {"train": contents}}).sites["north"]["train"]
        for name in ("one.json", "other.json")
    )
    assert not set(one) & set(other)
    assert one == sorted(one)


def test_a_run_without_the_file_has_none(tmp_path: Path) -> None:
    assert read_trained(tmp_path / "trained.json") is None


@pytest.mark.parametrize("text", ["{", '{"key": 3}', '{"key": "no hex digits"}'])
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "trained.json").write_text(text)
    with pytest.raises(RunError, match=r"trained\.json, which says which cases trained, is damaged"):
        read_trained(tmp_path / "trained.json")

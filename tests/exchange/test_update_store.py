from __future__ import annotations

import errno
import gc
import io
import os
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from medfed.errors import RunError
from medfed.exchange._update_store import StoredModel, UpdateStore
from medfed.wire.encoding import encode_update, global_pieces
from medfed.wire.update import GlobalModel, Update, check_update
from medfed.wire.weights import Difference, Released

WEIGHTS = {"w": torch.zeros(4), "empty": torch.zeros(0)}
NOTHING = torch.zeros(0)


def update_of(number: float, owner: type = dict, site: str = "north") -> Update:
    minuend = owner({"w": torch.arange(4.0) + number, "empty": NOTHING})
    control = {"control": {"w": torch.full((4,), number, dtype=torch.float64)}}
    return Update(site, 1, Difference(minuend, WEIGHTS), 7, {"val/dice": 0.5}, control)


@pytest.mark.parametrize("owner", [dict, Released])
@pytest.mark.parametrize("memory_bytes", [0, 1 << 20])
def test_an_update_comes_back_from_memory_and_from_a_file(owner, memory_bytes):
    sent = update_of(1, owner)
    stored = UpdateStore().store(sent, "study", memory_bytes)
    assert stored.size == len(encode_update(sent, "study"))
    assert stored.in_memory == (stored.size if memory_bytes else 0)
    for _ in range(2):
        update = stored.decode(WEIGHTS, "study")
        assert (update.site, update.examples, dict(update.scalars)) == ("north", 7, {"val/dice": 0.5})
        assert [*update.delta] == ["empty", "w"]
        assert update.delta["w"].tolist() == [1, 2, 3, 4]
        assert update.delta["empty"].shape == (0,)
        assert update.groups["control"]["w"].tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("memory_bytes", [0, 1 << 20])
def test_what_its_sender_writes_to_later_is_not_in_the_update(memory_bytes):
    sent = update_of(1)
    stored = UpdateStore().store(sent, "study", memory_bytes)
    sent.delta.minuend["w"].zero_()
    sent.groups["control"]["w"].zero_()
    update = stored.decode(WEIGHTS, "study")
    assert update.delta["w"].tolist() == [1, 2, 3, 4]
    assert update.groups["control"]["w"].tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("memory_bytes", [0, 1 << 20])
def test_a_norm_that_was_measured_in_this_process_is_not_lost(memory_bytes):
    sent = check_update(update_of(1), WEIGHTS)
    norm = UpdateStore().store(sent, "study", memory_bytes).decode(WEIGHTS, "study").delta.norm
    assert norm == pytest.approx((1 + 4 + 9 + 16) ** 0.5)
    assert (
        UpdateStore().store(update_of(1), "study", memory_bytes).decode(WEIGHTS, "study").delta.norm is None
    )


def test_only_weights_that_are_given_up_are_not_copied():
    sent = update_of(1, Released)
    update = UpdateStore().store(sent, "study", 1 << 20).decode(WEIGHTS, "study")
    assert update.delta.minuend["w"].data_ptr() == sent.delta.minuend["w"].data_ptr()
    assert update.groups["control"]["w"].data_ptr() != sent.groups["control"]["w"].data_ptr()


def open_in(folder: Path) -> list[str]:
    """Return the open files, with a name or without, that were made in a folder."""
    links = []
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # closed by another thread
            links.append(os.readlink(link))
    return [link for link in links if link.startswith(f"{folder}/")]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are listed on Linux only")
def test_a_file_has_no_name_and_is_used_again_once_nobody_reads_it(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    store = UpdateStore()
    first = store.store(update_of(1), "study", 0)
    assert not list(tmp_path.iterdir())  # nothing is left of it after kill -9
    read = first.decode(WEIGHTS, "study").delta.minuend["w"]
    del first
    second = store.store(update_of(2), "study", 0)  # the first one's tensor is still read
    assert read.tolist() == [1, 2, 3, 4]
    del read
    gc.collect()
    third = store.store(update_of(3), "study", 0)
    assert len(store._free) == 0
    assert second.decode(WEIGHTS, "study").delta["w"].tolist() == [2, 3, 4, 5]
    assert third.decode(WEIGHTS, "study").delta["w"].tolist() == [3, 4, 5, 6]
    read_lazily = third.decode(WEIGHTS, "study")
    del second, third
    gc.collect()
    assert len(store._free) == 1
    store.store(update_of(4), "study", 0)
    assert read_lazily.delta["w"].tolist() == [3, 4, 5, 6]
    assert len(open_in(tmp_path)) == 1


def test_a_longer_update_is_not_written_where_a_shorter_one_was():
    store, long = UpdateStore(), Update("b", 1, {"w": torch.arange(30_000.0)}, 1)
    for short in ("a", "c"):
        first = store.store(update_of(1, site=short), "study", 0)
        second = store.store(update_of(2, site=short), "study", 0)
        del first
        third = store.store(long, "study", 0)
        assert second.decode(WEIGHTS, "study").delta["w"].tolist() == [2, 3, 4, 5]
        assert torch.equal(third.decode({"w": torch.zeros(30_000)}, "study").delta["w"], long.delta["w"])


class FullDisk(io.BytesIO):
    def write(self, data):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_an_update_that_no_disk_has_room_for_says_whose_it_is_and_what_to_do(monkeypatch):
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **settings: FullDisk())
    store = UpdateStore()
    with pytest.raises(
        RunError,
        match=r"'north', round 1: its update of .* \(No space left on device\); make room .* in TMPDIR",
    ):
        store.store(update_of(1), "study", 0)
    gc.collect()
    assert len(store._free) == 1


def test_a_tensor_that_begins_where_an_empty_one_does_is_copied():
    control = {"control": {"w": torch.ones(2)}}
    empty = Difference(Released({"w": torch.zeros(0, dtype=torch.float64)}), {"w": NOTHING})
    stored = UpdateStore().store(Update("north", 1, empty, 1, {}, control), "study", 1 << 20)
    control["control"]["w"].zero_()
    assert stored.decode({"w": NOTHING}, "study").groups["control"]["w"].tolist() == [1, 1]


def test_who_writes_to_a_tensor_from_a_file_changes_no_other_reader():
    stored = UpdateStore().store(update_of(1), "study", 0)
    stored.decode(WEIGHTS, "study").delta.minuend["w"].zero_()
    assert stored.decode(WEIGHTS, "study").delta["w"].tolist() == [1, 2, 3, 4]


def test_a_model_is_copied_once_and_read_by_all():
    weights = {"w": torch.arange(3.0), "empty": NOTHING}
    stored = StoredModel(global_pieces(GlobalModel(2, weights, study_digest="s")))
    weights["w"].zero_()
    one, two = stored.decode("s"), stored.decode("s")
    assert (one.round, one.weights["w"].tolist(), one.weights["empty"].shape) == (2, [0, 1, 2], (0,))
    assert one.weights["w"].data_ptr() == two.weights["w"].data_ptr()

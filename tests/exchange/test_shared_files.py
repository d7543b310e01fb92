"""Whoever can write to the shared folder can put anything there; it is not opened, followed or waited for."""

from __future__ import annotations

import os
import socket
import stat

import fsspec
import pytest
import torch

from medfed.exchange import _shared_files
from medfed.exchange._object_store import Unreachable, UnsafeObject
from medfed.exchange._shared_files import MAX_OBJECT_BYTES, LocalFiles, RemoteFiles
from medfed.exchange.folder import Folder, FolderStore
from medfed.wire.update import GlobalModel, Update


@pytest.fixture(params=["local", "remote"])
def files(request, tmp_path):
    if request.param == "local":
        return LocalFiles(str(tmp_path / "share"))
    storage = fsspec.filesystem("memory", skip_instance_cache=True)
    return RemoteFiles(storage, f"/{tmp_path.name}")


@pytest.fixture
def local(tmp_path):
    (tmp_path / "share").mkdir()
    return LocalFiles(str(tmp_path / "share"))


def test_what_was_written_is_read_listed_and_removed(files):
    assert files.read("up/study/north/m") is None
    assert files.names("up/study") == []
    files.write("up/study/north/m", [b"first ", memoryview(b"object")], False)
    files.write("up/study/north/m", [b"another"], True)
    assert files.read("up/study/north/m") == b"first object"
    files.write("up/study/north/m", [b"another"], False)
    files.write("up/study/south/m", [], False)
    assert files.read("up/study/north/m") == b"another"
    assert files.read("up/study/south/m") == b""
    assert sorted(files.names("up/study")) == ["north", "south"]
    files.remove("up/study/north")
    assert files.read("up/study/north/m") is None
    assert files.names("up/study") == ["south"]


def make(kind: str, place, victim) -> None:
    """Put something of this kind at a place."""
    if kind == "a link":
        place.symlink_to(victim)
    elif kind == "a pipe":
        os.mkfifo(place)
    elif kind == "a folder":
        place.mkdir()
    elif kind == "a socket":
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(os.path.relpath(place))
    elif kind == "a device":
        os.mknod(place, 0o600 | stat.S_IFCHR, os.makedev(1, 5))  # /dev/zero: it never ends


KINDS = ["a link", "a pipe", "a folder", "a socket", "a device"]


@pytest.mark.parametrize("kind", KINDS)
def test_only_a_regular_file_is_read_and_nothing_is_waited_for(local, tmp_path, kind, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "victim").write_text("precious")
    try:
        make(kind, tmp_path / "share" / "m", tmp_path / "victim")
    except PermissionError:
        pytest.skip("making a device needs root")
    with pytest.raises(UnsafeObject, match=f"the exchange's folder holds {kind} at 'm', expected a file"):
        local.read("m")


def test_what_takes_a_files_place_after_it_was_looked_at_is_not_waited_for(local, tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "share" / "m")
    monkeypatch.setattr(_shared_files, "_kind", lambda folder, name: "a file")
    with pytest.raises(UnsafeObject, match="a file of 0 bytes at 'm', expected a file"):
        local.read("m")


@pytest.mark.parametrize("kind", ["a link", "a pipe", "a socket"])
def test_a_write_replaces_what_is_there_and_not_what_it_leads_to(local, tmp_path, kind, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "victim").write_text("precious")
    make(kind, tmp_path / "share" / "m", tmp_path / "victim")
    local.write("m", [b"own"], if_absent=True)
    assert local.read("m") == b"own"
    assert (tmp_path / "victim").read_text() == "precious"


@pytest.mark.parametrize("kind", ["a link", "a pipe", "a file"])
def test_no_path_goes_through_anything_but_folders(local, tmp_path, kind):
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "m").write_text("precious")
    (tmp_path / "share" / "glob").mkdir()
    place = tmp_path / "share" / "glob" / "now"
    place.write_text("") if kind == "a file" else make(kind, place, victim)
    for act in (
        lambda: local.read("glob/now/m"),
        lambda: local.write("glob/now/m", [b"hub"], False),
        lambda: local.names("glob/now"),
        lambda: local.remove("glob/now/m"),
    ):
        with pytest.raises(UnsafeObject, match=f"holds {kind} at 'glob/now.*', expected a folder"):
            act()
    local.remove("glob/now")
    assert (victim / "m").read_text() == "precious"
    assert sorted(os.listdir(victim)) == ["m"]


def test_a_link_below_what_is_removed_is_removed_and_not_followed(local, tmp_path):
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "m").write_text("precious")
    local.write("up/r1/m", [b"1"], False)
    (tmp_path / "share/up/r1/link").symlink_to(victim)
    local.remove("up/r1")
    assert local.names("up") == []
    assert (victim / "m").read_text() == "precious"


def test_a_path_never_leaves_the_folder_and_its_own_root_may_be_a_link(tmp_path):
    (tmp_path / "share").mkdir()
    (tmp_path / "m").write_text("precious")
    (tmp_path / "mount").symlink_to(tmp_path / "share")
    files = LocalFiles(str(tmp_path / "mount"))
    with pytest.raises(UnsafeObject, match="a path out of the exchange's folder"):
        files.read("up/../../m") if (tmp_path / "share/up").mkdir() else files.read("../m")
    files.write("up/m", [b"1"], False)
    assert files.read("up/m") == b"1"


def test_a_file_larger_than_an_object_is_refused_by_its_size_alone(local, tmp_path):
    with (tmp_path / "share" / "m").open("wb") as file:
        file.truncate(3 << 30)
    with pytest.raises(
        UnsafeObject, match=f"a file of {3 << 30} bytes at 'm', expected a file of up to 16777216"
    ):
        local.read("m")


def test_the_largest_object_is_read_and_one_byte_more_is_not(files, monkeypatch):
    monkeypatch.setattr(_shared_files, "MAX_OBJECT_BYTES", 10)
    files.write("ten", [b"0123456789"], False)
    files.write("eleven", [b"0123456789+"], False)
    assert files.read("ten") == b"0123456789"
    with pytest.raises(UnsafeObject, match="a file of 11 bytes"):
        files.read("eleven")


def test_a_file_that_this_account_may_not_read_is_refused_and_not_waited_for(local, tmp_path, monkeypatch):
    local.write("m", [b"1"], False)
    real = os.open

    def barred(path, *args, **more):
        if path == "m":
            raise PermissionError(13, "Permission denied")
        return real(path, *args, **more)

    monkeypatch.setattr(os, "open", barred)
    with pytest.raises(UnsafeObject, match="a file that this account may not read at 'm'"):
        local.read("m")


def test_a_write_that_fails_leaves_nothing_behind(local, tmp_path):
    class Torn(Exception):
        pass

    def parts():
        yield b"begun"
        raise Torn

    with pytest.raises(Torn):
        local.write("m", parts(), False)
    assert os.listdir(tmp_path / "share") == []


def test_the_limit_is_above_a_chunk_and_a_manifest_of_a_large_model():
    assert 2 * FolderStore.chunk_bytes <= MAX_OBJECT_BYTES
    assert 100 * (1 << 30) // FolderStore.chunk_bytes * 70 < MAX_OBJECT_BYTES


# ------------------------------------------------------------------------------------------------- the store


def test_a_store_that_cannot_write_says_what_is_in_its_way_and_tries_again(tmp_path):
    store = FolderStore(str(tmp_path / "share"))
    (tmp_path / "share" / "glob").mkdir(parents=True)
    (tmp_path / "victim").mkdir()
    (tmp_path / "share" / "glob" / "now").symlink_to(tmp_path / "victim")
    with pytest.raises(Unreachable, match="holds a link at 'glob/now', expected a folder"):
        store.put("glob/now/m", b"hub")
    with pytest.raises(UnsafeObject, match="holds a link"):
        store.get_many(["glob/now/m"], lambda name, data: None, skip_missing=True)
    assert os.listdir(tmp_path / "victim") == []
    store.close()


def test_clearing_passes_by_what_stands_in_a_sites_place(tmp_path, caplog):
    store = FolderStore(str(tmp_path / "share"))
    store.put("up/study/north/r1/m", b"1")
    (tmp_path / "victim" / "r1").mkdir(parents=True)
    (tmp_path / "share" / "up" / "study" / "evil").symlink_to(tmp_path / "victim")
    store.delete_rounds("study", before=2)
    assert store.get("up/study/north/r1/m") is None
    assert (tmp_path / "victim" / "r1").exists()
    assert "holds a link at 'up/study/evil', expected a folder" in caplog.text
    store.close()


# ------------------------------------------------------------------------------------------------- a round

STUDY = "ab" * 32


@pytest.mark.parametrize("kind", ["a link", "a pipe", "a huge file"])
def test_a_round_goes_on_without_a_site_in_whose_place_something_else_is(tmp_path, kind):
    exchange = Folder(url=str(tmp_path / "share"), poll_s=0.05)
    hub = exchange.open_hub(STUDY, tmp_path / "hub")
    hub.publish(GlobalModel(0, {"w": torch.zeros(2)}, study_digest=STUDY))
    for name in ("r00001/m", "heartbeat/m", "announced/m", "dropped_out/m"):
        place = tmp_path / "share/up" / STUDY[:16] / "evil" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if kind == "a huge file":
            with place.open("wb") as file:
                file.truncate(3 << 30)
        else:
            make(kind, place, tmp_path / "share/glob" / STUDY[:16] / "current/m")
    south = exchange.open_site(STUDY, "south", tmp_path / "south")
    south.fetch("south", 0)
    south.send(Update("south", 1, {"w": torch.ones(2)}, 3))
    received = {one.site: one for one in hub.collect(1, ["evil", "south"], 20)}
    assert received["south"].update is not None
    assert isinstance(received["evil"].error, UnsafeObject)
    assert "site 'evil', round 1: the exchange's folder holds a" in str(received["evil"].error)
    south.close()
    hub.close()


def test_a_site_puts_its_own_update_where_a_pipe_was(tmp_path):
    exchange = Folder(url=str(tmp_path / "share"), poll_s=0.05)
    hub = exchange.open_hub(STUDY, tmp_path / "hub")
    hub.publish(GlobalModel(0, {"w": torch.zeros(2)}, study_digest=STUDY))
    place = tmp_path / "share/up" / STUDY[:16] / "south/r00001/m"
    place.parent.mkdir(parents=True)
    os.mkfifo(place)
    south = exchange.open_site(STUDY, "south", tmp_path / "south")
    south.fetch("south", 0)
    south.send(Update("south", 1, {"w": torch.ones(2)}, 3))
    (received,) = hub.collect(1, ["south"], 20)
    assert received.update is not None
    south.close()
    hub.close()

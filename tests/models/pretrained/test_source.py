"""Where a start's weights are: files, bundles as folder and zip, and hostile ones."""

from __future__ import annotations

import hashlib
import zipfile

import pytest
import torch
from bundles import write_bundle, zip_bundle

from medfed.errors import StudyError
from medfed.models.pretrained import source
from medfed.models.pretrained.source import find_source, weights_digest
from medfed.models.pretrained.tensors import read_tensors

WEIGHTS = {"a": torch.ones(3)}


def test_a_bundle_has_the_digest_of_its_model_whether_folder_zip_or_file(tmp_path):
    folder = write_bundle(tmp_path / "spleen", WEIGHTS)
    model = folder / "models" / "model.pt"
    expected = hashlib.sha256(model.read_bytes()).hexdigest()
    assert weights_digest(folder) == weights_digest(model) == expected
    assert weights_digest(zip_bundle(folder)) == weights_digest(zip_bundle(folder, "")) == expected


def test_a_runs_folder_is_its_final_model(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    torch.save({"state_dict": WEIGHTS}, tmp_path / "run" / "checkpoints" / "federated.ckpt")
    found = find_source(tmp_path / "run")
    assert (found.name, found.config) == ("run", None)
    assert torch.equal(read_tensors(found)["a"], WEIGHTS["a"])
    assert weights_digest(tmp_path / "run") == weights_digest(
        tmp_path / "run" / "checkpoints" / "federated.ckpt"
    )


def test_a_file_that_changed_has_another_digest(tmp_path):
    path = tmp_path / "a.pt"
    torch.save(WEIGHTS, path)
    before = weights_digest(path)
    torch.save({"a": torch.zeros(3)}, path)
    assert weights_digest(path) == hashlib.sha256(path.read_bytes()).hexdigest() != before


def test_a_checkpoint_of_torch_is_a_zip_and_no_bundle(tmp_path):
    torch.save(WEIGHTS, tmp_path / "a.pt")
    assert zipfile.is_zipfile(tmp_path / "a.pt")
    assert find_source(tmp_path / "a.pt").config is None


@pytest.mark.parametrize("as_zip", [False, True])
@pytest.mark.parametrize(
    ("left", "reason"),
    [
        ("model.ts", "TorchScript, which is code and is never loaded"),
        ("../large_files.yml", "large_files.yml lists them as a download"),
        ("notes.txt", "give a bundle with its weights"),
    ],
)
def test_a_bundle_without_weights_says_what_to_do(tmp_path, left, reason, as_zip):
    folder = write_bundle(tmp_path / "spleen", WEIGHTS)
    (folder / "models" / "model.pt").unlink()
    (folder / "models" / left).write_text("x")
    with pytest.raises(StudyError, match=rf"start: spleen.* without models/model.pt .*{reason}"):
        find_source(zip_bundle(folder) if as_zip else folder)


def test_nothing_of_a_zip_reaches_the_disk(tmp_path):
    path = zip_bundle(write_bundle(tmp_path / "spleen", WEIGHTS), "")
    with zipfile.ZipFile(path, "a") as opened:
        opened.writestr("../escaped.txt", "x")
        opened.writestr("/tmp/escaped-medfed.txt", "x")
    before = set(tmp_path.rglob("*"))
    with find_source(path).open() as file:
        assert torch.load(file, weights_only=True)["a"].tolist() == [1, 1, 1]
    assert set(tmp_path.rglob("*")) == before


def test_a_bomb_is_not_unpacked(tmp_path):
    path = zip_bundle(write_bundle(tmp_path / "spleen", WEIGHTS), "")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("configs/metadata.json", "{}")
        opened.writestr("models/model.pt", bytes(40 << 20))
    with pytest.raises(StudyError, match=r"start: spleen.zip: models/model.pt is compressed beyond what"):
        find_source(path).open()


def test_sizes_are_bounded(tmp_path, monkeypatch):
    folder = write_bundle(tmp_path / "spleen", WEIGHTS)
    path = zip_bundle(folder)
    monkeypatch.setattr(source, "MAX_JSON_BYTES", 10)
    for bundle in (folder, path):
        config = find_source(bundle).config
        assert config is not None
        with pytest.raises(StudyError, match=r"configs/train.json has more than 10 bytes"):
            config("configs/train.json")
    monkeypatch.setattr(source, "MAX_WEIGHTS_BYTES", 10)
    for bundle in (folder, path, folder / "models" / "model.pt"):
        with pytest.raises(StudyError, match=r"bytes, at most 10 are read as weights"):
            find_source(bundle)
    monkeypatch.setattr(source, "MAX_MEMBERS", 1)
    with pytest.raises(StudyError, match=r"spleen.zip has 3 members, at most 1 are read"):
        find_source(path)


def test_a_zip_of_two_bundles_is_refused(tmp_path):
    path = tmp_path / "two.zip"
    with zipfile.ZipFile(path, "w") as opened:
        opened.writestr("a/configs/metadata.json", "{}")
        opened.writestr("b/configs/metadata.json", "{}")
    with pytest.raises(StudyError, match=r"two.zip holds 2 bundles"):
        find_source(path)


def test_a_damaged_zip_is_named(tmp_path):
    path = zip_bundle(write_bundle(tmp_path / "spleen", WEIGHTS))
    content = bytearray(path.read_bytes())
    start = content.index(b"models/model.pt") + 40
    content[start : start + 60] = bytes(60)
    path.write_bytes(content)
    with pytest.raises(StudyError, match=r"start: spleen.zip: models/model.pt (cannot be read|is damaged)"):
        find_source(path).open()


def test_what_is_not_there_is_answered(tmp_path):
    with pytest.raises(StudyError, match=r"start: none.pt is missing"):
        find_source(tmp_path / "none.pt")

"""A dossier's manifest: what it lists, and that anything changed, added or forged is found."""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from pathlib import Path

import pytest

from medfed.deployment.enrolment import enrol
from medfed.errors import AuditError
from medfed.pipeline.dossier import manifest
from medfed.pipeline.dossier.manifest import is_dossier, opened, pack, verify_dossier, write_manifest
from medfed.wire.signing import Identity


@pytest.fixture(scope="module")
def hubs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Identity, Identity]:
    """The hubs of two federations."""
    folder = tmp_path_factory.mktemp("hubs")
    for name in ("one", "two"):
        enrol.init(folder / name, name, ["127.0.0.1"])
    return Identity(folder / "one" / "hub"), Identity(folder / "two" / "hub")


def dossier(folder: Path, identity: Identity | None = None) -> Path:
    folder.mkdir(parents=True)
    (folder / "dossier.json").write_text("{}")
    (folder / "rows.jsonl").write_text("one\n")
    write_manifest(folder, study="s" * 64, weights_sha256="w" * 64, made="2026", identity=identity)
    return folder


def test_the_manifest_lists_each_file_by_size_and_digest(tmp_path: Path) -> None:
    result = json.loads((dossier(tmp_path / "d") / "manifest.json").read_text())
    assert result["files"][1] == {
        "name": "rows.jsonl",
        "bytes": 4,
        "sha256": hashlib.sha256(b"one\n").hexdigest(),
    }
    assert len(result["files"]) == 2


def test_a_signed_dossier_names_its_signer(tmp_path: Path, hubs: tuple[Identity, Identity]) -> None:
    folder = dossier(tmp_path / "d", hubs[0])
    result = verify_dossier(folder, hubs[0].authority)
    assert (result.signer, result.manifest.study) == ("hub", "s" * 64)
    # By the library alone: Ed25519 over the context that is written here, and the file.
    import base64

    proof = json.loads((folder / "manifest.sig.json").read_text())
    key = hubs[0].certificate.public_key()
    key.verify(
        base64.b64decode(proof["signature"]), b"medfed-1 dossier\n" + (folder / "manifest.json").read_bytes()
    )
    assert verify_dossier(dossier(tmp_path / "e")).signer == ""


def _strip(folder: Path) -> None:
    (folder / "manifest.sig.json").unlink()


def _rewrite(folder: Path) -> None:
    (folder / "rows.jsonl").write_text("two\n")
    text = (folder / "manifest.json").read_text()
    changed = text.replace(hashlib.sha256(b"one\n").hexdigest(), hashlib.sha256(b"two\n").hexdigest())
    (folder / "manifest.json").write_text(changed)


def _link(folder: Path) -> None:
    (folder / "rows.jsonl").unlink()
    (folder / "rows.jsonl").symlink_to("/etc/hostname")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda folder: (folder / "rows.jsonl").write_text("two\n"), "'rows.jsonl' is another file"),
        (lambda folder: (folder / "rows.jsonl").unlink(), "'rows.jsonl' is in manifest.json and is missing"),
        (_link, "'rows.jsonl' is in manifest.json and is missing"),
        (lambda folder: (folder / "more.txt").write_text(""), "1 files or folders are not in manifest.json"),
        (lambda folder: (folder / "sub").mkdir(), "1 files or folders are not in manifest.json"),
        (_rewrite, "is no signature of manifest.json"),
        (_strip, "there is no manifest.sig.json, and --credentials asks for one"),
        (lambda folder: (folder / "manifest.sig.json").write_text("{}"), "is no signature of manifest.json"),
        (lambda folder: (folder / "manifest.json").write_text("[]"), "manifest.json is none of a dossier"),
        (lambda folder: (folder / "manifest.json").unlink(), "manifest.json is missing"),
    ],
)  # fmt: skip
def test_a_change_is_found(tmp_path: Path, hubs: tuple[Identity, Identity], change, match: str) -> None:
    folder = dossier(tmp_path / "d", hubs[0])
    change(folder)
    with pytest.raises(AuditError, match=match):
        verify_dossier(folder, hubs[0].authority)


def test_another_federations_signature_is_refused(tmp_path: Path, hubs: tuple[Identity, Identity]) -> None:
    folder = dossier(tmp_path / "d", hubs[1])
    with pytest.raises(AuditError, match=r"manifest\.sig\.json: the certificate of 'hub' is not from this"):
        verify_dossier(folder, hubs[0].authority)


def test_a_manifest_may_not_name_a_file_elsewhere(tmp_path: Path) -> None:
    folder = dossier(tmp_path / "d")
    text = (folder / "manifest.json").read_text().replace("rows.jsonl", "../rows.jsonl")
    (folder / "manifest.json").write_text(text)
    with pytest.raises(AuditError, match="of 2 names of files 1 are of no file of a dossier"):
        verify_dossier(folder)


def test_a_zip_is_the_same_for_the_same_files_and_verifies(tmp_path: Path) -> None:
    folder = dossier(tmp_path / "d")
    pack(folder, tmp_path / "a.zip")
    shutil.copytree(folder, tmp_path / "e")
    pack(tmp_path / "e", tmp_path / "b.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    assert is_dossier(tmp_path / "a.zip")
    assert is_dossier(folder)
    assert not is_dossier(tmp_path)
    with opened(tmp_path / "a.zip") as inside:
        assert len(verify_dossier(inside).manifest.files) == 2
    assert not inside.exists()


def test_a_hostile_zip_writes_nothing_elsewhere_and_fills_no_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("../out.txt", "a/b.txt", "/abs.txt", ".hidden"):
        with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
            archive.writestr(name, "x")
        with (
            pytest.raises(AuditError, match="of 1 names of files 1 are of no file"),
            opened(tmp_path / "z.zip"),
        ):
            pass
    assert not (tmp_path / "out.txt").exists()
    monkeypatch.setattr(manifest, "MAX_BYTES", 1000)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("rows.jsonl", "0" * 2000)
    with pytest.raises(AuditError, match="unpacks to more than 1000 bytes"), opened(tmp_path / "bomb.zip"):
        pass
    (tmp_path / "no.zip").write_bytes(b"no zip")
    with pytest.raises(AuditError, match=r"cannot be read \(BadZipFile\)"), opened(tmp_path / "no.zip"):
        pass

"""`medfed fingerprint` and `medfed purge`: what their options mean, and what they refuse."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner
from hospitals import make_hospital

from medfed.cli import main
from medfed.cli.data import _channels
from medfed.data.fingerprint import from_json


def run(*words: object) -> tuple[int, str]:
    done = CliRunner().invoke(main, [*map(str, words)])
    return done.exit_code, done.output


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1", 1), ("12", 12), ("t1", ("t1",)), ("t1, flair", ("t1", "flair")), ("t1,flair,", ("t1", "flair"))],
)
def test_channels_are_a_number_or_names(text: str, expected: object) -> None:
    assert _channels(text) == expected


@pytest.mark.parametrize("text", ["", ",", "0", "1,2", "t1,2"])
def test_channels_that_are_neither_are_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="expected how many channels images have, or their names"):
        _channels(text)


@pytest.fixture(scope="module")
def prints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the fingerprints of two hospitals of four training cases each."""
    folder = tmp_path_factory.mktemp("prints")
    (folder / "secret").write_bytes(b"7" * 32)
    for site in ("north", "south"):
        make_hospital(folder / site)
        words = ("--secret", folder / "secret", "--classes", 2, "--min-patients", 4)
        code, output = run("fingerprint", "make", folder / site, folder / f"{site}.json", *words)
        assert code == 0, output
        assert "counts and sums over 4 training cases of 4 patients" in output
        assert "withheld for fewer than 4 patients: 0 classes or histograms" in output
        assert f"{site}0" not in output
    return folder


def test_counts_of_few_patients_are_withheld_and_that_is_said(prints: Path, tmp_path: Path) -> None:
    words = ("--secret", prints / "secret", "--classes", 2, "--min-patients", 4)
    for name in ("north4-image", "north4-label", "north5-image", "north5-label"):  # of val and test
        assert (prints / "north" / f"{name}.nii.gz").exists()
    folder = make_hospital(tmp_path / "small", cases=3)  # three training patients
    code, output = run("fingerprint", "make", folder, tmp_path / "f.json", *words)
    assert code == 1
    assert "4" in output
    assert not (tmp_path / "f.json").exists()


def test_a_site_file_says_how_its_data_are_read(tmp_path: Path) -> None:
    """Number 1 is the study's lesion by the site's own word; one image is missing, which its policy bears."""
    folder = make_hospital(tmp_path / "north", cases=12)
    (folder / "north0-image.nii.gz").unlink()
    secret = tmp_path / "secret"
    secret.write_bytes(b"7" * 32)
    secret.chmod(0o600)
    site = tmp_path / "site.yaml"
    site.write_text(
        f"name: north\ndata: {folder}\nexchange: {{kind: folder, url: {tmp_path}/x}}\n"
        f"secret: {secret}\nclasses: {{1: lesion}}\n"
    )
    out, words = tmp_path / "f.json", ("--classes", "background,cyst,lesion", "--min-patients", 4)
    code, output = run("fingerprint", "make", "--site", site, out, *words)
    assert code == 0, output
    assert "1 of 8 cases are left out, as they cannot be used: 1 image missing" in output
    result = from_json(out.read_bytes())
    # A cube of 5 voxels a side in each of seven cases, as class 2: no other number is in the labels.
    assert result.holders == {0: 7, 2: 7}
    assert result.voxels[2] == 7 * 125
    site.write_text(site.read_text() + "policy: {unreadable: {skip: false}}\n")
    code, output = run("fingerprint", "make", "--site", site, out, *words)
    assert (code, "this site leaves no case out" in output) == (1, True)


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (("a", "b", "--site", "s.yaml"), "give FOLDER or --site SITE_FILE"),
        (("a",), "expected FOLDER OUT, or --site SITE_FILE OUT"),
        (("a", "b", "--classes", "1"), "expected how many classes labels have"),
    ],
)
def test_what_make_cannot_be_given(words: tuple[str, ...], match: str) -> None:
    code, output = run("fingerprint", "make", *words)
    assert (code, match in " ".join(output.split())) == (2, True), output


def test_fingerprints_are_added_and_planned(prints: Path) -> None:
    code, output = run("fingerprint", "merge", prints / "north.json", prints / "south.json")
    assert code == 0, output
    assert output.startswith("# from 2 hospitals, 8 patients, 8 cases\n")
    assert yaml.safe_load(output)["data"]["spacing_mm"] == pytest.approx([2, 2, 2], rel=0.01)
    assert {from_json((prints / f"{site}.json").read_bytes()).cases for site in ("north", "south")} == {4}


def test_a_file_that_is_no_fingerprint_is_named(prints: Path, tmp_path: Path) -> None:
    (tmp_path / "b.json").write_text("{}")
    for name, why in (
        ("a.json", "cannot be read; give the fingerprint files"),
        ("b.json", "not a fingerprint"),
    ):
        code, output = run("fingerprint", "merge", prints / "north.json", tmp_path / name)
        assert code == 1
        assert f"medfed: {tmp_path / name}: " in output
        assert why in output


def test_without_a_folder_the_accounts_caches_are_emptied_and_the_rest_is_said(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("MEDFED_CACHE", str(tmp_path / "chosen"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "account"))
    (tmp_path / "chosen").mkdir()
    (tmp_path / "chosen" / "note.txt").write_text("not medfed's")
    code, output = run("purge")
    assert code == 0
    assert f"{tmp_path / 'chosen'}: 0 prepared cases deleted" in output
    assert output.endswith(
        "A site's images inside its data folder: medfed purge FOLDER, or --site site.yaml\n"
    )
    assert (tmp_path / "chosen" / "note.txt").exists()


def test_purging_a_folder_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    code, output = run("purge", tmp_path / "nowhere")
    assert code == 1
    assert "is not a folder; name a data folder or a cache folder" in " ".join(output.split())

"""Prepared images lie inside the data folder, for the site's account alone, and nothing takes
them for its data.
"""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import hard_series as hs
import numpy as np
import pytest
from click.testing import CliRunner

import medfed
from medfed.cli import main
from medfed.data import cache
from medfed.data.cache_location import (
    READ_ONLY,
    account_cache,
    data_cache_folder,
    find_cache_location,
    site_folder,
)
from medfed.data.datamodule import SiteDataModule
from medfed.data.deidentify import deidentify
from medfed.data.index import index_folder
from medfed.data.preflight.listing import list_folder
from medfed.data.settings import Images
from medfed.errors import DataError
from medfed.pipeline.factory import hospital_of
from medfed.study.reading import read_study

SECRET = b"a site's secret of some length"
SAMPLES = Path(__file__).parents[2] / "sample_data"
DISK = Images(spacing_mm=(4.0, 4.0, 4.0), patch=(16, 16, 16), cache="disk")
STUDY = """\
name: cached
seed: 3
task: {{kind: segment, classes: [background, lesion]}}
network: {{kind: unet, channels: [4, 8]}}
data: {{kind: images, spacing_mm: [4, 4, 4], patch: [16, 16, 16], cache: disk}}
train: {{rounds: 1, epochs: 1, batch: 2}}
sites: {{south: {data}}}
"""


@pytest.fixture(autouse=True)
def _this_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEDFED_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "account"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return shutil.copytree(SAMPLES / "south", tmp_path / "data")


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_study_keeps_images_inside_the_data_folder_for_its_account_alone(
    data: Path, tmp_path: Path
) -> None:
    (tmp_path / "study.yaml").write_text(STUDY.format(data=data))
    study = read_study(tmp_path / "study.yaml")
    before = files(data)
    old = os.umask(0)
    try:
        hospital = hospital_of(study, "south", str(data))
        assert files(data) == before  # looking at a folder writes nothing into it
        hospital.data.dataset("train")[0]
    finally:
        os.umask(old)
    new = {data / name for name in files(data) - before}
    assert {path.parents[1] for path in new} == {data / ".medfed" / "cache"}
    for folder in (data / ".medfed", data / ".medfed" / "cache"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in new} == {0o600}
    assert READ_ONLY not in hospital.data.notes
    assert not (tmp_path / "account").exists()


def test_in_memory_writes_nothing(data: Path, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(STUDY.format(data=data).replace("disk", "memory"))
    hospital_of(read_study(tmp_path / "study.yaml"), "south", str(data)).data.dataset("train")[0]
    assert not (data / ".medfed").exists()


def test_who_decides_the_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = site_folder(SECRET)
    assert find_cache_location(tmp_path, SECRET).folder == tmp_path / ".medfed" / "cache"
    monkeypatch.setenv("MEDFED_CACHE", str(tmp_path / "fast"))
    assert find_cache_location(tmp_path, SECRET).folder == tmp_path / "fast" / own
    assert find_cache_location(tmp_path, SECRET, str(tmp_path / "chosen")).folder == tmp_path / "chosen" / own
    assert find_cache_location(tmp_path, b"another site's secret").folder.parent == tmp_path / "fast"
    assert find_cache_location(tmp_path, b"another site's secret").folder.name != own


def test_beside_a_read_only_export_the_accounts_folder_is_used_and_said(data: Path) -> None:
    read_only = "/proc/self"  # nobody, root neither, may make a file there
    place = find_cache_location(read_only, SECRET)
    assert place.folder == account_cache() / site_folder(SECRET)
    assert "can't be written to" in place.note
    assert read_only not in place.note
    opened = SiteDataModule.open(data, DISK, "segment", site_secret=SECRET, classes=2, cache=place)
    assert place.note in opened.notes
    opened.dataset("train")[0]
    assert not (data / ".medfed").exists()
    assert account_cache().stat().st_mode & 0o077 == 0


def test_a_disk_that_takes_nothing_is_named_without_its_path(data: Path, tmp_path: Path) -> None:
    (tmp_path / "a file").write_text("")
    place = find_cache_location(data, SECRET, tmp_path / "a file")
    opened = SiteDataModule.open(data, DISK, "segment", site_secret=SECRET, classes=2, cache=place)
    with pytest.raises(
        DataError, match=r"case \w+: .*can't be kept on disk \(File exists\); .*'memory'"
    ) as told:
        opened.dataset("train")[0]
    assert str(tmp_path) not in str(told.value)


def test_nothing_takes_what_lies_there_for_data(tmp_path: Path) -> None:
    # A series right in the data folder, so that the image is the folder that holds `.medfed`.
    hs.write_series(tmp_path / "ct", hs.Series(shape=(6, 8, 8)))
    folder = tmp_path / "ct"

    def seen() -> tuple:
        index = index_folder(folder, site_secret=SECRET)
        (volume,) = medfed.read(folder)
        copied = deidentify(folder, tmp_path / f"out{len(list(tmp_path.iterdir()))}", site_secret=SECRET)
        return (
            [case.token for case in index.cases],
            [cache.entry_name(case, "") for case in index.cases],
            [case.token for case in list_folder(folder, SECRET, (1, 0, 0)).cases],
            volume.array.tobytes(),
            volume.info.skipped,
            copied,
        )

    before = seen()
    hs.write_series(data_cache_folder(folder) / "another", hs.Series(shape=(7, 8, 8)))
    (data_cache_folder(folder) / "image").write_bytes(np.zeros(99, np.float16).tobytes())
    assert seen() == before


def test_a_site_is_purged_and_its_folder_left_as_it_was(data: Path, tmp_path: Path) -> None:
    before = sorted(data.rglob("*"))
    opened = SiteDataModule.open(
        data, DISK, "segment", site_secret=SECRET, classes=2, cache=find_cache_location(data, SECRET)
    )
    opened.dataset("train")[0], opened.dataset("train")[1]
    result = CliRunner().invoke(main, ["purge", str(data)])
    assert result.exit_code == 0, result.output
    assert ": 2 prepared cases deleted" in result.output
    assert sorted(data.rglob("*")) == before


def test_a_site_file_finds_all_that_its_site_keeps_and_no_one_elses(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDFED_CACHE", str(tmp_path / "shared"))
    (tmp_path / "secret").write_bytes(SECRET)
    (tmp_path / "secret").chmod(0o600)
    (tmp_path / "site.yaml").write_text(
        "name: south\ndata: data\ncache: chosen\nexchange: {kind: folder, url: meeting}\n"
    )
    for secret, chosen in (
        (SECRET, None),
        (SECRET, tmp_path / "chosen"),
        (b"the secret of another site", None),
    ):
        place = find_cache_location(data, secret, chosen)
        SiteDataModule.open(data, DISK, "segment", site_secret=secret, classes=2, cache=place).dataset(
            "train"
        )[0]
    result = CliRunner().invoke(main, ["purge", "--site", str(tmp_path / "site.yaml")])
    assert result.exit_code == 0, result.output
    assert result.output.count(": 1 prepared cases deleted") == 2
    assert len(list((tmp_path / "shared").rglob("about.json"))) == 1
    CliRunner().invoke(main, ["purge"])
    assert not list((tmp_path / "shared").rglob("about.json"))


def test_purging_a_data_folder_deletes_no_patient(tmp_path: Path) -> None:
    # Patients called by a digest, as pseudonyms are, and an export that was not finished.
    for name in ("0" * 64, "f" * 16, "unfinished-export.part", "image.part"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "slice.dcm").write_bytes(b"a patient")
    before = files(tmp_path)
    CliRunner().invoke(main, ["purge", str(tmp_path)])
    assert files(tmp_path) == before

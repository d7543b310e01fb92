"""The disk cache gives what was prepared, notices every change, and shows nobody else anything."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import stat
from dataclasses import replace
from pathlib import Path

import hard_series as hs
import msgspec
import numpy as np
import pytest
import torch

from medfed.data import cache
from medfed.data.cache_location import CacheLocation
from medfed.data.case import Case
from medfed.data.class_names import ClassNames
from medfed.data.datamodule import SiteDataModule
from medfed.data.normalise.none import NoNormalisation
from medfed.data.settings import Images
from medfed.data.transforms import Prepared
from medfed.errors import DataError, ImageError

from .itk_files import write_meta, write_nrrd

torch.set_num_threads(1)

SECRET = b"a site's secret of some length"
SAMPLES = Path(__file__).parents[2] / "sample_data"
DISK = Images(spacing_mm=(4.0, 4.0, 4.0), patch=(16, 16, 16), cache="disk")


def site(folder: Path, data: Path = SAMPLES / "south", settings: Images = DISK) -> SiteDataModule:
    return SiteDataModule.open(
        data, settings, "segment", site_secret=SECRET, classes=2, cache=CacheLocation(folder)
    )


def entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.exists() else []


def example(largest: float = 1.0) -> Prepared:
    rng = np.random.default_rng(0)
    return Prepared(
        image=(rng.random((1, 6, 5, 4)) * largest).astype(np.float32),
        label=(rng.random((1, 6, 5, 4)) < 0.5).astype(np.uint8),
        centres=np.array([[1, 2, 3]], np.int32),
        affine_ras=np.diag([2.0, 2.0, 2.0, 1.0]),
        original_shape=(12, 10, 8),
        original_affine_ras=np.eye(4),
    )


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    prepared = example()
    cache.save(tmp_path / "entry", prepared)
    loaded = cache.load(tmp_path / "entry")
    assert loaded is not None
    assert isinstance(loaded.image, np.memmap)
    np.testing.assert_array_equal(loaded.image, prepared.image.astype(np.float16))
    np.testing.assert_array_equal(loaded.label, prepared.label)
    np.testing.assert_array_equal(loaded.centres, prepared.centres)
    np.testing.assert_array_equal(loaded.affine_ras, prepared.affine_ras)
    assert loaded.original_shape == (12, 10, 8)


def test_large_values_stay_float32(tmp_path: Path) -> None:
    prepared = example(largest=3000.0)
    cache.save(tmp_path / "entry", prepared)
    loaded = cache.load(tmp_path / "entry")
    assert loaded is not None
    np.testing.assert_array_equal(loaded.image, prepared.image)


def test_draws_from_disk_are_draws_from_memory(tmp_path: Path) -> None:
    in_memory = site(tmp_path, settings=msgspec.structs.replace(DISK, cache="memory"))
    for _ in range(2):  # written, then read
        one, two = in_memory.dataset("train", training=True), site(tmp_path).dataset("train", training=True)
        for i in range(4):
            # Percentiles to -1 and 1 in float16: at most 2^-11 off, and augmentation stretches that by a
            # tenth.
            torch.testing.assert_close(one[i]["image"], two[i]["image"], atol=1e-3, rtol=0)
            assert torch.equal(one[i]["label"], two[i]["label"])
    val = site(tmp_path).dataset("val")[0]
    assert (val["image"].dtype, val["label"].dtype) == (torch.float32, torch.int64)


def test_a_second_run_prepares_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = site(tmp_path).dataset("train")
    expected = [first[i]["image"] for i in range(3)]

    def never(*_: object) -> Prepared:
        raise AssertionError("prepared again")

    monkeypatch.setattr("medfed.data.dataset.prepare_case", never)
    second = site(tmp_path).dataset("train")
    assert all(torch.equal(second[i]["image"], expected[i]) for i in range(3))


@pytest.mark.parametrize(
    "changes",
    [{"spacing_mm": (5.0, 4.0, 4.0)}, {"orientation": "LPS"}, {"normalise": NoNormalisation()}],
)
def test_other_settings_make_another_entry(tmp_path: Path, changes: dict) -> None:
    site(tmp_path).dataset("train")[0]
    site(tmp_path, settings=msgspec.structs.replace(DISK, **changes)).dataset("train")[0]
    assert len(entries(tmp_path)) == 2


@pytest.mark.parametrize(
    "changes", [{"patch": (8, 8, 8)}, {"augment": "none"}, {"samples": 3}, {"workers": 2}]
)
def test_settings_of_the_random_part_make_none(tmp_path: Path, changes: dict) -> None:
    site(tmp_path).dataset("train")[0]
    site(tmp_path, settings=msgspec.structs.replace(DISK, **changes)).dataset("train")[0]
    assert len(entries(tmp_path)) == 1


def test_numbers_that_dataset_json_names_are_part_of_the_recipe(tmp_path: Path) -> None:
    """`cache: disk` failed with a TypeError where dataset.json names the numbers in labels."""
    names = ("background", "liver", "tumour")
    first, same, other = (
        cache.preparation_recipe(DISK, "segment", ClassNames(names, numbers=numbers))
        for numbers in ({1: "liver", 2: "tumour"}, {2: "tumour", 1: "liver"}, {1: "tumour", 2: "liver"})
    )
    assert first == same != other


def test_another_version_makes_another_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site(tmp_path).dataset("train")[0]
    monkeypatch.setattr("monai.__version__", "99")
    site(tmp_path).dataset("train")[0]
    assert len(entries(tmp_path)) == 2


@pytest.mark.parametrize("hospital", ["south", "north"])
@pytest.mark.parametrize("part", ["images", "labels"])
def test_changed_files_make_another_entry_even_with_the_same_time_and_size(
    tmp_path: Path, hospital: str, part: str
) -> None:
    folder = tmp_path / "data"
    shutil.copytree(SAMPLES / hospital, folder)
    data = site(tmp_path / "cache", folder)
    case = data.cases("train")[0]
    before = cache.entry_name(case, "")
    path = case.image[0] if part == "images" else case.label
    assert path is not None
    file = sorted(path.iterdir())[3] if path.is_dir() else path
    content, times = bytearray(file.read_bytes()), file.stat()
    content[-1] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert cache.entry_name(case, "") != before


def test_only_the_sites_account_can_read_it(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    old = os.umask(0)
    try:
        site(folder).dataset("train")[0]
    finally:
        os.umask(old)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for entry in entries(folder):
        assert stat.S_IMODE(entry.stat().st_mode) == 0o700
        assert {stat.S_IMODE(path.stat().st_mode) for path in entry.iterdir()} == {0o600}


def test_names_in_the_cache_say_nothing(tmp_path: Path) -> None:
    site(tmp_path).dataset("train")[0]
    for path in tmp_path.rglob("*"):
        assert "south" not in path.name
    for path in tmp_path.rglob("about.json"):
        assert "south" not in path.read_text()


@pytest.mark.parametrize("damage", ["truncated", "no about", "no image", "broken about"])
def test_a_damaged_entry_is_made_again(tmp_path: Path, damage: str) -> None:
    expected = site(tmp_path).dataset("train")[0]["image"]
    (entry,) = entries(tmp_path)
    if damage == "truncated":
        (entry / "image").write_bytes((entry / "image").read_bytes()[:-2])
    elif damage == "no about":
        (entry / "about.json").unlink()
    elif damage == "no image":
        (entry / "image").unlink()
    else:
        (entry / "about.json").write_text('{"arrays": ')
    assert torch.equal(site(tmp_path).dataset("train")[0]["image"], expected)
    assert entries(tmp_path) == [entry]


def test_an_unfinished_entry_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut_off(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("os.rename", cut_off)
        with pytest.raises(KeyboardInterrupt):
            cache.save(tmp_path / "entry", example())
    assert entries(tmp_path) == []
    assert cache.load(tmp_path / "entry") is None


def _prepare_all(folder: Path) -> None:
    torch.set_num_threads(1)
    dataset = site(folder).dataset("train")
    for i in range(4):
        dataset[i]


def test_two_processes_share_a_cache(tmp_path: Path) -> None:
    workers = [
        multiprocessing.get_context("fork").Process(target=_prepare_all, args=(tmp_path,)) for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert len(entries(tmp_path)) == 4
    assert all(cache.load(entry) is not None for entry in entries(tmp_path))


def test_purge_deletes_entries_and_nothing_else(tmp_path: Path) -> None:
    data = site(tmp_path).dataset("train")
    data[0], data[1]
    (tmp_path / "mine.txt").write_text("stays")
    (tmp_path / "0123").mkdir()
    assert cache.purge(tmp_path) == 2
    assert [path.name for path in entries(tmp_path)] == ["0123", "mine.txt"]
    assert cache.purge(tmp_path / "nowhere") == 0


def test_disk_without_a_folder_is_refused() -> None:
    with pytest.raises(DataError, match="there is no cache folder"):
        SiteDataModule.open(SAMPLES / "south", DISK, "segment", site_secret=SECRET, classes=2)


def test_a_store_travels_to_a_worker_without_its_volumes(tmp_path: Path) -> None:
    import pickle

    data = site(tmp_path)
    dataset = data.dataset("train", training=True)
    dataset[0]
    assert len(pickle.dumps(dataset.cache)) < 2000  # type: ignore[attr-defined]


def link_case(folder: Path, number: int) -> Case:
    """Return a case whose image is a folder with nothing but a link to a series elsewhere."""
    series = folder / f"store{number}"
    hs.write_series(series, hs.Series(intercept=-1000.0 - number))
    (folder / f"p{number}").mkdir()
    (folder / f"p{number}" / "series").symlink_to(series)
    return Case(str(number), str(number), f"token{number}", (folder / f"p{number}",))


def test_an_entry_is_of_exactly_the_files_that_read_opens(tmp_path: Path) -> None:
    cases = [link_case(tmp_path, number) for number in range(3)]
    assert len({cache.entry_name(case, "recipe") for case in cases}) == 3
    first = cache.entry_name(cases[0], "recipe")
    assert first == cache.entry_name(cases[0], "recipe")
    (tmp_path / "p0" / ".hidden").write_text("not read")
    assert first == cache.entry_name(cases[0], "recipe")
    files = sorted((tmp_path / "store0").iterdir())
    as_files = replace(cases[0], image=(tuple(files),))
    assert first == cache.entry_name(as_files, "recipe")
    assert first != cache.entry_name(replace(cases[0], image=(tuple(files[:-1]),)), "recipe")
    (files[2]).write_bytes(files[2].read_bytes()[:-2] + b"xx")
    assert first != cache.entry_name(cases[0], "recipe")


def test_an_entry_is_of_the_voxels_beside_a_header_too(tmp_path: Path) -> None:
    for write, name in ((write_meta, "a.mhd"), (write_nrrd, "a.nhdr")):
        path = write(tmp_path / name, np.ones((4, 3, 2), np.int16), np.eye(4))
        case = Case("c", "p", "token", (path,))
        first = cache.entry_name(case, "recipe")
        (tmp_path / "a.raw").write_bytes(bytes(48))
        assert first != cache.entry_name(case, "recipe")


def test_no_entry_is_of_nothing(tmp_path: Path) -> None:
    case = Case("c", "p", "token", (tmp_path,))
    with pytest.raises(ImageError, match="case token: there is no file in a folder"):
        cache.entry_name(case, "recipe")
    gone = replace(case, image=(tmp_path / "MUELLER.nii",))
    with pytest.raises(ImageError, match="case token: one of its files can't be read") as refusal:
        cache.entry_name(gone, "recipe")
    assert "MUELLER" not in str(refusal.value)

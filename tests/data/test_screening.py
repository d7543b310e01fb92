"""Cases that cannot be used are left out, counted and bounded; one bad file never costs a hospital."""

from __future__ import annotations

import csv
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medfed.data.datamodule import SiteDataModule
from medfed.data.screening import duplicate_lines, refuse_excess, write_refused
from medfed.data.settings import Images, Unreadable
from medfed.errors import DataError

from .hospital_folder import MARK, NATIVE, SECRET, folder_of, index, row, token, write_nifti


def opened(folder: Path, **settings: object) -> SiteDataModule:
    chosen = Images(spacing_mm="native", patch=None, **settings)  # type: ignore[arg-type]
    return SiteDataModule(index(folder), chosen, "segment", classes=2)


def spoil(folder: Path, name: str) -> None:
    path = folder / f"{MARK}_{name}.nii.gz"
    path.write_bytes(path.read_bytes()[:60])


def test_one_bad_file_never_costs_a_hospital(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, [row("a"), row("b"), row("c", split="val")])
    spoil(folder, "b")
    data = opened(folder)
    assert data.examples == 2
    data.leave_out(data.screen(), Unreadable())  # a twentieth of 3, rounded up, is one case
    assert data.examples == 1
    assert data.left_out == {"image unreadable": 1}
    assert "1 of 3 cases are left out, as they cannot be used: 1 image unreadable" in data.notes
    assert [batch["case"] for batch in data.train_dataloader()] == [[token("a")]]
    assert token("b") not in {case.token for case in data.index.cases}
    with pytest.raises(DataError, match="no case"):
        data.case(token("b"))


def test_above_the_limit_it_is_refused_with_the_counts(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, [row("a"), row("b"), row("c", label=f"{MARK}_gone.nii.gz")])
    spoil(folder, "b")
    data = opened(folder)
    with pytest.raises(
        DataError, match=r"2 of 3 cases cannot be used \(1 image unreadable, 1 label missing\)"
    ) as e:
        data.leave_out(data.screen(), Unreadable())
    assert "at most 1 may be left out (unreadable.max_share is 0.05)" in str(e.value)
    assert token("b") in str(e.value)
    assert MARK not in str(e.value)
    data.leave_out(data.screen(), Unreadable(max_share=0.5))  # half of 3, rounded up, is two
    assert (data.examples, sum(data.left_out.values())) == (1, 2)


def test_a_site_that_skips_nothing_is_told_of_the_case(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, [row("a"), row("b")])
    spoil(folder, "b")
    data = opened(folder)
    with pytest.raises(DataError, match=f"case {token('b')}: .*unreadable.skip is false"):
        data.leave_out(data.screen(), Unreadable(skip=False))


def test_a_hospital_without_any_readable_case_is_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, [row("a")])
    spoil(folder, "a")
    data = opened(folder)
    with pytest.raises(DataError, match=r"1 of 1 cases cannot be used .* and none is left"):
        data.leave_out(data.screen(), Unreadable())


@pytest.mark.parametrize(("cases", "most"), [(1910, 96), (40, 2), (20, 1), (21, 2), (3, 1)])
def test_the_limit_is_rounded_up_to_a_whole_case(cases: int, most: int, tmp_path: Path) -> None:
    data = opened(folder_of(tmp_path, [row("a", image=f"{MARK}_gone.nii.gz")]))
    (one,) = data.screen().refused
    refuse_excess([one] * min(most, cases - 1), cases, Unreadable())
    with pytest.raises(DataError, match="cannot be used"):
        refuse_excess([one] * (most + 1), cases, Unreadable())


def test_no_case_is_left_out_of_a_good_folder(tmp_path: Path) -> None:
    data = opened(folder_of(tmp_path, [row("a"), row("b"), row("c", split="test")]))
    before = data.index, data.notes
    data.leave_out(data.screen(), Unreadable(skip=False))
    assert (data.index, data.notes, data.left_out) == (*before, {})


def test_a_case_is_read_once_and_the_cache_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from medfed.data import case_reading

    reads: list[str] = []
    read = case_reading.read_image
    monkeypatch.setattr(case_reading, "read_image", lambda *given: (reads.append("read"), read(*given))[1])
    data = opened(folder_of(tmp_path, [row("a"), row("b"), row("c")]))
    data.leave_out(data.screen(), Unreadable())
    list(data.train_dataloader())
    assert len(reads) == 3


@pytest.mark.parametrize("cache", ["memory", "none"])
def test_a_surprise_in_a_library_costs_one_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: str
) -> None:
    from medfed.data import transforms

    prepare, calls = transforms.prepare, iter(range(9))

    def failing(*parts: object) -> object:
        if next(calls) == 1:
            raise RuntimeError(f"{MARK}.nii.gz is odd")
        return prepare(*parts)  # type: ignore[arg-type]

    monkeypatch.setattr(transforms, "prepare", failing)
    data = opened(folder_of(tmp_path, [row("a"), row("b"), row("c")]), cache=cache)
    (one,) = data.screen().refused
    assert one.message == f"case {token('b')}: preparing it ended in RuntimeError"


def test_files_that_vanish_from_a_cache_on_disk_are_not_named(tmp_path: Path) -> None:
    from medfed.data.cache_location import CacheLocation

    folder = folder_of(tmp_path, [row("a"), row("b"), row("c", image=f"{MARK}_gone.nii.gz")])
    settings = Images(spacing_mm="native", patch=None, cache="disk")
    data = SiteDataModule(
        index(folder), settings, "segment", classes=2, cache=CacheLocation(tmp_path / "cache")
    )
    (one,) = data.screen().refused
    assert one.reason == "image missing"
    assert one.message.startswith(f"case {token('c')}: its image is not there")


def test_the_list_stays_in_the_hospitals_own_folder(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, [row("a"), row("b")])
    spoil(folder, "b")
    refused = opened(folder).screen().refused
    line = write_refused(refused, str(folder), SECRET, None)
    assert (
        line == "the hospital's own list is in notes/unusable-cases.csv in .medfed/cache in the data folder"
    )
    (path,) = folder.rglob("unusable-cases.csv")
    assert path.stat().st_mode & 0o077 == 0
    heading, first = csv.reader(path.read_text().splitlines())
    assert heading == ["token", "case", "split", "reason", "message"]
    assert first[:4] == [token("b"), f"{MARK}-b", "train", "image unreadable"]


def test_the_same_image_in_two_splits_and_of_two_patients_is_said(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, [row("a"), row("b", split="test"), row("c", split="val")])
    (folder / f"{MARK}_b.nii.gz").write_bytes((folder / f"{MARK}_a.nii.gz").read_bytes())
    data = opened(folder)
    data.leave_out(data.screen(), Unreadable())
    across, shared = data.warnings
    assert across.startswith("1 image is in several splits under different cases")
    assert shared.startswith("1 image is listed under several patients")
    assert set(data.warnings) <= set(data.notes)


def test_constant_images_are_no_duplicates(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, [row("a"), row("b", split="test")])
    for name in ("a", "b"):
        write_nifti(folder / f"{MARK}_{name}.nii.gz", np.full((6, 5, 4), 7, np.float32))
    assert duplicate_lines(opened(folder).screen().digests) == ()


BROKEN = {
    "image missing": lambda path, label: path.unlink(),
    "label missing": lambda path, label: label.unlink(),
    "empty file": lambda path, label: path.write_bytes(b""),
    "image unreadable": lambda path, label: path.write_bytes(b"no image at all" * 90),
    "label unreadable": lambda path, label: label.write_bytes(b"no image at all" * 90),
    "other number of channels": lambda path, label: write_nifti(path, np.zeros((6, 5, 4, 2), np.float32)),
    "label on another grid": lambda path, label: write_nifti(label, np.zeros((6, 5, 3), np.uint8)),
    "label without classes of the study": lambda path, label: write_nifti(
        label, np.full((6, 5, 4), 9, np.uint8)
    ),
}


@pytest.mark.parametrize("reason", BROKEN)
def test_each_fault_has_its_own_fixed_words(tmp_path: Path, reason: str) -> None:
    folder = folder_of(tmp_path, [row("a"), row("b")])
    BROKEN[reason](folder / f"{MARK}_b.nii.gz", folder / f"{MARK}_b_label.nii.gz")
    (one,) = SiteDataModule(index(folder), NATIVE, "segment", classes=2).screen().refused
    assert (one.reason, one.case.token) == (reason, token("b"))
    assert MARK not in one.message


def test_a_classifier_does_not_read_labels(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, [row("a"), row("b", label=f"{MARK}_gone.nii.gz")])
    assert SiteDataModule(index(folder), NATIVE, "classify", classes=2).screen().refused == ()


def test_an_image_without_a_number_is_left_out(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, [row("a"), row("b")])
    nib.save(nib.Nifti1Image(np.full((6, 5, 4), np.nan, np.float32), np.eye(4)), folder / f"{MARK}_b.nii.gz")
    (one,) = opened(folder).screen().refused
    assert "no voxel of the image is a number" in one.message

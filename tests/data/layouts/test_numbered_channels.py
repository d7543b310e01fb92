"""Channels as numbered files: what counts as a number, how many channels there are, and which are missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from medfed.data.layouts._files import images_in
from medfed.data.layouts._numbered_channels import (
    by_channel,
    in_order,
    is_numbered,
    one_of,
    split_number,
    usual_count,
)
from medfed.data.layouts._survey import Survey
from medfed.errors import DataError

from ..hospital_folder import ZEROS, write_nifti


def files(folder: Path, *names: str):
    for name in names:
        write_nifti(folder / "x" / f"{name}.nii.gz", ZEROS)
    return images_in(Survey.of(folder), "x")


def test_a_number_has_four_digits_at_the_end() -> None:
    assert split_number("case_1_0002") == ("case_1", 2)
    assert split_number("case_002") is None
    assert split_number("_0002") is None
    assert split_number("case_0002_seg") is None


@pytest.mark.parametrize(
    ("images", "labels", "expected"),
    [
        (("a_0000", "a_0001"), ("a",), True),
        (("scan_0000", "scan_0001"), ("scan_0000", "scan_0001"), False),  # one file per case
        (("a_0000", "b"), ("a",), False),
        (("a_0000",), ("b",), False),
    ],
)
def test_images_are_channels_if_labels_have_their_cases_names(tmp_path, images, labels, expected) -> None:
    numbered = is_numbered(files(tmp_path / "images", *images), files(tmp_path / "labels", *labels))
    assert numbered is expected


def test_files_are_sorted_by_case_and_channel(tmp_path: Path) -> None:
    channels = by_channel(files(tmp_path, "a_0001", "a_0000", "b_0000"))
    assert {case: sorted(numbers) for case, numbers in channels.items()} == {"a": [0, 1], "b": [0]}
    assert [path.name for path in channels["a"][1]] == ["a_0001.nii.gz"]
    with pytest.raises(DataError, match="CASE_0000, CASE_0001"):
        by_channel(files(tmp_path, "b"))


def test_a_channel_that_at_least_half_of_the_cases_have_is_one() -> None:
    assert usual_count([{0: 1, 1: 1}, {0: 1}]) == 2
    assert usual_count([{0: 1, 1: 1}, {0: 1}, {0: 1}]) == 1
    assert usual_count([{0: 1, 2: 1}]) == 3  # up to the highest number: number 1 is missing
    assert usual_count([]) == 1


def test_missing_channels_are_empty_and_further_ones_left_out() -> None:
    a, b, c = Path("a"), Path("b"), Path("c")
    assert in_order({0: [a], 2: [c]}, 3) == ((a, (), c), None)
    assert in_order({0: [a], 2: [c]}, 2) == ((a, ()), None)
    sources, fault = in_order({0: [a], 1: [b, c]}, 2)
    assert sources == (a, b)
    assert fault is not None
    assert "it has several files for the channel _0001; keep one" in str(fault)
    assert (one_of([a, b]), one_of([])) == (a, ())

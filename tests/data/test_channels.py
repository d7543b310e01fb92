"""Channels by name: no two hospitals train on T1 and FLAIR in different order without a word."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from medfed.data.channels import match_channels, unnamed_note
from medfed.data.datamodule import SiteDataModule
from medfed.data.index import index_folder
from medfed.data.layouts import Layout
from medfed.data.layouts.patient_folders import PatientFolders
from medfed.data.layouts.pattern import Pattern
from medfed.data.own_data import OwnData
from medfed.data.preflight.preflight import check
from medfed.data.preflight.study_checks import StudyRequirements
from medfed.data.settings import Images
from medfed.errors import DataError, ImageError
from medfed.pipeline.drafting import draft_study

from .hospital_folder import MARK, SECRET, write_nifti

# What every voxel of a channel holds, by its name.
VALUES = {"T1": 1.0, "FLAIR": 2.0, "T2": 3.0}


def nnunet(folder: Path, names: list[str], cases: int = 2, *, named: bool = True) -> Path:
    """Write a hospital whose dataset.json names its channels in this order, or has none."""
    for case in range(cases):
        for number, name in enumerate(names):
            array = np.full((8, 8, 8), VALUES[name], np.float32)
            array[0, 0, 0] = 9 + case
            write_nifti(folder / f"imagesTr/{MARK}{case}_{number:04d}.nii.gz", array)
        label = np.zeros((8, 8, 8), np.uint8)
        label[2:5, 2:5, 2:5] = 1
        write_nifti(folder / f"labelsTr/{MARK}{case}.nii.gz", label)
    described = {"channel_names": dict(enumerate(names)), "labels": {"background": 0, "tumour": 1}}
    if named:
        (folder / "dataset.json").write_text(json.dumps(described))
    return folder


def settings(channels: int | tuple[str, ...], layout: Layout | None = None) -> Images:
    return Images(spacing_mm="native", patch=None, channels=channels, layout=layout)


def opened(folder: Path, study: Images) -> SiteDataModule:
    return SiteDataModule.open(folder, study, "segment", site_secret=SECRET, classes=2)


def voxels(folder: Path, study: Images) -> list[float]:
    data = opened(folder, study)
    image, _ = data.original(data.index.cases[0])
    return [float(channel[5, 5, 5]) for channel in image.array]


def test_two_hospitals_with_swapped_channels_do_not_train_on_numbers(tmp_path: Path) -> None:
    nnunet(tmp_path / "a", ["T1", "FLAIR"])
    nnunet(tmp_path / "b", ["FLAIR", "T1"])
    for site, names in (("a", "T1, FLAIR"), ("b", "FLAIR, T1")):
        with pytest.raises(DataError, match=rf"\({names}\), and data.channels of the study is 2") as caught:
            opened(tmp_path / site, settings(2))
        assert f"data.channels: [{names}]" in str(caught.value)


def test_they_train_on_one_order_by_name(tmp_path: Path) -> None:
    nnunet(tmp_path / "a", ["T1", "FLAIR"])
    nnunet(tmp_path / "b", ["FLAIR", "T1"])
    study = settings(("t1", "flair"))
    assert voxels(tmp_path / "a", study) == voxels(tmp_path / "b", study) == [1.0, 2.0]
    assert voxels(tmp_path / "b", settings(("FLAIR", "T1"))) == [2.0, 1.0]
    note = "the channels are chosen and ordered by name, as the study has them: t1, flair"
    assert note in opened(tmp_path / "b", study).notes
    assert note not in opened(tmp_path / "a", study).notes


def test_a_study_takes_some_of_a_hospitals_channels(tmp_path: Path) -> None:
    nnunet(tmp_path, ["T2", "T1", "FLAIR"])
    assert voxels(tmp_path, settings(("flair", "t2"))) == [2.0, 3.0]
    assert voxels(tmp_path, settings(("t1",))) == [1.0]


def test_other_channels_are_refused_without_a_name_of_the_hospital(tmp_path: Path) -> None:
    folder = nnunet(tmp_path, ["T1", "FLAIR"])
    with pytest.raises(DataError, match="has no channel 't2' of the study") as caught:
        opened(folder, settings(("t1", "t2")))
    assert "it names T1, FLAIR;" in str(caught.value)
    (folder / "dataset.json").write_text(
        json.dumps({"channel_names": {"0": MARK, "1": "T1"}, "labels": {"background": 0, "tumour": 1}})
    )
    with pytest.raises(DataError, match="it names another word, T1;") as caught:
        opened(folder, settings(("t1", "flair")))
    assert MARK not in str(caught.value)


def test_a_sites_own_words_stand_for_the_studys_names(tmp_path: Path) -> None:
    """Here FLAIR and T1 are called T2 and FLAIR by the study: only the site's word decides, not likeness."""
    nnunet(tmp_path, ["FLAIR", "T1"])
    study, own = settings(("flair", "adc")), OwnData(channels={"t1": "flair", "Flair": "adc"})
    data = SiteDataModule.open(tmp_path, study, "segment", site_secret=SECRET, classes=2, own=own)
    image, _ = data.original(data.index.cases[0])
    assert [float(channel[5, 5, 5]) for channel in image.array] == [VALUES["T1"], VALUES["FLAIR"]]
    with pytest.raises(DataError, match=r"no channel 'adc' .*such as channels: \{OWN WORD: NAME\}"):
        opened(tmp_path, study)
    requirements = StudyRequirements("s", study, "segment", ("b", "tumour"), own_data=own)
    result = check(tmp_path, site_secret=SECRET, requirements=requirements, processes=1)
    assert result.can_take_part


def test_two_channels_of_one_name_are_refused(tmp_path: Path) -> None:
    folder = nnunet(tmp_path, ["T1", "FLAIR"])
    named = {"channel_names": {"0": "T1", "1": "t_1"}, "labels": {"background": 0, "tumour": 1}}
    (folder / "dataset.json").write_text(json.dumps({**named, "channel_names": {"0": "T1", "1": "t1"}}))
    with pytest.raises(DataError, match="gives two channels the same name"):
        opened(folder, settings(("t1", "flair")))
    with pytest.raises(DataError, match=r"data\.channels: two names have the same words"):
        settings(("t1", "T1"))


def test_channels_within_one_file_are_not_moved(tmp_path: Path) -> None:
    array = np.stack([np.full((8, 8, 8), value, np.float32) for value in (1, 2)], axis=-1)
    for case in range(2):
        write_nifti(tmp_path / f"imagesTr/{MARK}{case}.nii.gz", array)
        write_nifti(tmp_path / f"labelsTr/{MARK}{case}.nii.gz", np.ones((8, 8, 8), np.uint8))
    described = {"modality": {"0": "T1", "1": "FLAIR"}, "labels": {"0": "background", "1": "tumour"}}
    (tmp_path / "dataset.json").write_text(json.dumps(described))
    assert voxels(tmp_path, settings(("t1", "flair"))) == [1.0, 2.0]
    with pytest.raises(DataError, match="its 2 channels lie in 1 file"):
        opened(tmp_path, settings(("flair", "t1")))


def test_channels_that_nothing_names_are_told(tmp_path: Path) -> None:
    folder = nnunet(tmp_path, ["T1", "FLAIR"], named=False)
    assert voxels(folder, settings(2)) == voxels(folder, settings(("t1", "flair"))) == [1.0, 2.0]
    named = "; make sure that it is the study's (t1, flair)"
    assert any(note.endswith(named) for note in opened(folder, settings(("t1", "flair"))).notes)
    assert any(note.endswith("the same at every hospital") for note in opened(folder, settings(2)).notes)
    preflight = check(folder, site_secret=SECRET, processes=1)
    assert [one.title for one in preflight.problems if "channels" in one.title.lower()] == [
        "Channels that nothing names"
    ]


def test_one_file_per_case_needs_no_word(tmp_path: Path) -> None:
    write_nifti(tmp_path / "images/a.nii.gz", np.zeros((8, 8, 8), np.float32))
    write_nifti(tmp_path / "labels/a.nii.gz", np.zeros((8, 8, 8), np.uint8))
    index = index_folder(tmp_path, site_secret=SECRET)
    assert unnamed_note(index) == unnamed_note(index, (), 1) == ""
    assert unnamed_note(index, ("ct",), 1) != ""
    assert match_channels(index, settings(1)) is index


def test_a_channel_that_the_study_does_not_take_may_be_missing(tmp_path: Path) -> None:
    folder = nnunet(tmp_path, ["T1", "FLAIR"], cases=3)
    (folder / f"imagesTr/{MARK}2_0001.nii.gz").unlink()
    data = opened(folder, settings(("t1",)))
    assert len(data.screen().refused) == 0
    data = opened(folder, settings(("flair", "t1")))
    (refused,) = data.screen().refused
    assert refused.reason == "image missing"
    assert "no file for channel 1 of 2" in refused.message
    assert MARK not in refused.message


def test_check_refuses_what_training_refuses(tmp_path: Path) -> None:
    folder = nnunet(tmp_path, ["FLAIR", "T1"])

    def found(channels: int | tuple[str, ...]) -> list[str]:
        study = StudyRequirements("s", settings(channels), "segment", ("background", "tumour"))
        done = check(folder, site_secret=SECRET, requirements=study, processes=1)
        return [detail for one in done.problems if one.severity == "error" for _, detail in one.cases]

    assert any("says nothing of their order" in detail for detail in found(2))
    assert any("no channel 't2'" in detail for detail in found(("t1", "t2")))
    assert found(("t1", "flair")) == []


def test_names_of_files_and_patterns_count_alike(tmp_path: Path) -> None:
    for case in range(2):
        for name in ("T1", "FLAIR"):
            array = np.full((8, 8, 8), VALUES[name], np.float32)
            write_nifti(tmp_path / f"{MARK}{case}/{MARK}{case}_{name.lower()}.nii.gz", array)
        write_nifti(tmp_path / f"{MARK}{case}/{MARK}{case}_seg.nii.gz", np.ones((8, 8, 8), np.uint8))
    patterns = {name: f"{{patient}}/*_{name}.nii.gz" for name in ("t1", "flair")}
    pattern = Pattern(image=patterns, label="{patient}/*_seg.nii.gz")
    for layout in (None, pattern, PatientFolders(channels=("t1", "flair"))):
        assert voxels(tmp_path, settings(("t1", "flair"), layout)) == [1.0, 2.0]


def test_a_draft_names_the_channels_in_one_order(tmp_path: Path) -> None:
    north, south = nnunet(tmp_path / "a", ["T1", "FLAIR"], 3), nnunet(tmp_path / "b", ["FLAIR", "T1"], 3)
    draft = draft_study("s", {"north": north, "south": south}, {})
    assert "  channels: [T1, FLAIR]\n" in draft.text
    other = nnunet(tmp_path / "c", ["T1", "T2"], 3)
    with pytest.raises(
        DataError, match=r"name their channels differently \(north: T1, FLAIR; west: T1, T2\)"
    ):
        draft_study("s", {"north": north, "west": other}, {})
    unnamed = nnunet(tmp_path / "d", ["T1", "FLAIR"], 3, named=False)
    draft = draft_study("s", {"north": north, "east": unnamed}, {})
    (told,) = [line for line in draft.warnings if "nothing in its folder names the channels" in line]
    assert told.startswith("east: ")


def test_a_plan_keeps_the_names(tmp_path: Path) -> None:
    from medfed.data import fingerprint

    folder = nnunet(tmp_path, ["FLAIR", "T1"], 3)
    study = settings(("t1", "flair"))
    index = match_channels(index_folder(folder, site_secret=SECRET), study)
    assert index.channels == ("t1", "flair")
    printed = fingerprint.fingerprint(index, grid="relative", classes=2, settings=study, min_count=1)
    assert printed.channels == 2


def test_a_case_without_a_channel_is_named_by_token(tmp_path: Path) -> None:
    folder = nnunet(tmp_path, ["T1", "FLAIR"], cases=3)
    (folder / f"imagesTr/{MARK}2_0000.nii.gz").unlink()
    data = opened(folder, settings(("t1", "flair")))
    case = next(case for case in data.index.cases if case.image[0] == ())
    with pytest.raises(ImageError, match=f"case {case.token}: it has no file for channel 1 of 2"):
        data.original(case)

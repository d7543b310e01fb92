"""Which series of a study become the channels of its case, and which studies are left out."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from hard_series import Edit, Series, enhanced, put_pixels, write, write_series
from pydicom.dataset import Dataset

from medfed.data.cache import entry_name
from medfed.data.case import paths_of
from medfed.data.case_reading import read_image
from medfed.data.dicom.listing_header import ListingHeader
from medfed.data.index import Index, index_folder
from medfed.data.layouts._dicom_choice import SeriesChoice, choose_series
from medfed.data.layouts._survey import Survey
from medfed.data.layouts.dicom_tree import DicomTree
from medfed.data.settings import Images
from medfed.errors import DataError, ImageError

from ..hospital_folder import SECRET, unreadable
from .dicom_folders import mr


def test_chosen_series_of_a_study_are_the_channels_of_one_case(tmp_path: Path) -> None:
    for number in range(3):
        who = {"PatientID": f"P{number}"}
        mr(tmp_path / f"{number}f", "AX FLAIR FS", f"1.2.{number}", **who)
        mr(tmp_path / f"{number}t", "T1 mprage", f"1.2.{number}", **who)
        if number != 1:
            mr(tmp_path / f"{number}t2", "t2_tse", f"1.2.{number}", **who)
        mr(tmp_path / f"{number}t2", "t2_tse_thin", f"1.2.{number}", slices=12, **who)
    tree = DicomTree(
        series=(
            SeriesChoice(name="flair", weighting="flair"),
            SeriesChoice(name="t1", description=("*mprage*",)),
        )
    )
    listing = tree.read(Survey.of(tmp_path))
    assert [case.patient for case in listing.cases] == ["P0", "P1", "P2"]
    names = [[Path(paths_of(source)[0]).name for source in case.image] for case in listing.cases]
    assert names == [["0f", "0t"], ["1f", "1t"], ["2f", "2t"]]
    assert read_image(listing.cases[0].image).array.shape == (2, 7, 5, 6)
    unclear = DicomTree(series=(SeriesChoice(name="t2", weighting="t2"),))
    listing = unclear.read(Survey.of(tmp_path))
    assert [case.patient for case in listing.cases] == ["P1"]
    assert (
        "2 studies have several series for 't2'; narrow it, or give `several: most_slices`" in listing.notes
    )
    most = DicomTree(series=(SeriesChoice(name="t2", weighting="t2", several="most_slices"),))
    listing = most.read(Survey.of(tmp_path))
    assert [read_image(case.image).shape[2] for case in listing.cases] == [12, 12, 12]


def test_a_study_that_lacks_one_of_the_channels_is_a_case_that_is_refused(tmp_path: Path) -> None:
    for number in range(3):
        who = {"PatientID": f"P{number}"}
        mr(tmp_path / f"{number}f", "FLAIR", f"1.2.{number}", **who)
        if number != 1:
            mr(tmp_path / f"{number}t", "T1 mprage", f"1.2.{number}", **who)
    mr(tmp_path / "knee", "t2_tse", "1.2.9", PatientID="P9")
    choices = (
        SeriesChoice(name="t1", description=("*mprage*",)),
        SeriesChoice(name="flair", weighting="flair"),
    )
    indexed = index_folder(tmp_path, site_secret=SECRET, layout=DicomTree(series=choices))
    assert [(case.patient, [source != () for source in case.image]) for case in indexed.cases] == [
        ("P0", [True, True]),
        ("P1", [False, True]),
        ("P2", [True, True]),
    ]
    (told,) = unreadable(indexed).values()
    assert told.startswith("it has no file for channel 1 of 2")
    assert any(
        note.startswith("1 studies have no series for 't1' and one for another") for note in indexed.notes
    )
    assert "1 of 4 studies are left out" in indexed.notes


def test_series_of_one_description_are_told_apart_by_their_times(tmp_path: Path) -> None:
    """Spin echoes as a scanner calls them all alike: T1 (TE 12, TR 500), PD (12, 2500) and T2 (90, 4000)."""
    times = {"t1": (12, 500), "pd": (12, 2500), "t2": (90, 4000)}
    for name, (echo, repetition) in times.items():
        mr(tmp_path / name, "se_tra", "1.2.3", PatientID="P", EchoTime=echo, RepetitionTime=repetition)
    # No repetition time: it is of no choice that asks for one.
    mr(tmp_path / "x", "se_tra", "1.2.3", PatientID="P", EchoTime=12)

    def chosen(*choices: SeriesChoice) -> list[list[str]]:
        listing = DicomTree(series=choices).read(Survey.of(tmp_path))
        return [[Path(paths_of(source)[0]).name for source in case.image] for case in listing.cases]

    long_echo = SeriesChoice(name="t2", echo_ms=(60, 120))
    short = SeriesChoice(name="t1", echo_ms=(5, 30), repetition_ms=(300, 1000))
    assert chosen(long_echo, short) == [["t2", "t1"]]
    # Without a word in the description the times decide the weighting, too.
    assert chosen(*(SeriesChoice(name=name, weighting=name) for name in times)) == [["t1", "pd", "t2"]]
    assert chosen(SeriesChoice(name="pd", echo_ms=(12, 12), repetition_ms=(2500, 2500))) == [["pd"]]


def test_a_series_of_two_echoes_is_of_no_choice_of_one(tmp_path: Path) -> None:
    def two(ds: Dataset, k: int) -> None:
        ds.EchoTime = 90 if k < 3 else 12

    write_series(tmp_path / "both", Series(shape=(6, 5, 7), modality="MR", slope=1.0, intercept=0.0), two)
    listing = DicomTree(series=(SeriesChoice(name="t2", echo_ms=(60, 120)),)).read(Survey.of(tmp_path))
    assert listing.cases == ()
    both = DicomTree(series=(SeriesChoice(name="t2", echo_ms=(10, 120)),)).read(Survey.of(tmp_path))
    assert len(both.cases) == 1


def test_the_echoes_of_one_series_are_never_mixed_and_can_be_chosen_by_their_times(tmp_path: Path) -> None:
    """A dual-echo series in one folder, interleaved by name: about 100 in one echo, 900 in the other."""
    values = {1: 100, 2: 900}

    def dual(echo: int) -> Edit:
        def edit(ds: Dataset, k: int) -> None:
            ds.EchoNumbers, ds.EchoTime, ds.PatientID = str(echo), {1: 12.0, 2: 90.0}[echo], "P"
            put_pixels(ds, np.full((5, 7), values[echo] + k))

        return edit

    series = Series(shape=(6, 5, 7), modality="MR", slope=1.0, intercept=0.0)
    for echo in values:
        for number, path in enumerate(write_series(tmp_path / f"{echo}", series, dual(echo))):
            (tmp_path / "both").mkdir(exist_ok=True)
            path.rename(tmp_path / "both" / f"{number}-{echo}.dcm")

    def of(*choices: SeriesChoice) -> Index:
        return index_folder(tmp_path, site_secret=SECRET, layout=DicomTree(series=choices))

    late, early = SeriesChoice(name="t2", echo_ms=(60, 120)), SeriesChoice(name="pd", echo_ms=(5, 30))
    (case,) = of(late).cases
    assert sorted(np.unique(read_image(case.image).array)) == [900, 901, 902, 903, 904, 905]
    (case,) = of(early, late).cases
    array = read_image(case.image).array
    assert array.shape == (2, 7, 5, 6)
    assert [np.unique(array[channel, :, :, k]).tolist() for channel in (0, 1) for k in (0, 5)] == [
        *([100], [105], [900], [905])
    ]
    with pytest.raises(DataError, match="holds no case"):
        of(early, SeriesChoice(name="all", modality="MR"))
    # Without a choice nothing says which echo is meant.
    undecided = index_folder(tmp_path, site_secret=SECRET)
    (case,) = undecided.cases
    with pytest.raises(ImageError, match=r"holds 2 volumes, .* series: \[\{name: NAME, echo_ms: "):
        read_image(case.image)


def test_echoes_that_the_reader_does_not_tell_apart_are_one_series(tmp_path: Path) -> None:
    """Times that differ by less than a microsecond, and a number that half of the slices lack."""

    def noisy(ds: Dataset, k: int) -> None:
        ds.EchoTime = 90.0 + k % 2 * 0.0002
        if k % 2:
            ds.EchoNumbers = "1"

    write_series(tmp_path, Series(shape=(12, 5, 7), modality="MR", slope=1.0, intercept=0.0), noisy)
    (case,) = DicomTree(series=(SeriesChoice(name="t2", echo_ms=(60, 120)),)).read(Survey.of(tmp_path)).cases
    assert read_image(case.image).shape == (7, 5, 12)


def test_a_choice_that_says_nothing_is_refused() -> None:
    with pytest.raises(DataError, match=r"echo_ms of 't2' is \[90, 60\]; give the lowest and the highest"):
        SeriesChoice(name="t2", echo_ms=(90, 60))
    with pytest.raises(DataError, match="'t1' says nothing of its series"):
        SeriesChoice(name="t1")
    with pytest.raises(DataError, match="expected one of t1, t1c"):
        SeriesChoice(name="t1", weighting="T1")


def test_a_study_chooses_series_by_its_layout() -> None:
    text = b"""
    {"kind": "images", "channels": 2, "layout": {"kind": "dicom_tree", "series": [
        {"name": "flair", "weighting": "flair"},
        {"name": "t1", "modality": "MR", "description": ["*mprage*"], "several": "most_slices"}]}}
    """
    layout = msgspec.json.decode(text, type=Images).given_layout
    assert isinstance(layout, DicomTree)
    assert [choice.name for choice in layout.series] == ["flair", "t1"]
    assert layout.series[1].several == "most_slices"


def header(**values: object) -> ListingHeader:
    """Return the header of a series of one file with 20 slices, T1 of MR unless said otherwise."""
    plain: dict[str, object] = dict.fromkeys(
        ("patient", "name", "birth_date", "study", "series", "frame", "instance", "non_volume"), ""
    )
    plain |= {"path": Path("x"), "references": (), "slices": 20, "placed": True}
    plain |= {"modality": "MR", "description": "AX T1 MPRAGE", "weighting": "t1"}
    return ListingHeader(**{**plain, **values})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"description": ("*mprage",)}, True),  # in any case
        ({"description": ("mprage",)}, False),  # of the whole description
        ({"description": ("flair*", "ax ?1*")}, True),  # one pattern is enough
        ({"modality": "MR", "weighting": "t1"}, True),
        ({"modality": "CT", "weighting": "t1"}, False),  # all properties must fit
        ({"weighting": "t1c"}, False),
    ],
)
def test_a_series_must_have_every_property_that_a_choice_gives(choice, expected: bool) -> None:
    assert SeriesChoice(name="a", **choice).fits([header()]) is expected


def test_studies_are_taken_if_no_channel_is_doubled_and_no_series_serves_two() -> None:
    series = {
        ("p", name): [header(weighting=weighting, slices=slices)]
        for name, weighting, slices in (
            ("t1", "t1", 20), ("t2", "t2", 20), ("t2 thin", "t2", 40), ("t2 as thin", "t2", 40),
        )
    }  # fmt: skip
    key = {name: (patient, name) for patient, name in series}
    choices = [SeriesChoice(name=name, weighting=name) for name in ("t1", "t2")]

    def chosen(*studies: tuple[str, ...], choices=choices):
        by_number = {str(n): [key[name] for name in names] for n, names in enumerate(studies)}
        return choose_series(by_number, series, choices)

    taken, notes = chosen(("t1", "t2"), ("t2",), (), ("t1", "t2", "t2 thin"))
    assert taken == [(key["t1"], key["t2"]), (None, key["t2"])]
    assert [note.partition(";")[0] for note in notes] == [
        "1 studies have no series for 't1' and one for another channel: each is a case that is refused",
        "1 studies have several series for 't2'",
        "2 of 4 studies are left out",
    ]
    most = [choices[0], SeriesChoice(name="t2", weighting="t2", several="most_slices")]
    assert chosen(("t1", "t2", "t2 thin"), choices=most) == ([(key["t1"], key["t2 thin"])], [])
    # Two of the same length: the choice does not draw lots.
    assert chosen(("t1", "t2 thin", "t2 as thin"), choices=most)[0] == []
    # One series that fits two channels would be a case that holds the same image twice.
    same = [SeriesChoice(name="a", weighting="t1"), SeriesChoice(name="b", modality="MR")]
    assert chosen(("t1",), choices=same)[0] == []


def enhanced_echoes(folder: Path, patient: str, times: tuple[float, ...]) -> None:
    """Write one enhanced MR object of 6 slices per echo; echo number e of slice k holds 10 e + k."""
    series = Series(shape=(6, 5, 7), modality="MR", slope=1.0, intercept=0.0)
    frames = [{"k": k, "echo": time} for time in times for k in range(6)]
    ds = enhanced(series, frames)
    ds.PatientID, ds.StudyInstanceUID = patient, f"1.2.{patient[1:]}"
    ds.SeriesInstanceUID = f"1.3.{patient[1:]}"
    put_pixels(ds, np.stack([np.full((5, 7), 10 * (n // 6) + n % 6) for n in range(len(frames))]))
    folder.mkdir(exist_ok=True)
    write(ds, folder / f"{patient}.dcm")


def chosen_by(folder: Path, layout: DicomTree) -> Index:
    return index_folder(folder, site_secret=SECRET, layout=layout)


def test_echoes_of_one_enhanced_object_are_channels_by_their_times(tmp_path: Path) -> None:
    for patient in ("P1", "P2"):
        enhanced_echoes(tmp_path, patient, (10.0, 80.0))
    late = SeriesChoice(name="late", echo_ms=(60, 100))
    both = DicomTree(series=(late, SeriesChoice(name="early", echo_ms=(5, 20))))
    indexed = chosen_by(tmp_path, both)
    assert [case.patient for case in indexed.cases] == ["P1", "P2"]
    assert not indexed.left_out
    image = read_image(indexed.cases[0].image)
    assert [channel[0, 0].tolist() for channel in image.array] == [[10 + k for k in range(6)], [*range(6)]]
    alone = chosen_by(tmp_path, DicomTree(series=(late,)))
    assert read_image(alone.cases[0].image).array[0, 0, 0].tolist() == [10 + k for k in range(6)]
    # Another echo of the same file is another image, also in a cache.
    early = chosen_by(tmp_path, DicomTree(series=both.series[1:]))
    assert entry_name(alone.cases[0], "r") != entry_name(early.cases[0], "r")
    with pytest.raises(ImageError, match="holds 2 volumes"):
        read_image(chosen_by(tmp_path, DicomTree()).cases[0].image)


def test_an_enhanced_object_of_one_echo_is_chosen_by_its_time(tmp_path: Path) -> None:
    enhanced_echoes(tmp_path, "P1", (80.0,))
    enhanced_echoes(tmp_path, "P2", (10.0,))
    indexed = chosen_by(tmp_path, DicomTree(series=(SeriesChoice(name="late", echo_ms=(60, 100)),)))
    assert [case.patient for case in indexed.cases] == ["P1"]

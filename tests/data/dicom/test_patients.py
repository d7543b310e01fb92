"""Which series are one patient's: a patient who counts as two may be in training and in test."""

from __future__ import annotations

from pathlib import Path

import pytest

from medfed.data.dicom.listing_header import ListingHeader
from medfed.data.dicom.patients import group_by_patient, is_placeholder


def header(patient="", study="", frame="", name="", birth_date="", series="s"):
    return ListingHeader(
        path=Path("x"), modality="CT", patient=patient, name=name, birth_date=birth_date, study=study,
        series=series, frame=frame, references=(), slices=1, placed=True, instance="i", non_volume="",
        description="", weighting="",
    )  # fmt: skip


def grouped(*headers):
    """The patient of each header, each as a series of its own, and the notes."""
    series = {(one.patient, f"{number}"): [one] for number, one in enumerate(headers)}
    patients, notes = group_by_patient(series)
    return [patients[key] for key in series], notes


def test_a_patient_is_called_by_the_patient_id():
    assert grouped(header("A", "1"), header("A", "2"), header("B", "3")) == (["A", "A", "B"], [])


def test_two_ids_in_one_study_are_one_patient_and_counted():
    patients, (note,) = grouped(header("A", "1"), header("B", "1"), header("C", "2"))
    assert patients == ["A", "A", "C"]
    assert note == "1 patients have several PatientIDs in one study and count as one each"


def test_links_are_followed_from_series_to_series():
    """A and B share study 1, B and C share study 2."""
    patients, _ = grouped(
        header("A", "1"), header("B", "1"), header("B", "2"), header("C", "2"), header("D", "3")
    )
    assert patients == ["A", "A", "A", "A", "D"]


@pytest.mark.parametrize("word", ["", "ANONYMOUS", "0000", "xx", "n/a", "De-Identified", "no_name"])
def test_without_an_id_the_study_and_the_frame_decide(word):
    patients, (note,) = grouped(
        header(word, "1", "f"), header(word, "1", "g"), header(word, "2", "f"), header(word, "3", "h")
    )
    # Study 1 and 2 share frame f; study 3 stands alone.
    assert patients == ["study 1", "study 1", "study 1", "study 3"]
    assert note.startswith("4 series do not say whose they are")
    assert "they count as 2 patients" in note


def test_one_id_in_all_studies_is_a_constant_and_no_identity():
    """Archives that anonymise write one word into all files."""
    assert grouped(header("Trial7", "1"), header("Trial7", "2"))[0] == ["study 1", "study 2"]
    # In a single study it cannot be told from a patient, and makes no difference.
    assert grouped(header("Trial7", "1"), header("Trial7", "1")) == (["Trial7", "Trial7"], [])


def test_name_and_birth_date_link_the_visits_of_a_patient_without_an_id():
    patients, _ = grouped(
        header("", "1", name="Doe", birth_date="1950"), header("", "2", name="Doe", birth_date="1950"),
        header("", "3", name="Doe", birth_date="1960"), header("", "4", name="Anonymous", birth_date="1950"),
        header("", "5", name="Anonymous", birth_date="1950"),
    )  # fmt: skip
    assert patients == ["study 1", "study 1", "study 3", "study 4", "study 5"]


def test_names_do_not_join_patients_who_have_an_id():
    named = (("A", "1", "Doe"), ("B", "2", "Doe"), ("C", "3", "Roe"))
    patients, _ = grouped(*(header(patient, study, name=name) for patient, study, name in named))
    assert patients == ["A", "B", "C"]


def test_a_study_uid_of_three_or_more_patients_that_all_share_is_a_constant():
    assert grouped(header("A", "1"), header("B", "1"), header("C", "1"))[0] == ["A", "B", "C"]
    # Two patients are not enough to tell a constant from one patient with two ids.
    assert grouped(header("A", "1"), header("B", "1"))[0] == ["A", "A"]


def test_a_frame_that_all_visits_share_is_a_constant():
    assert grouped(*(header("", study, "f") for study in "123"))[0] == ["study 1", "study 2", "study 3"]
    assert grouped(*(header("", study, "f") for study in "12"))[0] == ["study 1", "study 1"]


def test_a_series_that_says_nothing_is_called_by_its_own_uid():
    series = {("", "1.2"): [header()], ("", "3.4"): [header()]}
    assert list(group_by_patient(series)[0].values()) == ["series 1.2", "series 3.4"]


@pytest.mark.parametrize("word", ["Smith", "X7", "100", "ID 7", "test 2"])
def test_an_identity_is_no_placeholder(word):
    assert not is_placeholder(word)

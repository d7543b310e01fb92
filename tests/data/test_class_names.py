"""Structures are matched to classes by words; what cannot be is refused or left out, never guessed."""

from __future__ import annotations

import pytest

from medfed.data.class_names import MAX_CLASSES, ClassNames, Structure, words_of
from medfed.data.refusals import LabelClassesError
from medfed.errors import DataError

ORGANS = ("background", "liver", "tumour", "left lung")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Left lung", "left_LUNG"),
        ("Left-Lung", "left  lung "),
        ("Tumör", "tumor"),
        ("FÉMUR", "femur"),
        ("Left\u2010lung", "left lung"),
        ("\uff2c\uff49ver", "liver"),  # full-width letters
    ],
)
def test_case_accents_and_separators_do_not_count(one: str, other: str) -> None:
    assert words_of(one) == words_of(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [("Lung_L", "left lung"), ("liver", "livers"), ("GTV+5", "GTV 5"), ("lung 1", "lung 2"), ("か", "が")],
)
def test_nothing_else_is_equated(one: str, other: str) -> None:
    assert words_of(one) != words_of(other)


def test_a_structure_has_the_class_of_its_name_and_not_of_its_number() -> None:
    names = ClassNames(ORGANS)
    assert names.class_of(Structure(2, "Liver")) == 1
    assert names.class_of(Structure(1, "TUMOUR")) == 2
    assert names.class_of(Structure(1, "Segment 1", "Liver")) == 1  # by its coded meaning
    assert names.class_of(Structure(1, "Lung_L")) is None
    assert names.class_of(Structure(1, "", "")) is None


def test_a_name_and_a_code_of_different_classes_are_refused() -> None:
    names = ClassNames(ORGANS)
    with pytest.raises(
        LabelClassesError, match="called 'liver' by its label and 'tumour' by its code"
    ) as refused:
        names.class_of(Structure(1, "Liver", "Tumour"))
    assert "classes: {liver: liver} or {liver: tumour}" in str(refused.value)
    assert ClassNames(ORGANS, {"liver": "liver"}).class_of(Structure(1, "Liver", "Tumour")) == 1
    assert ClassNames(ORGANS, {"liver": "tumour"}).class_of(Structure(1, "Liver", "Tumour")) == 2


def test_a_site_says_its_own_words_first() -> None:
    names = ClassNames(ORGANS, {"Leber": "liver", "Lung_L": "Left Lung", "Body": "background"})
    assert names.class_of_name("LEBER") == 1
    assert names.class_of_name("lung-l") == 3
    assert names.class_of_name("body") == 0
    assert names.class_of_name("liver") == 1
    assert names.unknown == 0
    assert ClassNames(ORGANS, {"Leber": "lvier"}).unknown == 1


def test_words_that_cannot_be_told_apart_are_refused() -> None:
    with pytest.raises(DataError, match="'lung_l' and 'Lung-L' have the same words"):
        ClassNames(("background", "lung_l", "Lung-L"))
    with pytest.raises(DataError, match="mapped to different classes"):
        ClassNames(ORGANS, {"Leber": "liver", "leber": "tumour"})


def test_numbers_mean_what_the_folder_or_the_site_says() -> None:
    table = {0: "background", 7: "Tumour", 2041: "liver", 5: "spleen"}
    names = ClassNames(ORGANS, numbers=table)
    assert [names.class_of_number(value) for value in (0, 7, 2041, 5)] == [0, 2, 1, None]
    with pytest.raises(LabelClassesError, match="the value 3, which the folder's list of labels does not"):
        names.class_of_number(3)
    assert ClassNames(ORGANS, {"1": "tumour"}).class_of_number(1) == 2
    assert ClassNames(ORGANS, {"5": "liver"}, table).class_of_number(5) == 1


def test_ignore_is_no_class() -> None:
    names = ClassNames(ORGANS, numbers={0: "background", 1: "liver", 2: "Ignore"})
    with pytest.raises(LabelClassesError, match="value 2, which its folder calls 'ignore'"):
        names.class_of_number(2)
    counted = ClassNames(ORGANS, {"ignore": "background"}, {1: "liver", 2: "ignore"})
    assert counted.class_of_number(2) == 0


def test_more_classes_than_a_label_can_hold_are_refused_by_number() -> None:
    with pytest.raises(DataError, match="names 65537 classes, at most 65536"):
        ClassNames(tuple(f"c{number}" for number in range(MAX_CLASSES + 1)))

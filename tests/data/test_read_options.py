"""Which class a structure of a file becomes, by its name, by what the folder says, or by its number."""

from __future__ import annotations

from medfed.data.class_names import ClassNames, Structure
from medfed.data.read_options import LabelOptions

CLASSES = ("background", "liver", "tumour")
NAMED = (Structure(5, "Tumour"), Structure(1, "spleen"))
PLAIN = (Structure(1, "", ""), Structure(2, "", ""))


def test_a_tasks_classes_are_given_by_name_or_by_number():
    by_name = LabelOptions.of(ClassNames(CLASSES), overlap="later", resample=True)
    assert (by_name.classes, by_name.naming) == (3, ClassNames(CLASSES))
    assert (by_name.overlap, by_name.resample) == ("later", True)
    assert (LabelOptions.of(3).classes, LabelOptions.of(3).naming) == (3, None)
    assert LabelOptions.of(None).classes is None


def test_names_decide_as_soon_as_one_structure_has_one():
    options = LabelOptions.of(ClassNames(CLASSES))
    assert options.classes_of(NAMED) == {5: 2, 1: None}
    assert options.classes_of((*NAMED, Structure(2, "", ""))) == {5: 2, 1: None, 2: None}


def test_without_names_the_folders_list_decides_and_then_the_number():
    listed = ClassNames(CLASSES, numbers={1: "tumour", 2: "liver"})
    assert LabelOptions.of(listed).classes_of(PLAIN) == {1: 2, 2: 1}
    assert LabelOptions.of(ClassNames(CLASSES)).classes_of(PLAIN) == {1: 1, 2: 2}


def test_without_classes_by_name_a_given_table_of_names_decides():
    assert LabelOptions.of(3, names={"Tumour": 1}).classes_of(NAMED) == {5: 1, 1: None}
    assert LabelOptions.of(3).classes_of(NAMED) == {5: 5, 1: 1}

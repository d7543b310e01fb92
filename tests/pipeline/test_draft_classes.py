"""The classes of a drafted study: by name where every hospital names them, by number where none does."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import yaml

from medfed.errors import DataError
from medfed.pipeline._draft_classes import class_names, draft_number_maps, structures


def labels(**sites):
    """Preflights whose labels hold these classes, as {number: name}."""
    return {
        site: SimpleNamespace(facts={"classes": {str(n): {"name": name} for n, name in classes.items()}})
        for site, classes in sites.items()
    }


def folders(**sites):
    """Preflights with these names of classes and numbers of cases per class."""
    return {
        site: SimpleNamespace(facts={"class_names": names, "targets": targets})
        for site, (names, targets) in sites.items()
    }


def test_a_structure_is_one_class_whatever_its_number_and_spelling():
    names, warnings = structures(
        labels(north={0: "Background", 1: "Liver", 2: "tumour"}, south={5: "TUMOUR", 7: "liver"})
    )
    assert (names, warnings) == (["background", "Liver", "tumour"], [])


def test_a_structure_that_a_hospital_lacks_is_said():
    _, (warning,) = structures(labels(north={1: "liver", 2: "tumour"}, south={1: "liver"}))
    assert warning.startswith("'tumour' is in no case of south; if it has another name there")
    assert "{south: {classes: {its name: tumour}}}" in warning


def test_numbers_that_nothing_names_become_structures():
    names, (lacking, warning) = structures(labels(north={0: "", 1: "", 3: ""}, south={1: "", 2: "", 3: ""}))
    assert names == ["background", "structure1", "structure2", "structure3"]
    assert lacking.startswith("no case of north has structure2; what is present but not labelled")
    assert warning.startswith("nothing names the numbers in the labels")


def test_of_numbers_with_gaps_those_that_there_are_become_structures():
    """300 numbers of which four occur were 301 outputs of a network, and 297 lines of warnings."""
    sites = labels(north={0: "", 2: "", 300: ""}, south={2: "", 41: "", 256: ""})
    names, (north, south, _) = structures(sites)
    assert names == ["background", "structure2", "structure41", "structure256", "structure300"]
    assert north.startswith("no case of north has structure41, structure256;")
    assert south.startswith("no case of south has structure300;")
    maps = yaml.safe_load(draft_number_maps(sites, ["north", "south"]))["site_overrides"]
    expected = {"classes": {number: f"structure{number}" for number in (2, 41, 256, 300)}}
    assert maps == {"north": expected, "south": expected}
    assert draft_number_maps(labels(north={1: "", 2: ""}), ["north"]) == ""
    assert draft_number_maps(labels(north={1: "liver", 3: ""}), ["north"]) == ""
    assert structures(labels(north={1: "liver", 3: ""}))[0][-1] == "structure3"


def test_the_note_on_numbers_calls_them_as_the_draft_does():
    names, (warning,) = structures(labels(north={255: ""}, south={255: ""}))
    assert names == ["background", "structure255"]
    assert (
        "('structure255' is label 255): write the structures' names into task.classes and site_ov" in warning
    )
    _, (warning,) = structures(labels(north={1: ""}))
    assert "('structure1' is label 1): write the structures' names into task.classes, and" in warning


def test_one_numbered_structure_is_taken_for_the_only_named_one_with_a_warning():
    names, (warning,) = structures(labels(north={4: "tumour"}, south={1: ""}))
    assert names == ["background", "tumour"]
    assert warning.startswith("nothing names label 1 of south; it was taken for 'tumour'")


@pytest.mark.parametrize(
    "sites",
    [
        {"north": {1: "liver", 2: "tumour"}, "south": {1: ""}},
        {"north": {1: "liver"}, "south": {2: ""}},
        {"north": {1: "liver"}, "south": {1: "", 2: ""}},
        {"north": {1: "liver"}, "south": {1: "liver", 2: ""}},
    ],
)
def test_names_in_one_hospital_and_numbers_in_another_are_refused(sites):
    with pytest.raises(
        DataError, match=r"labels of north name their structures, those of south hold numbers"
    ):
        structures(labels(**sites))


def test_a_hospital_of_both_kinds_is_taken_by_number():
    names, _ = structures(labels(north={1: "liver", 2: ""}, south={1: ""}))
    assert names == ["background", "structure1", "structure2"]


def test_empty_labels_are_refused():
    with pytest.raises(DataError, match="no label that can be used marks a structure"):
        structures(labels(north={0: "background"}, south={}))


def test_what_labels_call_ignore_is_no_class_and_is_said():
    names, warnings = structures(labels(north={0: "background", 1: "liver", 2: "Ignore"}, south={1: "liver"}))
    assert names == ["background", "liver"]
    assert [line.split(":")[0] for line in warnings] == ["north"]
    assert "classes: {ignore: background}" in warnings[0]


def test_the_longest_list_of_classes_numbers_the_others_by_name():
    names, warnings = class_names(
        folders(
            north=(["benign", "malignant", "normal"], {"0": 3, "1": 2, "2": 1}), south=(["Normal"], {"0": 4})
        )
    )
    assert names == ["benign", "malignant", "normal"]
    assert warnings == ["south has no case of class 0 (benign)", "south has no case of class 1 (malignant)"]


def test_classes_without_names_are_numbered_to_the_highest():
    names, warnings = class_names(folders(north=([], {"0": 3, "2": 1}), south=([], {"1": 1, "0": 1})))
    assert names == ["class0", "class1", "class2"]
    assert warnings == ["north has no case of class 1 (class1)", "south has no case of class 2 (class2)"]


def test_a_single_class_or_differently_named_folders_are_refused():
    with pytest.raises(DataError, match="every case is of class 0; a classifier needs at least two classes"):
        class_names(folders(north=(["benign"], {"0": 3})))
    with pytest.raises(DataError, match="classes differ: benign, bad against benign, malignant; give their"):
        class_names(folders(north=(["benign", "malignant"], {"1": 1}), south=(["benign", "bad"], {"1": 1})))

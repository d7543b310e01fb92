"""A patient's images count once, and contradictory or incomplete rows are an error."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from medfed.errors import DataError
from medfed.evaluation.patients import by_patient, class_predictions

sys.path.insert(0, str(Path(__file__).parent))
from case_rows import class_rows, image_row


def test_a_patient_with_cases_of_several_classes_counts_once_by_those_of_the_highest():
    """a: 0.2 and 0.4 of the positive cases and not the 0.9 of the other; b has none: all of its cases."""
    cases = [
        *class_rows("a", 0.2, True, image=0),
        *class_rows("a", 0.9, False, image=1),
        *class_rows("a", 0.4, True, image=2),
        *class_rows("b", 0.5, False, image=0),
        *class_rows("b", 0.7, False, image=1),
    ]
    p, y = class_predictions(by_patient(cases), ["healthy", "disease"])
    assert y.tolist() == [1, 0]
    assert p[:, 1] == pytest.approx([0.3, 0.6])


def test_survival_times_of_one_patient_that_differ_are_an_error():
    cases = [
        msgspec.structs.replace(row, metric="risk", structure=None, target=time, event=True)
        for time in (3.0, 4.0)
        for row in class_rows("a", 0.2, True)
    ]
    with pytest.raises(DataError, match="patient a at site north: cases with different targets"):
        by_patient(cases)


def test_a_patient_without_a_prediction_is_an_error_and_not_left_out():
    cases = [row for i in range(4) for row in class_rows(f"p{i}", 0.2 * i, i > 1)]
    cases[0] = msgspec.structs.replace(cases[0], value=None, note="failed")
    with pytest.raises(DataError, match="lacks a probability"):
        class_predictions(by_patient(cases), ["healthy", "disease"])


def test_patients_are_not_summarised_over_conditions():
    cases = [image_row("a", 0.5), msgspec.structs.replace(image_row("b", 0.5), condition="noise of 10 %")]
    with pytest.raises(DataError, match=r"site 'north'.*conditions noise of 10 %, none"):
        by_patient(cases)


def test_an_overlap_is_of_patients_with_the_structure_and_the_others_are_the_specificity():
    """Of the images without it, 1 of 2 of a are left empty and 0 of 1 of b."""
    cases = [
        image_row("a", 0.6, image=0),
        image_row("a", None, image=1, note="absent in both"),
        image_row("a", 0.0, image=2, note="false positive"),
        image_row("b", 0.0, note="false positive"),
        image_row("c", 0.0, note="missed"),
    ]
    values = by_patient(cases).values
    assert values["lesion", "dice"] == pytest.approx([0.6, np.nan, 0.0], nan_ok=True)
    assert values["lesion", "rightly_empty"] == pytest.approx([0.5, 0.0, np.nan], nan_ok=True)


def test_where_every_patient_has_the_structure_there_is_no_specificity():
    assert set(by_patient([image_row("a", 0.6), image_row("b", 0.0, note="missed")]).values) == {
        ("lesion", "dice")
    }

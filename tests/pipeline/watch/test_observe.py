"""What is observed of each patient: values by hand, of tables and images, without labels."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from pipeline.watch.watched import IMAGES, TABLE, images, run_of

from medfed.errors import DataError
from medfed.pipeline.own_choices import OwnChoices
from medfed.pipeline.predict import load_model
from medfed.pipeline.watch.observe import Observation, observe, one_per_patient, variables_of
from medfed.study.reading import read_run_study

SECRET = b"s" * 32


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("observe")
    return {"table": run_of(folder / "table", TABLE), "images": run_of(folder / "images", IMAGES)}


def seen(run, place: Path) -> list[Observation]:
    study = read_run_study(run.study)
    return observe(study, load_model(study, run, "federated"), place, "north", SECRET, OwnChoices())


def test_a_row_gives_its_cells_and_the_models_probability(runs, tmp_path: Path) -> None:
    (tmp_path / "new.csv").write_text("patient,x,sex\na,0.5,f\nb,,m\nc,-1,\n")
    result = {one.patient: one.values for one in seen(runs["table"], tmp_path / "new.csv")}
    cells = {patient: (one["column x"], one["column sex"]) for patient, one in result.items()}
    assert cells == {"a": (0.5, "f"), "b": (None, "m"), "c": (-1.0, None)}
    for patient, x in (("a", 0.5), ("c", -1.0)):
        assert result[patient]["probability of ill"] == pytest.approx(1 / (1 + math.exp(-2 * x)))


def test_rows_that_the_study_drops_are_seen_without_an_output(tmp_path: Path) -> None:
    run = run_of(tmp_path / "drop", TABLE.replace("target: ill,", "target: ill, missing: drop,"))
    (tmp_path / "new.csv").write_text("patient,x,sex\na,0.5,f\nb,,m\n")
    result = {one.patient: one.values for one in seen(run, tmp_path / "new.csv")}
    assert result["b"] == {"column x": None, "column sex": "m"}
    assert "probability of ill" in result["a"]


def test_the_variables_of_a_study_are_its_inputs_and_outputs(runs) -> None:
    table = variables_of(read_run_study(runs["table"].study))
    assert [(one.name, one.kind, one.grid) for one in table] == [
        ("column x", "input", "number"),
        ("column sex", "input", "words"),
        ("probability of ill", "output", "share"),
    ]
    of_images = variables_of(read_run_study(runs["images"].study))
    assert [one.name for one in of_images if one.kind == "output"] == ["volume of lesion"]
    assert "noise" in {one.name for one in of_images}


def test_an_image_gives_its_values_and_a_spoiled_one_says_so(runs, tmp_path: Path) -> None:
    result = seen(runs["images"], images(tmp_path / "new", 3, 1, spoiled=[2]))
    assert [one.values["files"] for one in sorted(result, key=lambda one: one.patient)] == [
        "can be used",
        "can be used",
        "cannot be used",
    ]
    usable = [one for one in result if one.content is not None]
    names = {one.name for one in variables_of(read_run_study(runs["images"].study))}
    assert all(set(one.values) == names for one in usable)
    # 16 voxels of 2 mm along each side are 32.8 ml.
    assert all(0 <= one.values["volume of lesion"] <= 32.77 for one in usable)
    assert all(one.values["widest spacing"] == pytest.approx(2.0) for one in usable)
    with pytest.raises(DataError, match="none of 2 cases can be used"):
        seen(runs["images"], images(tmp_path / "spoiled", 2, 1, spoiled=[0, 1]))


def test_one_case_of_a_patient_counts() -> None:
    cases = [Observation(token, patient, {}) for token, patient in (("c", "p"), ("a", "p"), ("b", "q"))]
    assert [one.token for one in one_per_patient(cases)] == ["a", "b"]


def test_a_table_with_a_word_for_a_number_is_refused_without_its_cell(runs, tmp_path: Path) -> None:
    (tmp_path / "new.csv").write_text("patient,x,sex\na,Anna,f\n")
    with pytest.raises(DataError, match=r"site 'north': .*column 'x' holds no number") as refusal:
        seen(runs["table"], tmp_path / "new.csv")
    assert "Anna" not in str(refusal.value)


def test_values_are_no_part_of_what_an_observation_shows() -> None:
    assert "secret" not in repr(Observation("token", "secret", {}))

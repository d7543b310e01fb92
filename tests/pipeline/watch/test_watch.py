"""A hospital's looks: what is compared with what, who is left out, and which shifts raise an alarm."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest
from pipeline.watch.watched import IMAGES, TABLE, images, run_of, table

from medfed.errors import RunError, TooFewPatientsError
from medfed.pipeline.factory import hospital_of
from medfed.pipeline.own_choices import OwnChoices
from medfed.pipeline.seen_cases import record_trained
from medfed.pipeline.watch.state import WatchFolder, read_sketch
from medfed.pipeline.watch.watch import UNCHECKED, Asked, describe, watch
from medfed.runs.checkpoints import load_checkpoint, save_checkpoint
from medfed.runs.folder import RunFolder
from medfed.study.reading import read_run_study


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return run_of(tmp_path / "made", TABLE)


def look(run: RunFolder, data: Path, *references: Path, labels: bool = False, looks: int | None = None):
    return watch(run, data, name="north", asked=Asked(references, looks, labels))


def test_a_reference_is_made_once_from_what_is_named(run: RunFolder, tmp_path: Path) -> None:
    before, new = table(tmp_path / "before.csv", 80, 1), table(tmp_path / "new.csv", 30, 2)
    with pytest.raises(RunError, match="there is no reference yet; name with --reference"):
        look(run, new)
    result = look(run, new, before, looks=6)
    assert (result.reference.patients, result.reference.unseen, result.reference.level.looks) == (80, 80, 6)
    assert (result.look.number, result.look.patients, result.look.alarms) == (1, 30, [])
    with pytest.raises(RunError, match=r"its reference was made on .* of 80 patients; omit --reference"):
        look(run, new, before)
    assert look(run, new).look.number == 2
    assert "look 2 (2 of 6): 30 new patients" in describe(look(run, new)).replace("look 3 (3", "look 2 (2")


def test_shifts_of_a_table_are_found(run: RunFolder, tmp_path: Path) -> None:
    before = table(tmp_path / "before.csv", 120, 1)
    same = look(run, table(tmp_path / "same.csv", 40, 2), before)
    assert same.look.alarms == []
    shifted = look(run, table(tmp_path / "shifted.csv", 40, 3, shift=1.5))
    assert {(one.name, one.kind) for one in shifted.look.alarms} == {
        ("column x", "input"),
        ("probability of ill", "output"),
    }
    assert "ALARM: column x (input): higher" in describe(shifted)
    missing = look(run, table(tmp_path / "missing.csv", 40, 4, missing=20))
    assert [(one.name, one.what) for one in missing.look.alarms] == [("column sex", "missing")]


@pytest.mark.parametrize(
    ("change", "name"), [({"gamma": 2.0}, "shape of the intensities"), ({"noise": 0.05}, "noise")]
)
def test_a_scanner_shift_of_images_is_found(tmp_path: Path, change: dict[str, float], name: str) -> None:
    run = run_of(tmp_path / "made", IMAGES)
    before = images(tmp_path / "before", 24, 1)
    assert look(run, images(tmp_path / "same", 12, 2), before).look.alarms == []
    assert name in {one.name for one in look(run, images(tmp_path / "new", 12, 3, **change)).look.alarms}


def test_images_that_cannot_be_used_are_a_change_of_their_own(tmp_path: Path) -> None:
    run = run_of(tmp_path / "made", IMAGES)
    result = look(run, images(tmp_path / "new", 16, 2, spoiled=range(9)), images(tmp_path / "before", 24, 1))
    assert "files" in {one.name for one in result.look.alarms}
    assert result.look.unusable == 9
    assert "9 cases cannot be used" in describe(result)


def test_patients_of_the_reference_are_not_looked_at_again(run: RunFolder, tmp_path: Path) -> None:
    before = table(tmp_path / "before.csv", 60, 1)
    with pytest.raises(TooFewPatientsError, match=r"0 new patients \(60 are of the reference or trained"):
        look(run, before, before)
    both = tmp_path / "both.csv"
    new = table(tmp_path / "new.csv", 20, 2).read_text().splitlines()[1:]
    both.write_text(before.read_text() + "\n".join(new) + "\n")
    result = look(run, both)
    # The look that was refused counts for nothing.
    assert (result.look.number, result.look.patients, result.look.known) == (1, 20, 60)


def test_patients_who_trained_count_for_inputs_alone(run: RunFolder, tmp_path: Path) -> None:
    before = table(tmp_path / "before.csv", 80, 1, target=True)
    study = read_run_study(run.study)
    record_trained(run, {"north": hospital_of(study, "north", str(before))})
    result = look(run, table(tmp_path / "new.csv", 20, 2, target=True), before)
    by_name = {one.name: one for one in result.look.compared}
    # Of four patients one trained and one was validated on.
    assert (by_name["column x"].reference, by_name["probability of ill"].reference) == (80, 40)
    assert (result.reference.unseen, result.reference.note) == (40, "")


def test_what_cannot_be_known_of_training_is_said(run: RunFolder, tmp_path: Path) -> None:
    result = look(run, table(tmp_path / "new.csv", 20, 2), table(tmp_path / "before.csv", 60, 1))
    assert result.reference.note == UNCHECKED
    assert UNCHECKED in describe(result)


def test_too_few_patients_say_nothing_and_count_as_no_look(run: RunFolder, tmp_path: Path) -> None:
    before = table(tmp_path / "before.csv", 60, 1)
    with pytest.raises(TooFewPatientsError, match="4 new patients, and at least 5 are needed"):
        look(run, table(tmp_path / "few.csv", 4, 2), before)
    state = WatchFolder(run.path, "north")
    assert (state.read_looks(), state.page.exists()) == ([], False)
    state.reference.unlink()
    with pytest.raises(TooFewPatientsError, match="3 patients for a reference"):
        look(run, before, table(tmp_path / "few.csv", 3, 3))


def test_the_hospitals_own_policy_on_small_groups_holds(run: RunFolder, tmp_path: Path) -> None:
    new, before = table(tmp_path / "new.csv", 20, 2), table(tmp_path / "before.csv", 60, 1)
    own = OwnChoices(smallest_group=15)
    result = watch(run, new, name="north", own=own, asked=Asked([before]))
    assert result.reference.level.min_patients == 15
    # A call without the site file keeps to it.
    with pytest.raises(TooFewPatientsError, match="10 new patients, and at least 15 are needed"):
        look(run, table(tmp_path / "few.csv", 10, 3))


def test_a_name_is_no_path(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"watch-model --name: '\.\./x' is no name"):
        watch(run, tmp_path / "new.csv", name="../x")


def test_another_model_needs_another_reference(run: RunFolder, tmp_path: Path) -> None:
    look(run, table(tmp_path / "new.csv", 20, 2), table(tmp_path / "before.csv", 60, 1))
    path = run.checkpoint("federated")
    save_checkpoint(path, {name: 2 * tensor for name, tensor in load_checkpoint(path).items()}, 2)
    with pytest.raises(RunError, match="its reference is of another model than the run's now"):
        look(run, table(tmp_path / "new.csv", 20, 2))


def test_another_hospitals_sketch_is_a_reference_without_its_patients(run: RunFolder, tmp_path: Path) -> None:
    look(run, table(tmp_path / "new.csv", 40, 2), table(tmp_path / "before.csv", 60, 1))
    sketch = WatchFolder(run.path, "north").sketch
    for column in read_sketch(sketch).columns:
        assert all(number >= 5 for number in column.counts.values())
    result = watch(
        run,
        table(tmp_path / "newer.csv", 30, 3),
        name="south",
        asked=Asked([sketch, tmp_path / "before.csv"]),
    )
    assert result.reference.patients == 100
    alone = watch(run, tmp_path / "newer.csv", name="east", asked=Asked([sketch]))
    assert (alone.reference.patients, alone.look.alarms) == (40, [])


def test_labels_give_rows_over_time(run: RunFolder, tmp_path: Path) -> None:
    look(
        run, table(tmp_path / "a.csv", 40, 2, target=True), table(tmp_path / "before.csv", 60, 1), labels=True
    )
    result = look(run, table(tmp_path / "b.csv", 40, 3, target=True), labels=True)
    state = WatchFolder(run.path, "north")
    rows = [msgspec.json.decode(line) for line in state.rows.read_bytes().splitlines()]
    assert {(row["round"], row["value"]) for row in rows if row["metric"] == "patients"} == {(1, 40), (2, 40)}
    assert {row["round"] for row in rows if row["metric"] == "auroc"} == {1, 2}
    assert "With labels" in result.page.read_text()


def test_the_page_and_the_sketch_hold_no_value_of_a_single_patient(run: RunFolder, tmp_path: Path) -> None:
    before, new = table(tmp_path / "before.csv", 60, 1), table(tmp_path / "new.csv", 40, 2, target=True)
    look(run, new, before, labels=True)
    state = WatchFolder(run.path, "north")
    values = set(re.findall(r"-?\d\.\d{6}", before.read_text() + new.read_text()))
    values |= {
        f"{case['value']:.4f}" for case in map(msgspec.json.decode, state.cases.read_bytes().splitlines())
    }
    assert len(values) > 130
    for path in (state.page, state.sketch, state.rows, state.looks):
        text = path.read_text()
        assert not any(value in text for value in values), path.name
        assert not re.search(r"p\d-\d", text), path.name

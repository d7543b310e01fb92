"""A run folder's case rows and the rows that hospitals reported become the run's results."""

from __future__ import annotations

import csv
import json

import msgspec
import pytest

from medfed.errors import RunError
from medfed.evaluation import histograms, rows
from medfed.evaluation.rows import Row
from medfed.evaluation.summarise import (
    PublicStudy,
    read_public_study,
    read_run_facts,
    summarise,
    summary_settings,
)
from medfed.runs.facts import RunFacts

from .case_rows import class_rows, image_row

STUDY = {
    "task": {"kind": "segment", "classes": ["background", "lesion"]},
    "evaluation": {"draws": 20, "smallest_group": 2},
}


def write_run(folder, cases=(), reported=(), study=None, merged_round=4):
    rows.write(folder / "cases.jsonl", cases)
    if reported:
        rows.write(folder / "reported.jsonl", reported)
    (folder / "study.yaml").write_text(json.dumps(study or STUDY))
    (folder / "rounds.jsonl").write_text(
        json.dumps({"round": merged_round, "site": "n", "status": "merged"})
        + "\n"
        + json.dumps({"round": merged_round, "site": "south", "status": "merged", "examples": 40})
        + "\n"
    )
    return folder


def test_sections_and_their_defaults():
    study = PublicStudy({"rule": "fedavg", "privacy": {"kind": "none"}, "evaluation": {"draws": 7}})
    assert (study.kind("rule"), study.kind("privacy"), study.kind("local")) == ("fedavg", "none", "")
    assert (study.draws, study.min_patients) == (7, 5)
    assert PublicStudy({"evaluation": {"smallest_group": 9}}).min_patients == 9


def test_the_public_study_is_read_before_the_one_with_the_hospitals_folders(tmp_path):
    assert read_public_study(tmp_path) == PublicStudy({})
    (tmp_path / "study.yaml").write_text("name: own")
    assert read_public_study(tmp_path).sections == {"name": "own"}
    (tmp_path / "study.json").write_text('{"name": "shared"}')
    assert read_public_study(tmp_path).sections == {"name": "shared"}
    (tmp_path / "study.json").write_text("[1]")
    assert read_public_study(tmp_path) == PublicStudy({})


def test_a_damaged_study_is_refused_without_its_content(tmp_path):
    (tmp_path / "study.yaml").write_text("name: [secret")
    with pytest.raises(RunError, match=r"^study\.yaml: cannot be read: \w+; restore the file$"):
        read_public_study(tmp_path)


def test_a_run_without_facts_has_defaults(tmp_path):
    assert read_run_facts(tmp_path) == RunFacts()


def test_the_runs_own_classes_come_before_the_studys():
    study = PublicStudy(STUDY)
    settings = summary_settings(RunFacts(seed=5, held_out=["west"]), study, 3)
    assert (settings.classes, settings.seed, settings.round, settings.held_out) == (
        ["background", "lesion"],
        5,
        3,
        ["west"],
    )
    assert (settings.min_patients, settings.draws) == (2, 20)
    assert summary_settings(RunFacts(classes=["liver"]), study, 3).classes == ["liver"]


def test_results_are_of_the_last_merged_round_and_in_both_files(tmp_path):
    cases = [image_row(patient, value) for patient, value in (("a", 0.4), ("b", 0.8))]
    run = write_run(tmp_path, cases)
    results = summarise(run)
    (dice,) = [row for row in results if row.metric == "dice" and row.site == "north"]
    assert (dice.value, dice.n, dice.round) == (pytest.approx(0.6), 2, 4)
    assert rows.read_rows(run / "rows.jsonl") == results
    with (run / "rows.csv").open(newline="") as file:
        assert [line["metric"] for line in csv.DictReader(file)] == [row.metric for row in results]


def test_a_reported_row_is_replaced_where_the_sites_cases_are_here(tmp_path):
    reported = Row(
        round=4,
        site="north",
        split="test",
        model="federated",
        metric="dice",
        value=0.1,
        n=9,
        structure="lesion",
    )
    south = msgspec.structs.replace(reported, site="south", value=0.2)
    results = summarise(write_run(tmp_path, [image_row("a", 0.4), image_row("b", 0.8)], [reported, south]))
    dice = {row.site: row.value for row in results if row.metric == "dice" and row.site in ("north", "south")}
    assert dice == {"north": pytest.approx(0.6), "south": 0.2}


def test_no_number_of_one_hospital_ends_the_report(tmp_path, caplog):
    """An interval of 1e308 overflowed in the mean over hospitals, and ended each `report` of the run."""
    honest = Row(round=4, site="south", split="test", model="federated", metric="hd95_mm", structure="lesion",
                 value=4.0, low=3.0, high=5.0, n=9)  # fmt: skip
    evil = msgspec.structs.replace(honest, site="evil", low=0.0, high=1.7e308)
    results = summarise(write_run(tmp_path, reported=[honest, evil]))
    assert [(row.site, row.value) for row in results if row.metric == "hd95_mm"] == [("south", 4.0)]
    assert (
        "a result of evil is left out: test/federated/hd95_mm/lesion/None: 1.7e+308 is outside" in caplog.text
    )


def test_a_temperature_is_a_row_with_its_validation_patients(tmp_path):
    study = {"task": {"classes": ["healthy", "disease"]},
             "evaluation": {"draws": 20, "smallest_group": 1, "temperature": True}}  # fmt: skip
    cases = []
    for split in ("val", "test"):
        for i in range(6):
            cases += class_rows(f"{split}{i}", 0.95 if i % 3 else 0.1, int(i > 2), split=split)
    results = summarise(write_run(tmp_path, cases, study=study))
    (row,) = [row for row in results if row.metric == "temperature"]
    assert (row.site, row.split, row.n, row.round) == ("all", "val", 6, 4)
    # Overconfident predictions are cooled.
    assert row.value > 1
    assert sum(h.positives for h in histograms.read(tmp_path / "curves.jsonl") if h.split == "test") == 3
    study["evaluation"]["temperature"] = False
    assert not [
        row for row in summarise(write_run(tmp_path, cases, study=study)) if row.metric == "temperature"
    ]


def test_a_temperature_leaves_guaranteed_thresholds_on_what_is_predicted(tmp_path):
    """`predict --guarantee` compares the network's own probabilities with them."""
    asked = {"draws": 20, "smallest_group": 1, "guarantee": 0.5, "confidence": 0.5}
    study = {"task": {"classes": ["healthy", "disease"]}, "evaluation": asked}
    cases = [
        row for split in ("val", "test") for i in range(12)
        for row in class_rows(f"{split}{i}", 0.95 if i % 3 else 0.1, int(i > 5), split=split)
    ]  # fmt: skip
    found = []
    for scaled in (False, True):
        asked["temperature"] = scaled
        results = summarise(write_run(tmp_path, cases, study=study))
        assert scaled == any(row.metric == "temperature" and row.value > 1.2 for row in results)
        found.append([row for row in results if row.metric.startswith(("guarantee_", "held_", "risk_"))])
    assert found[0] == found[1]
    # Of the six who have it four have 0.95 and two 0.1 and two may fail of six, so 0.95 keeps it.
    (row,) = [row for row in found[1] if row.metric == "guarantee_sensitivity" and row.site == "north"]
    assert row.value == 0.95


def test_a_reported_row_that_no_hospital_can_have_measured_is_named_and_left_out(tmp_path, caplog):
    """The file of an earlier medfed, or an edited one: the hub's checks on arrival are made again."""
    honest = Row(round=4, site="south", split="test", model="federated", metric="dice", value=0.2, n=9)
    lies = [
        msgspec.structs.replace(honest, metric="lesion_sensitivity", value=7.5),
        msgspec.structs.replace(honest, metric="accuracy", value=0.9),
        msgspec.structs.replace(honest, metric="volume_ml", n=1_000_000),
        msgspec.structs.replace(honest, metric="headline"),
        msgspec.structs.replace(honest, group="<script>\n"),
    ]
    results = summarise(write_run(tmp_path, reported=[honest, *lies]))
    assert [(row.metric, row.value, row.n) for row in results if row.site == "south"] == [("dice", 0.2, 9)]
    said = "\n".join(caplog.messages)
    for part in (
        "south is left out: test/federated/lesion_sensitivity/None/None: 7.5 is outside the metric's range",
        "test/federated/accuracy/None/None: this study does not measure it: its task is 'segment'",
        "of 1000000 patients, this site may have 1 to 1000 in a split",
        "no metric of this name is known",
        "test/federated/dice/None/<script>\\n: its group is not of the form attribute=value",
    ):
        assert part in said
    assert len(caplog.messages) == 5


def test_a_study_without_a_bound_takes_any_number_of_patients(tmp_path):
    many = Row(round=4, site="s", split="test", model="federated", metric="dice", value=0.2, n=2_000_000)
    unbounded = {**STUDY, "sampling": {"max_examples": None}}
    assert many in summarise(write_run(tmp_path, reported=[many], study=unbounded))
    assert many not in summarise(write_run(tmp_path, reported=[many], study=STUDY))

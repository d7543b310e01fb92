"""What the report reads from a run folder."""

from __future__ import annotations

import pytest

from medfed.data.refusals import REASONS
from medfed.errors import RunError
from medfed.evaluation import rows
from medfed.evaluation.report.limits import limits
from medfed.evaluation.report.run import read_run
from medfed.runs.facts import RunFacts
from medfed.runs.rounds import IMAGES_IN_MM, LABELS_NAMED, LEFT_OUT, RoundLine
from medfed.wire.audit_log import AuditLog

from .result_rows import result, run_of


def test_a_folder_with_rows_alone_is_read(tmp_path):
    rows.write(tmp_path / "rows.jsonl", [result(0.8)])
    run = read_run(tmp_path)
    assert run == run_of(rows=[result(0.8)])
    log = AuditLog(tmp_path / "audit.jsonl")
    log.write("began", sites=["north"])
    log.write("merged", round=1, sites=["north"])
    assert read_run(tmp_path).merges == {"north": (1,)}
    assert read_run(tmp_path).audit_entries == 2


def test_a_folder_without_rows_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"no rows\.jsonl in this folder; give the folder of a finished run"):
        read_run(tmp_path)


def test_models_are_ordered_with_the_untrained_one_last():
    names = ["untrained", "personal:north", "local:south", "local:north", "pooled", "federated"]
    every = [result(0.8, model=name) for name in names] + [result(0.1, model="gone", against="federated")]
    assert run_of(rows=every).models == [
        "federated", "pooled", "local:north", "local:south", "personal:north", "untrained",
    ]  # fmt: skip


def test_a_round_in_which_nothing_was_merged_after_the_last_is_no_training():
    lines = [
        RoundLine(1, "north", "merged"),
        RoundLine(2, "north", "reported"),
        RoundLine(2, "south", "absent"),
    ]
    assert run_of(rounds=lines).training_lines == lines[:1]


def test_counts_of_cases_left_out_come_from_the_updates_or_from_the_run_itself():
    first, second = list(REASONS.values())[:2]
    rounds = [
        RoundLine(1, "north", "merged", scalars={f"{LEFT_OUT}{first}": 2.0, f"{LEFT_OUT}{second}": 0.0}),
        RoundLine(2, "north", "merged", scalars={f"{LEFT_OUT}{first}": 3.0}),
        RoundLine(1, "south", "merged", scalars={f"{LEFT_OUT}{first}": 1.0}),
    ]
    run = run_of(RunFacts(left_out={"south": {second: 4}}), rounds=rounds)
    assert run.left_out == {"north": {first: 3}, "south": {second: 4}}


def test_labels_with_names_and_numbers_alone_are_said_in_the_limits():
    lines = [
        RoundLine(1, "north", "merged", scalars={LABELS_NAMED: 1.0}),
        RoundLine(1, "south", "merged", scalars={LABELS_NAMED: 0.0}),
        RoundLine(1, "west", "merged", scalars={LABELS_NAMED: 0.5}),
        RoundLine(2, "north", "reported", scalars={"val/dice": 0.5}),
    ]
    said = "The labels of north name their structures, and those of south hold numbers that nothing names"
    assert any(one.startswith(said) for one in limits(run_of(rounds=lines), None))
    assert run_of(rounds=lines[1:3]).different_labels == ""


def test_images_with_and_without_a_size_in_mm_are_said_in_the_limits():
    lines = [
        RoundLine(1, "north", "merged", scalars={IMAGES_IN_MM: 1.0}),
        RoundLine(1, "south", "merged", scalars={IMAGES_IN_MM: 0.0}),
    ]
    said = "The images of south have no size in mm and those of north have one"
    assert any(one.startswith(said) for one in limits(run_of(rounds=lines), None))
    assert run_of(rounds=lines[1:]).different_units == ""

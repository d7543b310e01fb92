"""Rows and runs with given values, from which single parts of a report are made."""

from __future__ import annotations

from medfed.evaluation.report.run import Run
from medfed.evaluation.rows import Row
from medfed.evaluation.summarise import PublicStudy
from medfed.runs.facts import RunFacts


def result(value, **more):
    """A Dice of the federated model on ten test patients of north, unless `more` says otherwise."""
    about = {"round": 1, "site": "north", "split": "test", "model": "federated", "metric": "dice", "n": 10}
    if value is None:
        about["note"] = "fewer than 5 patients"
    return Row(**{**about, "value": value, **more})


def run_of(facts=None, study=None, rows=(), rounds=(), curves=(), audit_entries=None):
    return Run(
        facts or RunFacts(), PublicStudy(study or {}), list(rows), list(rounds), list(curves), audit_entries
    )

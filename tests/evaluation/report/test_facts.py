"""The report's key figures, table of cases, and settings."""

from __future__ import annotations

from medfed.evaluation.report.facts import case_table, flatten, key_figures, settings
from medfed.evaluation.report.focus import focus_of
from medfed.runs.facts import PrivacyFacts, RunFacts, SitePrivacy
from medfed.runs.rounds import RoundLine

from .result_rows import result, run_of


def figures_of(facts, rows=(), rounds=()):
    run = run_of(facts, rows=rows, rounds=rounds)
    return dict(key_figures(run, focus_of(run)))


def test_rounds_bytes_and_time_are_given_where_they_are_known():
    assert figures_of(RunFacts(sites=["north", "south"])) == {"hospitals trained together": "0 of 2"}
    rounds = [RoundLine(1, "north", "merged", bytes_up=1000), RoundLine(1, "south", "merged", bytes_up=1000)]
    rounds.append(RoundLine(2, "north", "reported", bytes_up=500))
    figures = figures_of(RunFacts(sites=["north", "south"], seconds=84.2), rounds=rounds)
    assert figures == {
        "hospitals trained together": "2", "rounds": "1", "sent by the hospitals, in all": "2.5 kB",
        "for the whole run": "84 s",
    }  # fmt: skip


def test_epsilon_is_that_of_the_site_that_spent_most():
    sites = {"north": SitePrivacy(2.5, []), "south": SitePrivacy(3.25, [])}
    for unit, word in (("patient", "patient"), ("site", "hospital")):
        facts = RunFacts(privacy=PrivacyFacts(unit=unit, delta=1e-5, sites=sites))
        assert figures_of(facts)[f"epsilon spent for each {word}, at delta 1e-05"] == "3.25"


def test_the_pool_counts_hospitals_that_are_too_small_and_held_out_ones_are_added():
    counts = {"north": 20, "west": 7, "all": 23}
    rows = [result(float(n), metric="patients", site=site, n=n) for site, n in counts.items()]
    rows.append(result(0.8, site="west"))
    name = "patients at west, of all tested"
    assert figures_of(RunFacts(held_out=["west"]), rows)[name] == "7 of 30"
    without_pool = [row for row in rows if row.site != "all"]
    assert figures_of(RunFacts(held_out=["west"]), without_pool)[name] == "7 of 27"
    assert figures_of(RunFacts(), [rows[0], result(0.8)])["patients tested"] == "20"


def test_patients_of_the_validation_split_were_not_tested():
    rows = [result(9.0, metric="patients", split="val", n=9), result(0.8, split="val")]
    assert figures_of(RunFacts(), rows)["patients"] == "9"


def test_a_small_number_of_cases_is_given_as_a_bound():
    cases = {"north": {"train": 40, "val": 4, "test": 5}, "west": {"test": 1}}
    run = run_of(
        RunFacts(sites=["north"], held_out=["west"], cases=cases), {"evaluation": {"smallest_group": 5}}
    )
    assert case_table(run)["lines"] == [("north", ["40", "< 5", "5"]), ("west", ["0", "0", "< 5"])]
    assert case_table(run_of()) is None


def test_settings_are_shown_without_values_that_may_name_a_place():
    study = {
        "name": "x",
        "data": {
            "spacing_mm": [2.0, 1.0],
            "cache": {"path": "a"},
            "other": "C:\\a",
            "more": "a/b",
            "none": None,
        },
        "train": {"optimiser": {"kind": "sgd", "lr": 0.1}},
        "privacy": {"key": "a"},
        "sites": {"north": "folder"},
    }
    assert settings(run_of(study=study)) == [
        ("data", [("spacing_mm", "2.0, 1.0")]),
        ("train", [("optimiser.kind", "sgd"), ("optimiser.lr", "0.1")]),
    ]


def test_private_keys_are_left_out_in_any_case_and_at_any_depth():
    assert flatten({"Token": 1, "a": {"URL": 2, "b": [3]}, "c": ()}) == [("a.b", "3"), ("c", "none")]

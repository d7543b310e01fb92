"""Points of plots are groups of patients, and give none of them beside the rows."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from medfed.errors import RunError
from medfed.evaluation import patient_groups as groups
from medfed.evaluation.aggregate import aggregate
from medfed.evaluation.patient_groups import GroupPoint, PatientGroups
from medfed.evaluation.patients import SummarySettings
from medfed.evaluation.rows import CaseRow
from medfed.evaluation.segmentation import MISSED

LEAST = 4


def case(number: int, metric: str, value: float | None, *, site: str = "north", **more: object) -> CaseRow:
    about = {"model": "federated", "site": site, "split": "test", "case": f"{site}{number}"}
    return CaseRow(**{**about, "patient": f"{site}{number}", "metric": metric, "value": value, **more})


def dices(values, missed: int = 0, site: str = "north") -> list[CaseRow]:
    known = [case(n, "dice", value, site=site, structure="lesion") for n, value in enumerate(values)]
    gone = {"site": site, "structure": "lesion", "note": MISSED}
    return known + [case(100 + n, "dice", 0.0, **gone) for n in range(missed)]


def made(cases: list[CaseRow], least: int = LEAST) -> list[PatientGroups]:
    settings = SummarySettings(round=3, seed=0, min_patients=least, draws=20)
    return groups.patient_groups(cases, aggregate(cases, settings), settings)


def test_ranked_patients_are_cut_into_groups_of_at_least_the_smallest() -> None:
    """Nine patients in groups of at least four are five and four: means of .1 to .5, and of .6 to .9."""
    (one,) = made(dices([0.9, 0.1, 0.3, 0.2, 0.5, 0.4, 0.8, 0.6, 0.7]))
    assert one.points == (GroupPoint(5, 0.3), GroupPoint(4, 0.75))
    assert (one.site, one.metric, one.structure, one.left_out) == ("north", "dice", "lesion", 0)


def test_missed_patients_are_in_no_group_as_their_number_is_shown() -> None:
    """Two missed among four would leave a mean of two patients: the four are of those found alone."""
    (one,) = made(dices([0.5, 0.6, 0.7, 0.8], missed=2))
    assert one.points == (GroupPoint(4, 0.65),)
    assert (one.left_out, one.why) == (2, "missed, Dice 0")


def test_a_hospital_whose_mean_is_withheld_has_no_points() -> None:
    both = dices([0.5] * 3) + dices(np.linspace(0.1, 0.9, 9), site="south")
    # South is withheld with north, which would follow from all minus south.
    assert made(both) == []
    assert made(dices([0.5], missed=11)) == []


def sizes(number: int, predicted: float, reference: float) -> list[CaseRow]:
    of = {"structure": "lesion"}
    return [
        case(number, "volume_ml", predicted, **of),
        case(number, "reference_volume_ml", reference, **of),
        case(number, "volume_difference_ml", predicted - reference, **of),
    ]


def test_a_bland_altman_plots_points_are_groups_by_mean_size() -> None:
    """Means of (p + r) / 2 and of p - r over the four smaller and the four larger, by hand."""
    cases = [row for n in range(8) for row in sizes(n, 2.0 * n + 2, 2.0 * n + 1)]
    (one,) = made(cases)
    assert one.points == (GroupPoint(4, 1.0, 4.5), GroupPoint(4, 1.0, 12.0))


@pytest.mark.parametrize(("alone", "drawn"), [(0, True), (1, False), (3, False), (4, True)])
def test_few_missed_sizes_would_follow_from_the_means_over_all(alone: int, drawn: bool) -> None:
    cases = [row for n in range(8) for row in sizes(n, n + 2.0, n + 1.5)]
    cases += [row for n in range(alone) for row in sizes(50 + n, 0.0, n + 1.0)]
    assert bool(made(cases)) == drawn


def test_a_mean_keeps_two_digits() -> None:
    (one,) = made(dices([0.123456, 0.234567, 0.345678, 0.456789]))
    assert one.points == (GroupPoint(4, 0.29),)


def test_risks_are_apart_by_outcome_where_both_are_enough() -> None:
    def risks(events: int, censored: int) -> list[CaseRow]:
        every = [True] * events + [False] * censored
        return [case(n, "risk", float(n), target=10.0 + n, event=event) for n, event in enumerate(every)]

    event, censored = made(risks(4, 5))
    assert (event.outcome, event.points) == ("event", (GroupPoint(4, 1.5),))
    assert (censored.outcome, censored.points) == ("censored", (GroupPoint(5, 6.0),))
    assert made(risks(9, 2)) == []


def test_no_point_of_any_run_is_of_too_few(tmp_path: Path) -> None:
    generator = np.random.default_rng(5)
    for least in (1, 2, 5, 10):
        found = made(dices(generator.random(37), missed=7), least)
        assert all(point.n >= least for one in found for point in one.points)
        assert sum(point.n for one in found for point in one.points) == 37
    path = tmp_path / "groups.jsonl"
    path.write_bytes(b"\n".join(map(msgspec.json.encode, found)))
    assert groups.read(path) == found
    path.write_text("{}")
    with pytest.raises(RunError, match=r"groups\.jsonl: not a file of groups"):
        groups.read(path)

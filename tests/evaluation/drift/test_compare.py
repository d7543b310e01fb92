"""Comparisons: statistics by hand and by scipy, the rate of false alarms by simulation, and shifts found."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import fisher_exact, ks_2samp

from medfed.errors import DataError
from medfed.evaluation.drift.compare import HOPELESS, Level, alarms, compare, group_edges, holm, psi
from medfed.evaluation.drift.sketch import Sketch, Variable, sketch_of

AGE = Variable(name="age", kind="input", grid="number")
SCORE = Variable(name="score", kind="output", grid="share")
SEX = Variable(name="sex", kind="input", grid="words", words=("f", "m", "x"))
ONE_LOOK = Level(alpha=0.05, looks=1)


def numbers(values, variable: Variable = AGE) -> Sketch:
    return sketch_of([variable], [{variable.name: float(value)} for value in values])


def test_psi_by_hand() -> None:
    # (0.3 - 0.1) ln 3 + (0.7 - 0.9) ln (7/9), of so many patients that half a one is nothing.
    expected = 0.2 * np.log(3) - 0.2 * np.log(7 / 9)
    assert psi([100_000, 900_000], [300_000, 700_000]) == pytest.approx(expected, rel=1e-4)
    # By hand, with the halves: 10.5, 0.5 of 11 and 5.5, 5.5 of 11.
    assert psi([10, 0], [5, 5]) == pytest.approx(
        (0.5 - 10.5 / 11) * np.log(0.5 / (10.5 / 11)) + (0.5 - 0.5 / 11) * np.log(11)
    )


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.9]) == [1.0, 1.0]


def test_groups_hold_enough_patients_and_part_no_equal_values() -> None:
    assert len(group_edges(np.arange(100))) == 9
    assert group_edges(np.arange(12)).tolist() == [5.5]
    assert group_edges(np.array([7, 7, 7])).tolist() == [6.5, 7.5]
    assert group_edges(np.array([1] * 90 + [2] * 10)).tolist() == [1.5]


@pytest.mark.parametrize(
    ("variable", "before", "now"),
    [(AGE, 8e-4, 6e-4), (AGE, 8e-10, 6e-10), (AGE, 2.5e11, 1.5e11), (SCORE, 3e-4, 3e-3),
     (SCORE, 0.9997, 0.997)],
    ids=["diffusion in mm2/s", "diffusion in m2/s", "platelets per litre", "a rare class", "a sure class"],
)  # fmt: skip
def test_a_shift_is_seen_in_any_unit_and_of_rare_and_sure_classes(
    variable, before: float, now: float
) -> None:
    near = np.linspace(0.9999, 1.0001, 60)
    old, new = (numbers(1 - (1 - x) * near if x > 0.5 and variable is SCORE else x * near, variable)
                for x in (before, now))  # fmt: skip
    (one,) = compare(old, new, ONE_LOOK)
    assert one.state == "alarm"


def test_numbers_are_tested_by_kolmogorov_and_smirnov() -> None:
    generator = np.random.default_rng(1)
    old, new = generator.uniform(20, 90, 60), generator.uniform(40, 90, 30)
    (one,) = compare(numbers(old), numbers(new), ONE_LOOK)
    # The bins are 0.12 % wide: no two of these values share one, so the p is that of the values themselves.
    assert one.p == pytest.approx(ks_2samp(old, new, method="exact").pvalue)
    assert one.above == pytest.approx((new[:, None] > old[None]).mean(), abs=1e-3)
    assert (one.reference, one.look) == (60, 30)


def test_words_and_missing_values_are_tested_by_fisher() -> None:
    def people(f: int, m: int, x: int, missing: int) -> Sketch:
        words = ["f"] * f + ["m"] * m + ["x"] * x + [None] * missing
        return sketch_of([SEX], [{"sex": one} for one in words])

    missing, words = compare(people(40, 40, 20, 0), people(5, 20, 5, 10), ONE_LOOK)
    assert missing.what == "missing"
    assert missing.p == pytest.approx(fisher_exact([[0, 100], [10, 30]]).pvalue)
    each = [fisher_exact([[a, 100 - a], [b, 30 - b]]).pvalue for a, b in ((40, 5), (40, 20), (20, 5))]
    assert words.p == pytest.approx(3 * min(each))


def test_an_alarm_is_significant_and_large() -> None:
    generator = np.random.default_rng(2)
    (large,) = compare(numbers(generator.normal(50, 5, 200)), numbers(generator.normal(58, 5, 50)), Level())
    assert (large.state, large.p_holm < 0.05 / 12, large.psi > 0.1) == ("alarm", True, True)
    old, new = generator.normal(50, 5, 40_000), generator.normal(50.4, 5, 40_000)
    (small,) = compare(numbers(old), numbers(new), Level())
    assert (small.state, small.psi < 0.1) == ("change", True)
    (same,) = compare(numbers(old[:200]), numbers(old[200:300]), Level())
    assert same.state == "no change"


def test_too_few_patients_are_not_compared() -> None:
    (one,) = compare(numbers(range(1, 50)), numbers([1, 2, 3, 4]), Level())
    assert (one.state, one.p, one.psi) == ("not compared", None, None)


def test_where_not_even_a_complete_change_would_be_an_alarm_nothing_is_said() -> None:
    # Of 5 and 5 patients the least p is 2 / 252 = 0.0079, above 0.05 / 12 and below 0.05.
    old, new = numbers([1.0, 2.0, 3.0, 4.0, 5.0]), numbers([11.0, 12.0, 13.0, 14.0, 15.0])
    (one,) = compare(old, new, Level())
    assert (one.state, one.p, one.note) == ("not compared", None, HOPELESS)
    (one,) = compare(old, new, ONE_LOOK)
    assert (one.state, one.p) == ("alarm", pytest.approx(2 / 252))


def test_a_constant_that_changes_is_found_and_bins_that_are_too_wide_are_told() -> None:
    (one,) = compare(numbers([5.0] * 60), numbers([6.0] * 20), Level())
    assert one.state == "alarm"
    generator = np.random.default_rng(3)
    years = generator.integers(2019, 2026, 80)
    (coarse,) = compare(numbers(years), numbers(years[:20]), Level())
    assert "a small shift goes unseen" in coarse.note


def test_other_variables_are_refused() -> None:
    with pytest.raises(DataError, match="the reference is of other variables than these data"):
        compare(numbers([1.0] * 9), numbers([0.1] * 9, SCORE), Level())


def look(generator: np.random.Generator, patients: int, *, shift: float = 0.0, ill: float = 0.3) -> Sketch:
    """Return a sketch of patients with an age, a score that depends on being ill, and a sex that may lack."""
    people = []
    for _ in range(patients):
        score = generator.beta(8, 2) if generator.random() < ill else generator.beta(2, 8)
        sex = None if generator.random() < 0.1 else str(generator.choice(["f", "m", "x"]))
        people.append({"age": generator.normal(60 + shift, 12), "score": float(score), "sex": sex})
    return sketch_of([AGE, SCORE, SEX], people)


def test_without_a_shift_the_rate_of_false_alarms_is_at_most_the_stated_one() -> None:
    generator = np.random.default_rng(4)
    level, runs = Level(alpha=0.2, looks=2), 80
    false = 0
    for _ in range(runs):
        reference = look(generator, 60)
        false += any(alarms(compare(reference, look(generator, 25), level)) for _ in range(level.looks))
    # A rate of 0.2 gives at most 25 of 80 with probability 0.99 (binomial).
    assert false <= 25


def test_a_shift_of_inputs_and_one_of_prevalence_are_found() -> None:
    generator = np.random.default_rng(5)
    reference = look(generator, 120)
    older = alarms(compare(reference, look(generator, 40, shift=15), Level()))
    assert [one.name for one in older] == ["age"]
    iller = alarms(compare(reference, look(generator, 60, ill=0.75), Level()))
    assert [(one.name, one.kind) for one in iller] == [("score", "output")]
    assert iller[0].above > 0.6

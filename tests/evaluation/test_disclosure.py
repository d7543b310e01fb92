"""No file of a run that may leave holds, or gives, a value of fewer patients than `smallest_group`."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from medfed.evaluation import rows
from medfed.evaluation.aggregate import aggregate
from medfed.evaluation.comparisons import compare
from medfed.evaluation.disclosure import (
    conflict,
    differ_by_few,
    gives_few,
    patients_behind_mean,
    withheld_sites,
)
from medfed.evaluation.metrics.absence import COUNTS
from medfed.evaluation.patients import SummarySettings
from medfed.evaluation.report.page import write_report
from medfed.evaluation.report.run_comparison import write_comparison
from medfed.evaluation.row_transport import scalars_of
from medfed.evaluation.rows import CaseRow
from medfed.evaluation.segmentation import ABSENT, FALSE_POSITIVE, MISSED
from medfed.evaluation.subgroups import OTHERS, subgroups

LEAST = 4
SITES = ("north", "south", "west")
FILES = ("rows.jsonl", "rows.csv", "curves.jsonl", "groups.jsonl", "report.html", "rounds.jsonl")


def settings_of(**changes):
    given_ = {"round": 3, "seed": 0, "held_out": ["west"], "min_patients": LEAST, "draws": 50}
    return SummarySettings(**{**given_, **changes})


def mask(*places, of=20):
    return np.isin(np.arange(of), places)


def test_withheld_sites_by_hand():
    # 2 of north's: with south's 5 they are 7, so that neither follows from all minus east.
    assert withheld_sites({"north": 2, "south": 5, "east": 9, "all": 16}, (), 4) == {"north", "south"}
    # Nobody else can cover them: all of them together are 2, as is the pooled value.
    assert withheld_sites({"north": 2, "all": 2}, (), 4) == {"north", "all"}
    # A hospital that took no part is in no sum; one without such a patient needs no protection.
    assert withheld_sites({"west": 3, "north": 0, "south": 9}, ("west",), 4) == {"west"}


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ([(1, 1)] * 16, 16),
        ([(1, 1)] * 14 + [(1, 0)] * 2, 2),  # 2 T - A - B is the sum of two patients' a
        ([(1, 1)] * 12 + [(1, 0)] * 2 + [(0, 1)] * 2, 16),  # of 2 + 2 patients
        ([(1, 1)] * 3 + [(1, 0)] * 9, 3),  # T - A says (b - a) / 2 of three
        ([(1, 0)] * 6 + [(0, 1)] * 5, 11),
        ([(0, 0)] * 5 + [(1, 1)] * 6, 6),
    ],
)
def test_the_mean_over_structures_gives_the_patients_who_lack_one(patterns, expected):
    assert patients_behind_mean(np.array(patterns).T, LEAST) == expected


def test_combinations_of_groups_give_few_where_the_rank_says_so():
    """Against the rank of the groups with one more row, over groups that were drawn by chance."""
    generator, found = np.random.default_rng(0), set()
    for _ in range(60):
        groups = generator.random((4, 9)) < 0.5
        patterns, sizes = np.unique(groups[:, groups.any(axis=0)], axis=1, return_counts=True)
        rank = np.linalg.matrix_rank(patterns.astype(float))
        alone = np.eye(patterns.shape[1])[sizes < 2]
        ranks = [np.linalg.matrix_rank(np.vstack([patterns, row]).astype(float)) for row in alone]
        expected = any(one == rank for one in ranks)
        assert gives_few(groups, 2) == expected
        found.add(expected)
    assert found == {True, False}
    assert not gives_few(np.zeros((2, 5), bool), 2)


def test_nested_groups_conflict():
    everyone = mask(*range(20))
    ten = mask(*range(10))
    assert not conflict(ten, [], everyone, LEAST)
    assert conflict(mask(*range(12)), [ten], everyone, LEAST)  # two more patients
    assert not conflict(mask(*range(14)), [ten], everyone, LEAST)
    assert not conflict(ten, [ten], everyone, LEAST)  # the same group twice says nothing new
    assert conflict(mask(*range(11, 20)), [ten], everyone, LEAST)  # all minus both is patient 10
    # Three groups that overlap pairwise in enough, of which the sum is everyone, patient 19 twice.
    first, second = mask(*range(7), 19), mask(*range(7, 14), 19)
    assert conflict(mask(*range(14, 20)), [first, second], everyone, LEAST)


def test_lesions_in_two_of_twelve_patients_stay():
    """The two Dice were sent to the last digit, as the ends of an interval over two."""
    values = [0.9222032935831914, 0.4492988133764833] + [None] * 10
    cases = [case("federated", "west", i, "dice", v, "lesion") for i, v in enumerate(values)]
    measured = {row.metric: row for row in aggregate(cases, settings_of(held_out=()))}
    assert (measured["dice"].value, measured["dice"].low, measured["dice"].n) == (None, None, None)
    assert "fewer than 4 patients" in measured["dice"].note
    assert (measured["absent"].value, measured["absent"].n) == (10, 12)
    assert not any("dice" in name for name in scalars_of(measured.values()))


def case(model, site, number, metric, value, structure, attributes=None, split="test", **more):
    note = ABSENT if value is None and metric == "dice" else None
    who = f"{site}-{split}-{number}"
    return CaseRow(
        model=model, site=site, split=split, case=who, patient=who, metric=metric, value=value,
        structure=structure, note=note, attributes=attributes or {}, **more,
    )  # fmt: skip


def segmentations(seed, presence, miss=0.0):
    """Case rows of two structures, present in some of the patients, of two models at three hospitals.

    `miss` is the share of patients in whom the local model misses a structure; the federated one misses half.
    """
    generator = np.random.default_rng(seed)
    result = []
    for site in SITES:
        for number in range(int(generator.integers(1, 13))):
            about = {"sex": str(generator.choice(["F", "M"])), "scanner": str(generator.choice(["A", "B"]))}
            present = {name: generator.random() < presence for name in ("liver", "lesion")}
            for model in ("federated", "local:north"):
                for name in present:
                    known = present[name] or generator.random() < 0.1
                    values = {
                        "dice": float(generator.random()) if known else None,
                        "hd95_mm": float(generator.random() * 30) if present[name] else None,
                        "volume_difference_ml": float(generator.normal()),
                    }
                    missed = generator.random() < (miss if model != "federated" else miss / 2)
                    for metric, value in values.items():
                        row = case(model, site, number, metric, value, name, about)
                        if missed and present[name]:
                            gone = 0.0 if metric == "dice" else None if metric == "hd95_mm" else value
                            row = msgspec.structs.replace(row, value=gone, note=MISSED)
                        result.append(row)
    return result


def classifications(seed, prevalence):
    """Case rows of two classes, of two models at three hospitals."""
    generator = np.random.default_rng(seed)
    result = []
    for site, split in itertools.product(SITES, ("val", "test")):
        for number in range(int(generator.integers(1, 15))):
            positive = generator.random() < prevalence
            about = {"sex": str(generator.choice(["F", "M"]))}
            for model in ("federated", "local:north"):
                p = float(generator.random())
                for name, chance, hit in (("no", 1 - p, not positive), ("yes", p, positive)):
                    more = {"target": float(hit), "split": split}
                    result.append(case(model, site, number, "probability", chance, name, about, **more))
    return result


def written(folder: Path, cases, classes) -> dict[str, str]:
    """Return the text of every file that may leave, and of what each site sends, made from these cases.

    A second run, whose federated model is the first one's local model, is compared with the first.
    """
    first, second = folder / "first", folder / "second"
    other = [one for one in cases if one.model == "local:north"]
    files = run_files(first, cases, classes)
    run_files(second, [msgspec.structs.replace(one, model="federated") for one in other], classes)
    write_comparison([first, second], folder / "compared")
    files |= {path.name: path.read_text() for path in sorted((folder / "compared").iterdir())}
    for site in SITES:
        own = [one for one in cases if one.site == site]
        rows_of_site = aggregate(own, settings_of(classes=classes, draws=50))
        files[f"what {site} sends"] = repr(scalars_of(rows_of_site))
    return files


def run_files(run: Path, cases, classes) -> dict[str, str]:
    run.mkdir(exist_ok=True)
    for name in FILES:
        (run / name).unlink(missing_ok=True)
    rows.write(run / "cases.jsonl", cases)
    task = {"kind": "segment" if classes == ["liver", "lesion"] else "classify", "classes": classes}
    facts = {"task": task["kind"], "classes": classes, "sites": ["north", "south"], "held_out": ["west"]}
    (run / "run.json").write_text(json.dumps(facts))
    study = {"task": task, "evaluation": {"draws": 50, "smallest_group": LEAST}}
    (run / "study.yaml").write_text(json.dumps(study))
    write_report(run)
    return {name: (run / name).read_text() for name in FILES if (run / name).exists()}


def numbers_in(text: str) -> np.ndarray:
    """Return the numbers of a text that have four digits or more after the point."""
    return np.array([float(one) for one in re.findall(r"-?\d+\.\d{4,}(?:e-?\d+)?", text)])


def single_values(cases) -> np.ndarray:
    """Return the values of single patients, and the differences of two models on one patient."""
    by_patient: dict[tuple, dict[str, float]] = {}
    for one in cases:
        if one.value is not None and one.value not in (0.0, 1.0):
            by_patient.setdefault((one.site, one.patient, one.metric, one.structure), {})[one.model] = (
                one.value
            )
    values = [value for own in by_patient.values() for value in own.values()]
    values += [a - b for own in by_patient.values() for a, b in itertools.permutations(own.values(), 2)]
    return np.array(values)


def assert_no_single_patient(files: dict[str, str], cases) -> None:
    private = np.sort(single_values(cases))
    for name, text in files.items():
        for number in numbers_in(text):
            place = np.searchsorted(private, number)
            near = private[max(place - 1, 0) : place + 1]
            where = text.find(f"{number!r}")
            shown = f"{name} holds a single patient's value: {text[max(where - 200, 0) : where + 50]}"
            assert not (np.abs(near - number) < 1e-9).any(), shown


# A failure names its seed, so nothing has to be shrunk.
QUICK = settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
SEEDS = st.integers(0, 2**32)
PRESENCE = st.sampled_from((0.1, 0.3, 0.6, 0.9, 1.0))


@pytest.mark.slow
@QUICK
@given(seed=SEEDS, presence=PRESENCE)
def test_no_file_of_a_segmentation_holds_a_single_patients_value(tmp_path, seed, presence):
    cases = segmentations(seed, presence)
    assert_no_single_patient(written(tmp_path, cases, ["liver", "lesion"]), cases)


@pytest.mark.slow
@QUICK
@given(seed=SEEDS, presence=PRESENCE)
def test_no_file_of_a_classification_holds_a_single_patients_value(tmp_path, seed, presence):
    cases = classifications(seed, presence / 2)
    assert_no_single_patient(written(tmp_path, cases, ["no", "yes"]), cases)


def sums(cases, shown, patients):
    """Return each shown mean or difference as the patients' coefficients in its sum, by metric."""
    values = {(c.model, c.site, c.patient, c.structure): c.value for c in cases if c.metric == "dice"}
    about = {(c.site, c.patient): c.attributes for c in cases}
    place = {who: number for number, who in enumerate(patients)}
    for row in shown:
        if row.metric != "dice" or row.value is None:
            continue
        members = [w for w in patients if w[0] == row.site or (row.site == "all" and w[0] != "west")]
        if row.against == OTHERS:
            continue  # the group's mean minus that of its complement, both of which follow from the others
        if row.group is not None:
            attribute, _, group = row.group.partition("=")
            members = [who for who in members if about[who][attribute] == group]
        coefficients = np.zeros((2, 2, len(patients)))
        for site, patient in members:
            for model, sign in ((row.model, 1.0), (row.against, -1.0)):
                if model is None:
                    continue
                known = {
                    structure: values.get((model, site, patient, structure)) is not None
                    for structure in ("liver", "lesion")
                }
                for number, structure in enumerate(known):
                    # The counts of missed structures are shown: those values are 0, and in no sum.
                    counted = values.get((model, site, patient, structure)) != 0.0
                    if known[structure] and counted and row.structure in (None, structure):
                        weight = 1.0 if row.structure else 1.0 / sum(known.values())
                        which = ("federated", "local:north").index(model)
                        coefficients[which, number, place[site, patient]] = sign * weight
        yield coefficients.ravel()


@settings(QUICK, max_examples=40)
@given(seed=SEEDS, presence=PRESENCE, miss=st.sampled_from((0.0, 0.3, 0.7, 0.95)))
def test_no_patients_dice_follows_from_the_rows_by_any_sum_or_difference(seed, presence, miss):
    """Solve for every patient: no combination of the shown means and differences leaves one value."""
    cases = [one for one in segmentations(seed, presence, miss) if one.metric == "dice"]
    # Where one model alone is right to find nothing, its pair is a known 1, which says nothing of a patient.
    known = {(c.site, c.patient, c.structure) for c in cases if c.value is None}
    cases = [c for c in cases if (c.site, c.patient, c.structure) not in known] + [
        msgspec.structs.replace(c, value=None, note=ABSENT)
        for c in cases
        if (c.site, c.patient, c.structure) in known
    ]
    everyone = sorted({(c.site, c.patient) for c in cases})
    shown = aggregate(cases, settings_of()) + compare(cases, settings_of())
    shown += subgroups(cases, settings_of())
    table = np.array(list(sums(cases, shown, everyone)))
    if not len(table):
        return
    rank = np.linalg.matrix_rank(table, 1e-9)
    size = len(everyone)
    for number in range(4 * size):
        alone = np.zeros((1, 4 * size))
        alone[0, number] = 1.0
        if table[:, number].any():
            assert np.linalg.matrix_rank(np.vstack([table, alone]), 1e-9) > rank, everyone[number % size]


def sizes(number, predicted, reference, model="federated"):
    """One patient's volumes in ml, and the overlap's row with the note of an absence."""
    note = {(0, 0): ABSENT, (0, 1): MISSED, (1, 0): FALSE_POSITIVE}.get((predicted > 0, reference > 0))
    values = {
        "dice": None if note == ABSENT else 0.0 if note else 0.5 + number / 100,
        "volume_ml": predicted,
        "reference_volume_ml": reference,
        "volume_difference_ml": predicted - reference,
    }
    rows_of = [case(model, "west", number, name, value, "lesion") for name, value in values.items()]
    return [msgspec.structs.replace(rows_of[0], note=note), *rows_of[1:]]


def shown_of(cases):
    return {(row.model, row.metric): row for row in aggregate(cases, settings_of(held_out=()))}


SIZES = ("volume_ml", "volume_difference_ml", "volume_limit_low_ml", "volume_limit_high_ml")


def test_a_mean_beside_the_count_of_missed_is_of_the_others_alone():
    """Eleven of twelve missed: twelve times the mean Dice is the twelfth patient's, and so is the volume."""
    cases = [row for i in range(12) for row in sizes(i, 0.0 if i < 11 else 3.3, 1.0 + i / 10)]
    local = [row for i in range(12) for row in sizes(i, 2.0 + i / 7, 1.0 + i / 10, "local:north")]
    rows_shown = shown_of(cases + local)
    for name in ("dice", *SIZES):
        assert rows_shown["federated", name].value is None, name
        assert "fewer than 4 patients in whom it is not 0" in rows_shown["federated", name].note
        assert rows_shown["local:north", name].value is not None, name
    assert rows_shown["federated", "missed"].value == 11
    # The reference is the same for both models, and of all twelve.
    assert rows_shown["federated", "reference_volume_ml"].value == pytest.approx(1.55)
    # A difference of the models would give it beside the local model's mean.
    differences = [row for row in compare(cases + local, settings_of(held_out=())) if row.metric == "dice"]
    assert not differences


def test_a_volume_beside_the_count_of_absent_is_of_those_who_have_it():
    """Two of twelve have it: twelve times the mean reference volume is the sum of two patients'."""
    cases = [row for i in range(12) for row in sizes(i, 2.0 + i / 7, 1.0 + i / 3 if i < 2 else 0.0)]
    rows_shown = shown_of(cases)
    assert rows_shown["federated", "reference_volume_ml"].value is None
    assert rows_shown["federated", "volume_difference_ml"].value is None
    assert rows_shown["federated", "volume_ml"].value is not None


def test_missed_in_all_is_a_mean_of_0():
    cases = [row for i in range(12) for row in sizes(i, 0.0, 1.0 + i / 10)]
    assert shown_of(cases)["federated", "dice"].value == 0.0


def test_counts_are_over_all_patients_and_are_shown():
    cases = [case("federated", "west", i, "dice", 0.5 if i else 0.0, "lesion") for i in range(8)]
    cases[0] = msgspec.structs.replace(cases[0], note="missed")
    counted = {row.metric: row for row in aggregate(cases, settings_of(held_out=()))}
    assert (counted["missed"].value, counted["missed"].n) == (1.0, 8)
    assert set(COUNTS) <= set(counted)


def test_sums_of_patients_who_hardly_differ_give_the_others():
    first = frozenset("abcdefgh")
    assert not differ_by_few(first, [first], 3)
    assert not differ_by_few(first, [], 3)
    assert differ_by_few(first | {"i"}, [first], 3)
    assert differ_by_few(first - {"a"}, [first], 3)
    assert not differ_by_few(first | {*"ijk"}, [first], 3)
    # (A and B) + (A and C) - (A, B and C) is the sum over A, who are two.
    assert differ_by_few(frozenset("abwxyzijkl"), [frozenset("abwxyz"), frozenset("abijkl")], 4)
    assert not differ_by_few(frozenset("abwxyzijkl"), [frozenset("abwxyz")], 4)
    assert not differ_by_few(frozenset("xyzijk"), [frozenset("abcdefgh")], 3)
    # What the earlier ones gave already, of i, is not given by others once more; of j it is.
    given = [first, first | {"i"}]
    assert not differ_by_few(frozenset("uvwxyz"), given, 3)
    assert differ_by_few(first | {*"ij"}, given, 3)
    assert differ_by_few(frozenset("abcuvwxyz"), [*given, frozenset("uvwxyzdefgh")], 4)


def distance(number: int, value: float | None, note: str | None = None):
    row = case("federated", "west", number, "hd95_mm", value, "lesion")
    return msgspec.structs.replace(row, note=note)


@pytest.mark.parametrize(("patients", "shown"), [(4, True), (5, False), (6, False), (7, True)])
def test_the_middle_of_a_median_beside_the_mean_is_of_nobody_alone(patients, shown):
    """Of six, six times the mean minus four times the middle four's is the sum of the other two."""
    cases = [distance(number, 1.0 + number**2 / 7) for number in range(patients)]
    rows = {row.metric: row for row in aggregate(cases, settings_of(held_out=()))}
    assert rows["hd95_mm"].value is not None
    assert (rows["hd95_median_mm"].value is not None) == shown
    assert shown or rows["hd95_median_mm"].is_suppressed


def test_a_missed_structure_is_outside_of_the_middle_without_a_value():
    cases = [distance(number, 1.0 + number**2 / 7) for number in range(8)]
    cases[7] = distance(7, None, "missed")
    rows = {row.metric: row for row in aggregate(cases, settings_of(held_out=()))}
    assert rows["hd95_median_mm"].is_suppressed

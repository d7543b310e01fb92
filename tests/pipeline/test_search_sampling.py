"""What a search proposes and stops: settings as they will be read, repeatable draws, and ASHA by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest
import yaml

from medfed.errors import StudyError
from medfed.pipeline import search_sampling
from medfed.pipeline.search_sampling import Proposal, Stopped, own_values, propose, require_optuna
from medfed.runs.facts import SearchFacts, TrialFacts
from medfed.study.reading import read_study
from medfed.study.search import Range, Search
from medfed.study.study import Study

from .two_tables import write_tables

pytest.importorskip("optuna", reason='optuna is not installed: pip install "medfed[search]"')

LR = "train.optimiser.lr"
SPACE = {LR: Range(low=0.0001, high=1.0, log=True), "train.batch": (4, 10)}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tables(tmp_path_factory.mktemp("sampling"))


@pytest.fixture(scope="module")
def study(file: Path) -> Study:
    return read_study(file, ["train.rounds=6"])


def record(trials: Sequence[TrialFacts] = (), better: Literal["higher", "lower"] = "higher") -> SearchFacts:
    return SearchFacts(
        digest="",
        score="val/x",
        better=better,
        space={},
        budget=99,
        least=1,
        reduction=2,
        trials=list(trials),
    )


def proposed(
    space: dict[str, Any], study: Study, trials: Sequence[TrialFacts] = (), number: int = 0
) -> Proposal:
    return propose(Search(space=space, rounds=99), record(trials), study, number)


def tried(
    proposal: Proposal, score: float | None, state: Literal["finished", "stopped", "failed"]
) -> TrialFacts:
    return TrialFacts(
        overrides=list(proposal.overrides),
        values=dict(proposal.values),
        state=state,
        rounds=1,
        scores={} if score is None else {1: score},
        score=score,
        rungs=proposal.rungs(),
    )


def read(override: str) -> Any:
    return yaml.safe_load(override.partition("=")[2])


def drawn(space: dict[str, Any], study: Study, number: int) -> Proposal:
    """Return a proposal that is no study's own: one trial, which failed, is on the record."""
    failed = tried(proposed(space, study), None, "failed")
    return proposed(space, study, [failed], number)


def test_the_first_trial_is_the_studys_own_with_every_digit(study: Study) -> None:
    assert proposed(SPACE, study).overrides == (f"{LR}=0.5", "train.batch=10")
    own = msgspec.structs.replace(study, train=msgspec.structs.replace(study.train, clip=0.99996))
    proposal = proposed({"train.clip": Range(low=0.5, high=0.99999)}, own)
    assert proposal.overrides == ("train.clip=0.99996",)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (Range(low=0.1, high=0.5), {LR: 0.5}),  # its ends are in it
        (Range(low=0.6, high=0.9), {}),
        (Range(low=1, high=3), {}),
        ((0.1, 0.5), {LR: 1}),
        ((0.1, 0.2), {}),
    ],
)
def test_own_values_are_those_that_the_space_has(study: Study, values: Any, expected: dict[str, Any]) -> None:
    assert own_values(Search(space={LR: values}, rounds=9), study) == expected


def test_a_whole_number_is_the_studys_own_however_it_is_written(file: Path) -> None:
    study = read_study(file, ["train.clip=2"])  # a float in the record
    assert own_values(Search(space={"train.clip": (1, 2)}, rounds=9), study) == {"train.clip": 1}
    assert own_values(Search(space={"train.clip": Range(low=1, high=8)}, rounds=9), study) == {
        "train.clip": 2
    }
    hidden = read_study(file, ["network.hidden=[4, 2]"])
    assert own_values(Search(space={"network.hidden": ([], [4, 2])}, rounds=9), hidden) == {
        "network.hidden": 1
    }
    assert own_values(Search(space={"train.none": (1, 2)}, rounds=9), study) == {}


@pytest.mark.parametrize(
    "values",
    [
        (0.123456, 0.123457),  # four digits would make one of them
        (0.99991, 0.99999),
        (1e-13, 1e-7),
        ([1e-7, 2], [0.5, 3]),
        ({"kind": "sgd", "lr": 1e-8}, {"kind": "sgd", "lr": 0.3}),
        ("a", None),
        (True, False),
        (1e22, 3.0),
    ],
)
def test_each_value_of_a_list_is_read_as_it_is_written(study: Study, values: tuple[Any, ...]) -> None:
    found = {}
    for number in range(1, 30):
        proposal = drawn({"train.x": values}, study, number)
        found[int(proposal.values["train.x"])] = read(proposal.overrides[0])
    assert found == dict(enumerate(values))


@pytest.mark.parametrize(
    "values",
    [
        Range(low=0.33333, high=0.33337),
        Range(low=0.99991, high=0.99999),
        Range(low=1e-13, high=1e-12, log=True),
    ],
)
def test_a_drawn_number_is_within_its_range_and_can_be_on_the_record(study: Study, values: Range) -> None:
    trials: list[TrialFacts] = []
    for number in range(6):
        proposal = proposed({"train.x": values}, study, trials, number)
        assert values.low <= read(proposal.overrides[0]) <= values.high
        assert read(proposal.overrides[0]) == proposal.values["train.x"]
        trials.append(tried(proposal, 0.5, "finished"))


def test_whole_ranges_draw_whole_numbers_and_others_four_digits(study: Study) -> None:
    space = {"train.batch": Range(low=2, high=64), LR: SPACE[LR]}
    for number in range(1, 9):
        batch, rate = (read(text) for text in drawn(space, study, number).overrides)
        assert isinstance(batch, int)
        assert float(f"{rate:.4g}") == rate


def test_draws_depend_on_the_seed_and_the_trials_number_alone(study: Study) -> None:
    one = drawn(SPACE, study, 1).overrides
    assert one == drawn(SPACE, study, 1).overrides
    assert one != drawn(SPACE, study, 2).overrides
    assert one != drawn(SPACE, msgspec.structs.replace(study, seed=4), 1).overrides


def test_a_seed_as_long_as_a_date_is_one(study: Study) -> None:
    """numpy takes seeds below 2**32, and 20261130 * 1,000,003 is above."""
    assert drawn(SPACE, msgspec.structs.replace(study, seed=20261130), 1).overrides


def comes_past(proposal: Proposal, step: int) -> bool:
    try:
        proposal.check(step)
    except Stopped:
        return False
    return True


@pytest.mark.parametrize("better", ["higher", "lower"])
def test_a_trial_goes_on_if_it_is_in_the_best_half_that_came_as_far(
    study: Study, better: Literal["higher", "lower"]
) -> None:
    """By hand: of n scores at the rung the best max(1, n // 2) go on, and who equals the last of them."""
    trials: list[TrialFacts] = []
    goes_on = []
    for number, score in enumerate((0.5, 0.4, 0.5, 0.45, 0.9, 0.5)):
        proposal = propose(Search(space=SPACE, rounds=99), record(trials, better), study, number)
        score = score if better == "higher" else 1 - score
        proposal.report(score, 1)
        goes_on.append(comes_past(proposal, 1))
        trials.append(tried(proposal, score, "finished" if goes_on[-1] else "stopped"))
    assert goes_on == [True, False, True, False, True, True]
    assert [list(trial.rungs.values()) for trial in trials[:1]] == [[0.5]]


def test_no_trial_is_stopped_after_half_of_its_rounds(study: Study) -> None:
    best = proposed(SPACE, study)
    best.report(0.9, 1)
    best.check(1)
    best.report(0.9, 2)
    best.check(2)
    best.report(0.9, 4)
    best.check(4)
    worse = proposed(SPACE, study, [tried(best, 0.9, "finished")], 1)
    worse.report(0.1, 4)
    worse.check(4)  # 4 of 6
    with pytest.raises(Stopped, match="after round 3 it was not among the best"):
        worse.check(3)


def test_failed_and_repeated_trials_are_on_the_record_without_a_score(study: Study) -> None:
    first = proposed(SPACE, study)
    trials = [tried(first, None, "failed"), tried(first, 0.5, "finished")]
    trials.append(msgspec.structs.replace(trials[1], repeats=1))
    known = proposed(SPACE, study, trials, 3).trial.study.trials
    assert [(one.state.name, one.values) for one in known] == [
        ("FAIL", None),
        ("COMPLETE", [0.5]),
        ("RUNNING", None),
    ]


def test_the_package_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    require_optuna()
    monkeypatch.setattr(search_sampling, "find_spec", lambda name: None)
    with pytest.raises(StudyError, match=r'pip install "medfed\[search\]"'):
        require_optuna()

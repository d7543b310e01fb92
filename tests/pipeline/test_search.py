"""`medfed train --search`: what is tried, stopped and chosen, and that no test patient matters."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from medfed.cli import main
from medfed.errors import RunError, StudyError
from medfed.pipeline.search import best_trial, search, searchable
from medfed.pipeline.train import train
from medfed.registry import kinds
from medfed.runs.facts import SearchFacts, TrialFacts
from medfed.runs.folder import RunFolder
from medfed.runs.progress import Progress
from medfed.runs.rounds import read_rounds
from medfed.study.canonical import public_yaml, study_digest
from medfed.study.reading import read_study

pytest.importorskip("optuna", reason='optuna is not installed: pip install "medfed[search]"')

ROUNDS, BUDGET, LEAST, REDUCTION = 6, 30, 1, 2

STUDY = f"""\
name: searched
seed: 3
task: {{kind: tabular, classes: [healthy, ill]}}
network: {{kind: fully_connected, hidden: [4]}}
data: {{kind: table, features: [a, b], target: ill, standardise: none}}
train: {{rounds: {ROUNDS}, batch: 8, optimiser: {{kind: sgd, lr: 0.003}}}}
evaluation: {{draws: 20, smallest_group: 1, local_models: false, pooled_model: false, robustness: false}}
sites: {{north: north.csv, south: south.csv}}
search:
  space:
    train.optimiser.lr: {{low: 0.0001, high: 1.0, log: true}}
    train.batch: [4, 8]
  rounds: {BUDGET}
  least: {LEAST}
  reduction: {REDUCTION}
"""


def write(folder: Path, text: str = STUDY, *, others: bool = False) -> Path:
    """Write the study with its tables; with `others`, the test patients are other patients."""
    folder.mkdir(exist_ok=True)
    for number, site in enumerate(("north", "south")):
        lines, drawn = ["patient,a,b,ill,split"], np.random.default_rng(number)
        for row in range(40):
            a, b = drawn.normal(size=2).round(3)
            answer = int(a - b + drawn.normal() > 0)
            split = ("train", "val", "train", "test")[row % 4]
            if others and split == "test":
                a, b, answer = 1000.0 * (row + 1), -7.0, 1 - answer
            lines.append(f"{site}{row},{a},{-20 * b},{answer},{split}")
        (folder / f"{site}.csv").write_text("\n".join(lines) + "\n")
    (folder / "study.yaml").write_text(text)
    return folder / "study.yaml"


class Interrupted(Progress):
    """Is interrupted in the third trial."""

    def __init__(self) -> None:
        super().__init__()
        self.trial = ""

    def log(self, text: str) -> None:
        self.trial = text if text.startswith("trial ") else self.trial

    def round(self, report: object) -> None:
        if self.trial.startswith("trial 3: train"):
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("search"))


@pytest.fixture(scope="module")
def done(file: Path) -> RunFolder:
    """A search that was interrupted in its third trial, and resumed."""
    out = file.parent / "out"
    with pytest.raises(KeyboardInterrupt):
        search(file, out=out, progress=Interrupted())
    assert len(record_of(out).trials) == 2
    return search(file, out=out, resume=True, progress=Progress())


def record_of(folder: Path) -> SearchFacts:
    return msgspec.json.decode((folder / "search.json").read_bytes(), type=SearchFacts)


def without_times(record: SearchFacts) -> SearchFacts:
    return msgspec.structs.replace(
        record, trials=[msgspec.structs.replace(trial, seconds=0.0) for trial in record.trials]
    )


def weights(run: RunFolder) -> list[float]:
    state = torch.load(run.checkpoint("federated"), weights_only=True)["state_dict"]
    return [float(value) for _, tensor in sorted(state.items()) for value in tensor.flatten()]


@pytest.mark.slow
def test_other_test_patients_change_nothing_that_is_tried_or_chosen_nor_does_an_interruption(
    done: RunFolder, tmp_path: Path
) -> None:
    """The independent path: the same search, not interrupted, where each test patient is another one."""
    other = search(write(tmp_path / "others", others=True), out=tmp_path / "out", progress=Progress())
    one, two = (without_times(record_of(run.path.parent)) for run in (done, other))
    assert one == two
    assert weights(done) == weights(other)


@pytest.mark.slow
def test_a_trials_scores_are_those_of_the_study_under_its_settings(done: RunFolder, file: Path) -> None:
    """The independent path: the study trained as any, whose hospitals' scores are in rounds.jsonl."""
    record = record_of(done.path.parent)
    first = record.trials[0]
    assert first.overrides == ["train.optimiser.lr=0.003", "train.batch=8"]  # the study's own
    alone = train(file, out=file.parent / "alone", progress=Progress())
    lines = read_rounds(alone.rounds)
    expected = {}
    for step in range(1, ROUNDS + 1):  # a model's scores come with the next round's updates
        scores = [line.scalars["val/auroc"] for line in lines if line.round == step + 1]
        expected[step] = pytest.approx(np.mean(scores), abs=1e-12)
    assert first.scores == expected
    assert (first.state, first.rounds, first.score) == ("finished", ROUNDS, expected[ROUNDS])


@pytest.mark.slow
def test_a_trial_goes_on_past_a_rung_if_it_is_in_the_best_half_of_those_that_came_there(
    done: RunFolder,
) -> None:
    """ASHA by hand: of n trials that have come to a rung, the best n // reduction, at least one, go on."""
    record = record_of(done.path.parent)
    came: dict[int, list[float]] = {1: [], 2: []}  # the rungs up to half of the six rounds
    states = set()
    for trial in (one for one in record.trials if one.repeats is None):
        stopped_at = None
        for rung, scores in came.items():
            if rung not in trial.scores:
                continue
            scores.append(trial.scores[rung])
            most = sorted(scores, reverse=True)[: max(1, len(scores) // REDUCTION)]
            if trial.scores[rung] < most[-1]:
                stopped_at = rung
                break
        if "budget" in trial.why:
            continue
        assert (trial.state == "stopped") == (stopped_at is not None)
        assert trial.rounds == (ROUNDS if stopped_at is None else stopped_at + 1)
        states.add(trial.state)
    assert states == {"finished", "stopped"}
    assert record.spent == sum(trial.rounds for trial in record.trials) <= BUDGET


@pytest.mark.slow
def test_the_chosen_settings_are_trained_and_reported_as_any_study(
    done: RunFolder, file: Path, tmp_path: Path
) -> None:
    record = record_of(done.path.parent)
    best = max(trial.score or 0 for trial in record.trials if trial.state == "finished")
    chosen = record.trials[record.chosen or 0]
    assert chosen.score == best
    alone = train(file, out=tmp_path / "run", overrides=chosen.overrides, progress=Progress())
    assert weights(done) == weights(alone)
    page = done.report.read_text()
    assert "Search for settings" in page
    assert f"in a search of {record.spent} rounds" in page
    assert "No test patient took part in it." in page
    assert done.read_facts().search == record
    assert not list((done.path.parent / "trials").glob("*/checkpoints"))


def test_the_search_is_no_part_of_what_hospitals_agree_to(file: Path) -> None:
    study = read_study(file)
    assert study_digest(study) == study_digest(msgspec.structs.replace(study, search=None))
    assert "\nsearch:" not in public_yaml(study)


@pytest.mark.slow
def test_settings_that_cannot_be_trained_are_a_failed_trial_and_repeats_cost_nothing(tmp_path: Path) -> None:
    text = STUDY.replace("train.batch: [4, 8]", "network.hidden: [[], [0]]").replace(
        "    train.optimiser.lr: {low: 0.0001, high: 1.0, log: true}\n", ""
    )
    text = text.replace("hidden: [4]", "hidden: []")
    out = tmp_path / "out"
    search(write(tmp_path / "study", text), out=out, progress=Progress())
    record = record_of(out)
    trained = [trial for trial in record.trials if trial.repeats is None]
    assert [(one.overrides, one.state) for one in trained] == [
        (["network.hidden=[]"], "finished"),
        (["network.hidden=[0]"], "failed"),
    ]
    assert trained[1].why
    assert record.spent == ROUNDS
    text = text.replace("[[], [0]]", "[[0], [-1]]")
    with pytest.raises(StudyError, match=r"none of [0-9]+ trials came to a score; the first: "):
        search(write(tmp_path / "bad", text), out=tmp_path / "none", progress=Progress())


def test_the_best_is_of_those_that_ended_and_the_earlier_of_equals() -> None:
    def trial(state: str, score: float | None) -> TrialFacts:
        return TrialFacts(overrides=[], values={}, state=state, rounds=1, score=score)  # type: ignore[arg-type]

    trials = [trial("stopped", 0.1), trial("finished", 0.3), trial("finished", 0.2), trial("finished", 0.2)]
    record = SearchFacts(
        digest="", score="val/x", better="lower", space={}, budget=9, least=1, reduction=2, trials=trials
    )
    assert best_trial(record) == 2
    assert best_trial(msgspec.structs.replace(record, better="higher")) == 1
    assert best_trial(msgspec.structs.replace(record, trials=trials[:1])) is None


def test_a_search_that_makes_no_sense_is_refused_when_the_study_is_read(file: Path) -> None:
    """Each refusal is in tests/study/test_search.py."""
    with pytest.raises(StudyError, match=r"5 rounds are fewer than one trial's 6 \(train.rounds\)"):
        read_study(file, ["search.rounds=5"])


@pytest.mark.slow
def test_what_cannot_be_searched_is_refused(file: Path, done: RunFolder) -> None:
    study = read_study(file)
    with pytest.raises(StudyError, match="declares no search; add search:"):
        searchable(msgspec.structs.replace(study, search=None))
    private = msgspec.structs.replace(study, privacy=kinds("privacy")["secure_sum"]())
    with pytest.raises(StudyError, match=r"each training tells more .* 'secure_sum' counts; in a simulation"):
        searchable(private)
    with pytest.raises(RunError, match=r"search.json: holds a search of other settings"):
        search(file, out=done.path.parent, overrides=["search.rounds=80"], resume=True, progress=Progress())
    with pytest.raises(RunError, match="continue with --resume"):
        search(file, out=done.path.parent, progress=Progress())
    asked = CliRunner().invoke(main, ["train", str(file), "--search", "--without", "north"])
    assert "train --search: name a study file, without --site" in asked.output
    asked = CliRunner().invoke(main, ["train", str(file), "--search", "--folds", "2"])
    assert "--folds and --search: give one of them at a time" in asked.output

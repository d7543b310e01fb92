"""`evaluation.seeds`: the same federation by other seeds, and what may be changed when a run is resumed."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
import torch

from medfed.errors import StudyError
from medfed.evaluation.rows import read_cases, read_rows
from medfed.pipeline import train as run
from medfed.pipeline.experiments.seeds import studies_of_seeds
from medfed.registry import kinds
from medfed.runs.folder import RunFolder
from medfed.runs.provenance import merges_of
from medfed.study.canonical import study_digest
from medfed.study.reading import read_study

from ..two_tables import write_tables


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tables(tmp_path_factory.mktemp("seeds"))


@pytest.fixture(scope="module")
def done(study: Path) -> RunFolder:
    """A run that was resumed with two more seeds and a model of pooled cases."""
    folder = run.train(study, out=study.parent / "run")
    first = weights(folder, "federated")
    more = ["evaluation.seeds=3", "evaluation.pooled_model=true"]
    run.train(study, out=folder.path, overrides=more, resume=True)
    assert weights(folder, "federated") == first
    return folder


def weights(folder: RunFolder, model: str) -> list[float]:
    state = torch.load(folder.checkpoint(model), weights_only=True)["state_dict"]
    return [float(value) for _, tensor in sorted(state.items()) for value in tensor.flatten()]


def test_comparisons_are_added_when_a_run_is_resumed_and_dropped_again(done: RunFolder, study: Path) -> None:
    models = {case.model for case in read_cases(done.cases)}
    assert models == {"federated", "untrained", "pooled", "seed:4", "seed:5"}
    run.train(study, out=done.path, resume=True)
    assert {case.model for case in read_cases(done.cases)} == {"federated", "untrained"}
    run.train(study, out=done.path, overrides=["evaluation.seeds=3"], resume=True)  # as the fixture says


def test_a_seeds_model_is_that_of_a_study_with_this_seed(
    done: RunFolder, study: Path, tmp_path: Path
) -> None:
    """The independent path: somebody sets the seed in the file; given splits do not depend on it."""
    alone = run.train(study, out=tmp_path / "run", overrides=["seed=4"])
    assert weights(done, "seed:4") == weights(alone, "federated")
    assert weights(done, "seed:4") != weights(done, "federated")


def test_the_report_has_each_seed_and_the_spread_and_no_test_against_them(done: RunFolder) -> None:
    rows = read_rows(done.rows)
    assert not [row for row in rows if (row.against or "").startswith("seed:")]
    page = done.report.read_text()
    assert "Over seeds" in page
    assert json.loads(done.facts.read_text())["hardware"] in page
    assert "how far its results spread was not measured" not in page
    assert "federated with seed 4" not in page  # in its own section alone


def test_other_trainings_are_no_merges_of_the_studys_model(done: RunFolder) -> None:
    assert merges_of(done) == {"north": (1, 2), "south": (1, 2)}
    assert sum("merged" in line for line in done.audit.read_text().splitlines()) > 0
    assert (done.path / "seeds" / "4" / "audit.jsonl").is_file()


def test_what_is_compared_is_no_part_of_the_digest(study: Path) -> None:
    digest = study_digest(read_study(study))
    for change in ("local_models=true", "pooled_model=true", "robustness=true", "seeds=3"):
        assert study_digest(read_study(study, [f"evaluation.{change}"])) == digest
    assert study_digest(read_study(study, ["evaluation.smallest_group=2"])) != digest


def test_what_would_tell_more_than_the_privacy_counts_is_refused_before_it_trains(study: Path) -> None:
    once, twice = (read_study(study, [f"evaluation.seeds={number}"]) for number in (1, 2))
    private = kinds("privacy")["secure_sum"]()
    with pytest.raises(StudyError, match=r"each training tells more .* 'secure_sum' counts; take seeds: 1"):
        studies_of_seeds(msgspec.structs.replace(twice, privacy=private))
    assert studies_of_seeds(msgspec.structs.replace(once, privacy=private)) == []
    train = msgspec.structs.replace(twice.train, keep_local=("head",))
    with pytest.raises(StudyError, match="keep_local"):
        studies_of_seeds(msgspec.structs.replace(twice, train=train))

"""`medfed train --leave-one-out`: without each hospital in turn, and tested on it."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
import torch

from medfed.errors import StudyError
from medfed.evaluation.rows import model_of, read_cases, read_rows
from medfed.pipeline import train as run
from medfed.pipeline.experiments.leave_one_out import studies_without
from medfed.pipeline.experiments.unlearning import remaining_study
from medfed.runs.provenance import merges_of
from medfed.study.reading import read_study

TABULAR = Path(__file__).parents[3] / "configs" / "tabular.yaml"
SHORT = [
    "train.rounds=2",
    "evaluation.draws=50",
    "evaluation.local_models=false",
    "evaluation.pooled_model=false",
    "evaluation.robustness=false",
]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    out = tmp_path_factory.mktemp("loo") / "run"
    return run.train(TABULAR, out=out, overrides=SHORT, leave_one_out=True)


@pytest.mark.slow
def test_each_model_is_that_of_the_study_without_the_hospital(done, tmp_path):
    """The independent path: somebody deletes the site from the file and trains."""
    study = read_study(TABULAR, SHORT)
    smaller = {name: where for name, where in study.sites.items() if name != "east"}
    alone = run.train(msgspec.structs.replace(study, sites=smaller), out=tmp_path / "run")
    expected, result = (
        torch.load(path, weights_only=True)["state_dict"]
        for path in (alone.checkpoint("federated"), done.checkpoint("without:east"))
    )
    assert all(torch.equal(result[name], expected[name]) for name in expected)


@pytest.mark.slow
def test_it_never_saw_the_hospital_and_is_tested_on_it(done):
    for site in ("north", "east", "south", "west"):
        lines = (done.path / "leave-one-out" / site / "rounds.jsonl").read_text().splitlines()
        assert site not in {json.loads(line)["site"] for line in lines}
        assert (f"without:{site}", site) in {(row.model, row.site) for row in read_cases(done.cases)}


@pytest.mark.slow
def test_the_models_without_a_hospital_are_no_merges_of_the_studys_model(done):
    """The card says who trained from the log: the last hospital left out was said never to have trained."""
    assert merges_of(done) == dict.fromkeys(("east", "north", "south", "west"), (1, 2))


@pytest.mark.slow
def test_rows_say_what_each_hospital_gave_to_the_others_with_an_interval(done):
    rows = [row for row in read_rows(done.rows) if row.against == "without:south" and row.metric == "brier"]
    whole = {row.site: row for row in rows if row.group is None}
    assert {"all", "south", "university"} <= set(whole)
    assert whole["university"].low is not None
    assert whole["university"].p is not None


@pytest.mark.slow
def test_the_report_has_both_tables(done):
    page = done.report.read_text()
    assert "Leave one hospital out" in page
    assert "What each hospital contributed" in page


@pytest.mark.slow
def test_a_finished_run_trains_none_of_them_again(done):
    before = {path.name: path.stat().st_mtime_ns for path in done.checkpoints.glob("without-*.ckpt")}
    assert len(before) == 4
    run.train(TABULAR, out=done.path, overrides=SHORT, resume=True, leave_one_out=True)
    assert {path.name: path.stat().st_mtime_ns for path in done.checkpoints.glob("without-*.ckpt")} == before


def test_two_hospitals_cannot_be_left_out_of_one_another(tiny):
    with pytest.raises(StudyError, match="needs at least 3 sites"):
        studies_without(read_study(tiny / "tiny.yaml"))


def test_a_quorum_of_all_becomes_all_that_are_left():
    study = read_study(TABULAR, [*SHORT, "sampling.minimum=4"])
    assert {smaller.minimum for smaller in studies_without(study).values()} == {3}


@pytest.mark.parametrize("privacy", ["secure_sum", "ckks"])
def test_a_second_sum_without_a_hospital_is_refused_with_what_helps(privacy):
    overrides = [*SHORT, f"privacy.kind={privacy}", "sampling.minimum=3"]
    study = read_study(TABULAR, overrides)
    with pytest.raises(
        StudyError, match=f"--leave-one-out would make two sums .* under '{privacy}'.*another"
    ):
        studies_without(study)
    with pytest.raises(StudyError, match=f"--without east would make two sums .* under '{privacy}'"):
        remaining_study(study, "east")
    # From a given model every seed starts alike: another one would not help.
    with pytest.raises(StudyError, match="that hospital's update; take privacy distributed_dp"):
        remaining_study(msgspec.structs.replace(study, start="x"), "east")


def test_sums_that_hold_noise_may_be_made_again():
    noised = "privacy={kind: distributed_dp, epsilon: 8, min_sites: 3}"
    study = read_study(TABULAR, [*SHORT, noised, "sampling.minimum=3"])
    assert sorted(remaining_study(study, "east").sites) == ["north", "south", "west"]


def test_checkpoints_names_are_models():
    assert [model_of(stem) for stem in ("federated", "pooled", "local-a-b", "without-x", "personal-x")] == [
        "federated", "pooled", "local:a-b", "without:x", "personal:x",
    ]  # fmt: skip


def test_a_second_sum_is_refused_before_anything_is_trained(tmp_path):
    overrides = [*SHORT, "privacy.kind=secure_sum", "sampling.minimum=3"]
    with pytest.raises(StudyError, match="--leave-one-out would make two sums"):
        run.train(TABULAR, out=tmp_path / "run", overrides=overrides, leave_one_out=True)
    assert not (tmp_path / "run").exists()

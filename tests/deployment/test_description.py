"""A study's statistics across machines: the plan of one process, a table, refusals and kills."""

from __future__ import annotations

import json

import pytest
import torch
from commands import PROCESSES, Across, final, run
from hospitals import STUDY

from medfed.pipeline import train as training
from medfed.pipeline.describe import only_described
from medfed.study.canonical import study_digest
from medfed.study.reading import read_study
from medfed.wire.audit_log import entries

PLANNED = (
    STUDY.format(rounds=1)
    .partition("sites:")[0]
    .replace("patch: [16, 16, 16]}", "patch: [16, 16, 16], plan: {min_patients: 2, voxels: 4096}}")
    .replace("evaluation: {", "evaluation: {local_models: false, pooled_model: false, robustness: false, ")
)


@pytest.fixture
def across(tiny, tmp_path):
    made: list[Across] = []

    def make(name: str, study: str = PLANNED, **settings) -> Across:
        made.append(Across(tmp_path / name, tiny, study, **settings))
        return made[-1]

    yield make
    for one in made:
        one.end()


def planned_in_one_process(tiny, tmp_path):
    path = tmp_path / "here.yaml"
    path.write_text(PLANNED + "sites: {north: north, south: south}\nheld_out: {west: west}\n")
    for site in ("north", "south", "west"):
        (tmp_path / site).symlink_to(tiny / site)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    done = training.train(path, out=tmp_path / "here")
    torch.set_num_threads(threads)
    return done


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["nats", "folder"])
def test_the_plan_across_machines_is_that_of_one_process(across, tiny, tmp_path, kind):
    here = planned_in_one_process(tiny, tmp_path)
    study_run = across(kind, kind=kind, held_out=("west",))
    study = read_study(study_run.folder / "study.yaml")
    for party in ("hub", "north", "south", "west"):
        study_run.start(party, "" if party == "hub" else study_digest(study))
    study_run.ended()
    assert study_run.final() == final(here.path)
    planned = read_study(here.study).data
    for folder in (study_run.run, study_run.site_run("north"), study_run.site_run("west")):
        assert read_study(folder / "study.yaml").data == planned
        # The digest is still that to which the hospitals agreed.
        assert json.loads((folder / "run.json").read_text())["digest"] == study_digest(study)
    at_site = [one for one in entries(study_run.site_run("north") / "audit.jsonl") if one["event"] == "sent"]
    assert (at_site[0]["round"], at_site[0]["tensors"], at_site[0]["scalars"]) == (1, 1, [])
    assert not [one for one in entries(study_run.site_run("west") / "audit.jsonl") if one.get("tensors")]
    assert '<th scope="col">north</th>' in (study_run.run / "table1.html").read_text()
    assert "north" not in (study_run.site_run("north") / "table1.csv").read_text()


def describe(study_run: Across) -> None:
    words = ["describe", "study.yaml", "--enrolment", "enrolment", "--out", "run"]
    words += ["--broker"] if study_run.kind == "nats" else []
    process = PROCESSES.Process(
        target=run, args=(words, str(study_run.folder / "hub.log"), str(study_run.folder))
    )
    study_run.running["hub"] = process
    process.start()


@pytest.mark.slow
def test_a_study_is_described_and_nothing_is_trained_and_a_policy_may_refuse(across):
    study_run = across("only", kind="folder", sites=("north", "south", "west"))
    known = study_digest(only_described(read_study(study_run.folder / "study.yaml")))
    share = f"{{kind: folder, poll_s: 0.05, url: {study_run.folder / 'share'}, credentials: "
    refusing = "policy: {smallest_group: 1, statistics: false}"
    study_run.write_site("west", f"{share}{study_run.folder / 'credentials-west'}}}", refusing)
    describe(study_run)
    for site in ("north", "south", "west"):
        study_run.start(site, known)
    west = study_run.running.pop("west")
    west.join()
    assert west.exitcode == 3
    study_run.ended("hub", "north", "south")
    assert "this hospital sends none (policy.statistics)" in study_run.log("west")
    assert "statistics: west absent" in study_run.log("hub")
    assert (study_run.run / "plan.yaml").read_text().startswith("data:")
    assert not (study_run.run / "rounds.jsonl").exists()
    assert "patients (training),,8,4,4" in (study_run.run / "table1.csv").read_text()
    assert "table: " in study_run.log("north")


@pytest.mark.slow
def test_a_killed_hub_and_a_killed_site_go_on_with_the_same_plan(across, tiny, tmp_path):
    here = planned_in_one_process(tiny, tmp_path)
    study_run = across("kills", kind="folder", held_out=("west",))
    known = study_digest(read_study(study_run.folder / "study.yaml"))
    for party in ("hub", "north"):
        study_run.start(party, "" if party == "hub" else known)
    study_run.until(lambda: "counts its training data" in study_run.log("north"), "north counts")
    study_run.kill("hub")
    study_run.kill("north")
    for party in ("hub", "north", "south"):
        study_run.start(party, "" if party == "hub" else known)
    study_run.until(lambda: (study_run.run / "statistics.json").exists(), "the statistics are kept")
    study_run.kill("hub")
    study_run.kill("south")
    for party in ("hub", "south", "west"):
        study_run.start(party, "" if party == "hub" else known)
    study_run.ended()
    assert study_run.final() == final(here.path)

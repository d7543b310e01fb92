"""A study's statistics across machines: the plan of one process, a table, refusals and kills."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from commands import PROCESSES, Across, final, run
from hospitals import STUDY

from medfed.deployment import description
from medfed.deployment.approvals import approve, head_of, revoke
from medfed.deployment.description import describe_session
from medfed.deployment.policy import Policy
from medfed.deployment.site_session import SiteSession
from medfed.errors import DeclinedError, RunError
from medfed.exchange.folder import Folder
from medfed.federation.description import STATISTICS, description_digest
from medfed.pipeline import train as training
from medfed.pipeline.describe import only_described
from medfed.pipeline.describing import length_for
from medfed.runs.folder import RunFolder
from medfed.runs.progress import Progress
from medfed.runs.status import Status
from medfed.study.canonical import study_digest
from medfed.study.reading import parse_study, read_study
from medfed.wire.audit_log import AuditLog, entries
from medfed.wire.update import GlobalModel

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


class Told(Progress):
    """Keeps what is logged."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def log(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """A site whose study asks for statistics, how many patients it has, and what it is told."""
    study = only_described(parse_study(PLANNED + "sites: [north, south]\n"))
    site = SimpleNamespace(
        name="north",
        out=str(tmp_path / "runs"),
        secret=str(tmp_path / "secret"),
        policy=Policy(smallest_group=2),
        exchange=Folder(url=str(tmp_path / "share"), poll_s=0.01),
        give_up_hours=1,
    )
    patients, members = [4], list(range(4))

    def counted(study, data, least):
        vector = torch.zeros(length_for(study), dtype=torch.float64)
        vector[0], vector[-1] = 1, patients[-1]
        return vector

    monkeypatch.setattr(description, "answer_of", counted)
    approve(tmp_path / "runs", study, "m.muster", head_of(tmp_path / "secret"))
    folder = RunFolder(tmp_path / "runs" / "run")
    folder.path.mkdir(parents=True)
    status = Status(folder.status, role="site")
    data = SimpleNamespace(patients=lambda split: tuple(f"patient-{number}" for number in members))
    hospital = SimpleNamespace(data=data, secret=b"s" * 32)
    session = SiteSession(site, study, hospital, folder, status, Told(), AuditLog(None))
    return SimpleNamespace(session=session, patients=patients, members=members, folder=tmp_path)


def test_a_site_that_is_started_again_answers_as_before(asked):
    """Of two answers the difference would be one patient's."""
    first = description._answer(asked.session)
    assert (first[0], first[-1], first.sum()) == (1, 4, 5)
    asked.patients.append(5)
    assert torch.equal(description._answer(asked.session), first)
    (path,) = asked.folder.rglob("answer.json")
    assert any("sends the statistics that it counted before" in line for line in asked.session.progress.lines)
    assert any(f"delete {path} while" in line for line in asked.session.progress.lines)
    assert path.stat().st_mode & 0o777 == 0o600
    # Another policy is an answer of its own, and so is one that a person asks for.
    asked.session.site.policy = Policy(smallest_group=3)
    assert description._answer(asked.session)[-1] == 5
    path.write_bytes(b"\xff")
    with pytest.raises(RunError, match=r"statistics/answer\.json: the statistics .* are damaged"):
        description._answer(asked.session)
    path.unlink()
    assert description._answer(asked.session)[-1] == 5


def test_a_hospital_that_revokes_while_it_counts_sends_no_statistics(asked, monkeypatch):
    session = asked.session
    digest = description_digest(session.digest)
    hub = session.site.exchange.open_hub(digest, asked.folder / "hub")
    zeros = torch.zeros(length_for(session.study), dtype=torch.float64)
    hub.publish(GlobalModel(0, {STATISTICS: zeros}, study_digest=digest, rule=STATISTICS))
    counted = description.answer_of

    def slowly(*arguments):
        revoke(asked.folder / "runs", session.digest, "m.muster", head_of(asked.folder / "secret"))
        return counted(*arguments)

    monkeypatch.setattr(description, "answer_of", slowly)
    with pytest.raises(DeclinedError, match="site 'north': this hospital revoked its approval of the study"):
        describe_session(session)
    (received,) = hub.collect(1, ["north"], 10)
    assert received.update is None
    assert "no longer approves it" in str(received.error)
    hub.close()


def test_another_studys_answer_that_differs_by_a_patient_is_refused_and_nothing_is_kept(asked):
    description._answer(asked.session)
    asked.members.append(4)
    folder = RunFolder(asked.folder / "runs" / "another")
    second = replace(asked.session, folder=folder, agreed="ab" * 32)
    with pytest.raises(DeclinedError, match="site 'north': its statistics would be those that it sent on"):
        description._answer(second)
    assert not list(folder.path.rglob("answer.json"))

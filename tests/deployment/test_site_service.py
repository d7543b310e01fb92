"""A study across hospitals as its people meet it: the commands, their files, kills, refusals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from functools import partial
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch
from commands import Across, final
from hospitals import STUDY

from medfed.deployment import site_service
from medfed.deployment.ddp import RUN_FOLDER
from medfed.deployment.site_file import SiteFile
from medfed.evaluation.rows import SITE_MEAN, read_rows
from medfed.exchange.folder import Folder
from medfed.pipeline import train as run
from medfed.runs.folder import RunFolder
from medfed.study.canonical import study_digest
from medfed.study.reading import read_study
from medfed.wire.audit_log import verify

# Without the sites, which each test names.
TINY = STUDY.format(rounds=3).partition("sites:")[0]


@pytest.fixture
def across(tiny, tmp_path):
    """Make a coordinator and hospitals, and end at the end what was started."""
    made: list[Across] = []

    def make(name: str, study: str = TINY, **settings) -> Across:
        made.append(Across(tmp_path / name, tiny, study, **settings))
        return made[-1]

    yield make
    for one in made:
        one.end()


def in_one_process(tiny, out, *overrides: str):
    """Train the same study in one process over the memory exchange, on one thread as the commands do here."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    done = run.train(tiny / "tiny.yaml", out=out, overrides=["evaluation.local_models=false", *overrides])
    torch.set_num_threads(threads)
    return done


@pytest.fixture(scope="module")
def simulated(tiny, tmp_path_factory):
    return in_one_process(tiny, tmp_path_factory.mktemp("simulated") / "run")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["nats", "folder"])
def test_the_commands_give_the_bits_of_one_process(across, simulated, kind):
    study = TINY.replace("evaluation: {", "evaluation: {local_models: false, ")
    study_run = across(kind, study, kind=kind, held_out=("west",))
    known = study_digest(read_study(study_run.folder / "study.yaml"))
    assert known == study_digest(read_study(simulated.study))
    for party in ("hub", "north", "south", "west"):
        study_run.start(party, "" if party == "hub" else known)
    study_run.ended()
    assert study_run.final() == final(simulated.path)
    for site in ("north", "south", "west"):
        assert final(study_run.site_run(site)) == study_run.final()

    # What each holds afterwards.
    assert not (study_run.run / "cases.jsonl").exists()
    at_hub = {row.key: row for row in read_rows(study_run.run / "rows.jsonl")}
    for site in ("north", "south", "west"):
        own = read_rows(study_run.site_run(site) / "rows.jsonl")
        # By the site itself, from its own cases: the hub's rows are the same numbers.
        for row in own:
            if row.site == site and row.value is not None and row.group is row.against is None:
                merged = at_hub.pop(row.key)
                assert (merged.value, merged.low, merged.high, merged.n) == (
                    row.value,
                    row.low,
                    row.high,
                    row.n,
                )
        assert verify(study_run.site_run(site) / "audit.jsonl").lines > 3
        assert json.loads((study_run.site_run(site) / "status.json").read_text())["state"] == "finished"
    # What is left is the mean over the hospitals that trained, of what they sent.
    assert {row.site for row in at_hub.values()} == {SITE_MEAN}
    one = [
        row
        for row in read_rows(study_run.run / "rows.jsonl")
        if (row.split, row.metric, row.structure, row.model) == ("test", "dice", "lesion", "federated")
        and row.group is None
    ]
    values = [row.value for row in one if row.site in ("north", "south")]
    (mean,) = [row for row in one if row.site == SITE_MEAN]
    assert len(values) == 2
    assert mean.value == pytest.approx(sum(values) / 2)
    lines = [json.loads(line) for line in (study_run.run / "rounds.jsonl").read_text().splitlines()]
    assert {(line["round"], line["site"]) for line in lines} >= {
        (round, site) for round in (1, 2, 3, 4) for site in ("north", "south")
    }
    assert all(not name.startswith("row/") for line in lines for name in line["scalars"])
    assert "west" in (study_run.run / "report.html").read_text()
    status = json.loads((study_run.run / "status.json").read_text())
    assert (status["state"], status["rounds"]) == ("finished", 3)
    assert "north is connected" in study_run.log("hub")


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind, stages",
    [
        ("nats", "[{kind: top_k, share: 0.1}, {kind: int8}]"),
        ("folder", "[{kind: low_rank, rank: 2}, {kind: bf16}]"),
    ],
)
def test_what_is_compressed_comes_to_the_bits_of_one_process(across, tiny, tmp_path, kind, stages):
    # What a round's rounding leaves out is added to the next, so that one that is lost on the way would show.
    study = TINY.replace("evaluation: {", "evaluation: {local_models: false, ") + f"compress: {stages}\n"
    study_run = across(kind, study, kind=kind)
    known = study_digest(read_study(study_run.folder / "study.yaml"))
    for party in ("hub", "north", "south"):
        study_run.start(party, "" if party == "hub" else known)
    alone = in_one_process(tiny, tmp_path / "alone", f"compress={stages}")
    study_run.ended()
    assert study_run.final() == final(alone.path)
    for site in ("north", "south"):
        assert final(study_run.site_run(site)) == study_run.final()


@pytest.mark.slow
def test_kills_of_hub_and_hospital_cost_no_bit(across, simulated):
    study = TINY.replace("evaluation: {", "evaluation: {local_models: false, ")
    study_run = across("killed", study.replace("rounds: 3", "rounds: 6"))
    known = study_digest(read_study(study_run.folder / "study.yaml"))
    calm = across("calm", study.replace("rounds: 3", "rounds: 6"), kind="folder")
    for one in (calm, study_run):
        for party in ("hub", "north", "south"):
            one.start(party, "" if party == "hub" else known)
    study_run.until(lambda: study_run.round(2), "round 2 is over")
    study_run.kill("north")
    study_run.kill("hub")  # its broker goes on without it, and is replaced by that of the next hub
    study_run.start("hub")
    study_run.start("north")  # approved already
    study_run.ended()
    calm.ended()
    assert study_run.final() == calm.final()


@pytest.mark.slow
@pytest.mark.parametrize(
    "privacy", ["kind: client_dp, where: hub", "kind: distributed_dp, min_sites: 2, colluding: 0"]
)
def test_the_noise_of_a_target_epsilon_is_known_to_hub_and_hospital(across, privacy):
    study = TINY.replace("evaluation: {", "evaluation: {local_models: false, ").replace(
        "rounds: 3", "rounds: 1"
    )
    study += f"privacy: {{{privacy}, epsilon: 5, accountant: rdp, scores: send}}\n"
    study_run = across("private", study, kind="folder")
    known = study_digest(read_study(study_run.folder / "study.yaml"))
    for party in ("hub", "north", "south"):
        study_run.start(party, "" if party == "hub" else known)
    study_run.ended()
    for site in ("north", "south"):
        spent = json.loads((study_run.site_run(site) / "run.json").read_text())["privacy"]["sites"][site]
        assert 4.98 < spent["epsilon"] <= 5
        assert final(study_run.site_run(site)) == study_run.final()


@pytest.mark.slow
def test_two_processes_of_one_hospital_train_one_model(across):
    """Several GPUs by Lightning's DDP, here on two processors: `devices: 2`."""
    study_run = across("ddp", TINY.replace("rounds: 3", "rounds: 2"), sites=("north",), kind="folder")
    text = (study_run.folder / "north.yaml").read_text()
    (study_run.folder / "north.yaml").write_text(text + "devices: 2\n")
    study = (study_run.folder / "study.yaml").read_text()
    (study_run.folder / "study.yaml").write_text(
        study.replace("sampling: {minimum: 2}", "sampling: {minimum: 1}")
    )
    study_run.start("hub")
    known = study_digest(read_study(study_run.folder / "study.yaml"))
    done = subprocess.run(
        [sys.executable, "-m", "medfed.cli", "train", "--site", "north.yaml", "--accept", known],
        cwd=study_run.folder,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    study_run.ended("hub")
    assert final(study_run.site_run("north")) == study_run.final()
    steps = [
        json.loads(line)["scalars"]["train/steps"]
        for line in (study_run.run / "rounds.jsonl").read_text().splitlines()
        if '"merged"' in line
    ]
    # Four training cases, two a step, over two processes: one step a round each.
    assert steps == [1.0, 1.0]


@pytest.mark.slow
def test_a_slurm_job_that_is_signalled_before_its_limit_is_requeued_and_gives_the_same_bits(
    across, tiny, tmp_path
):
    """A scheduler that sends SIGUSR1 in the middle of a round, and starts the job again for exit code 75."""
    # So many rounds that the other hospital, which is killed after the first, has not done them all.
    study = TINY.replace("rounds: 3", "rounds: 20").replace(
        "evaluation: {", "evaluation: {local_models: false, "
    )
    job = across("slurm", study, kind="folder", held_out=("west",))
    known = study_digest(read_study(job.folder / "study.yaml"))
    for party in ("hub", "south", "west"):
        job.start(party, "" if party == "hub" else known)
    ids = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "site", "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}
    own = {"SLURM_LOCALID": "0", "SLURM_NODEID": "0", "OMP_NUM_THREADS": "1"}
    codes = []
    with (job.folder / "north.log").open("ab") as log:
        while not codes or codes[-1] == 75:
            before = len(job.log("north"))
            words = [sys.executable, "-m", "medfed.cli", "train", "--site", "north.yaml", "--accept", known]
            site = subprocess.Popen(
                words, cwd=job.folder, env={**os.environ, **ids, **own}, stdout=log, stderr=log
            )
            if not codes:
                job.until(partial(job.round, 1), "a round is merged")
                job.kill("south")
                assert not job.round(20)
            if len(codes) < 2:
                job.until(
                    lambda before=before: "tiny: site north" in job.log("north")[before:], "it is ready"
                )
                site.send_signal(signal.SIGUSR1)
            elif not job.running["south"].is_alive():
                job.start("south", known)
            codes.append(site.wait(240))
    assert codes == [75, 75, 0], job.log("north")[-3000:]
    assert "stopped before its time limit (SIGUSR1)" in job.log("north")
    assert not list(job.folder.rglob("hpc_ckpt*"))  # Lightning's own requeueing, in the middle of a round
    job.ended("hub", "south", "west")
    simulated = in_one_process(tiny, tmp_path / "simulated", "train.rounds=20")
    assert job.final() == final(simulated.path)


@pytest.mark.slow
def test_a_run_that_was_stopped_after_the_study_had_ended_is_finished_without_a_hub(across):
    study = TINY.replace("rounds: 3", "rounds: 1")
    job = across("ended", study, kind="folder", sites=("north", "south"))
    known = study_digest(read_study(job.folder / "study.yaml"))
    for party in ("hub", "north", "south"):
        job.start(party, "" if party == "hub" else known)
    job.until(lambda: "its own model, for comparison" in job.log("north"), "north trains its own model")
    job.kill("north")
    job.ended("hub", "south")
    before = len(job.log("north"))
    job.start("north")  # approved already
    job.ended("north")
    again = job.log("north")[before:]
    assert "what is left is done without it" in again
    assert "asks the hub" not in again
    folder = RunFolder(job.site_run("north"))
    assert folder.read_facts().is_finished
    models = {row.model for row in read_rows(folder.rows)}
    assert {"federated", "local:north"} <= models
    assert final(folder.path) == job.final()
    assert verify(folder.audit).lines > 3
    # And what has ended here needs no hub either, if it is asked for by its digest.
    before = len(job.log("north"))
    job.start("north", known)
    job.ended("north")
    assert "this study has ended here" in job.log("north")[before:]


class Captured(Exception):
    """Ends a site's training before it begins, with the settings of its run."""


@pytest.mark.parametrize("process", ["rank 0", "worker"])
def test_the_age_of_a_checkpoint_reaches_all_processes_of_a_site(tmp_path, monkeypatch, process):
    # Processes of one site write a checkpoint together: if one did not know when, the others would wait.
    def capture(name, module, data, exchange, config, run):
        raise Captured(run)

    for name in ("module_of", "site_config_under_policy", "ledger_of", "data_scalars", "ChargedPatients"):
        monkeypatch.setattr(site_service, name, lambda *args: {})
    monkeypatch.setattr(site_service, "data_set", lambda *args: None)
    monkeypatch.setattr(site_service, "train_site", capture)
    site = SiteFile(name="north", data="images", exchange=Folder(url="share"), checkpoint_minutes=2.5)
    data = MagicMock(examples=4)
    hospital, folder = SimpleNamespace(data=data, secret=b""), RunFolder(tmp_path)
    if process == "worker":
        monkeypatch.setenv(RUN_FOLDER, str(tmp_path))
        folder.study.write_text("")
        monkeypatch.setattr(site_service, "parse_run_study", lambda *args: None)
        monkeypatch.setattr(site_service, "_open_hospital", lambda *args: hospital)
        monkeypatch.setattr(site_service, "read_left_out", lambda *args: ())
        with pytest.raises(Captured) as captured:
            site_service._train_worker(site, b"")
    else:
        session = MagicMock(site=site, hospital=hospital, folder=folder)
        session.name = "north"
        session.study.evaluation.smallest_group = 5
        with pytest.raises(Captured) as captured:
            site_service._train(session, MagicMock())
    assert captured.value.args[0].checkpoint_s == 150.0

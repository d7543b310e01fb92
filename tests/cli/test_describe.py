"""Where `medfed describe` runs: in this process, or as the hub of hospitals on other machines."""

from __future__ import annotations

from click.testing import CliRunner

from medfed.cli import main
from medfed.deployment import hub_service
from medfed.runs.folder import RunFolder


def test_across_machines_the_hub_runs_a_study_that_only_describes(tiny, tmp_path, monkeypatch):
    asked = []

    def run_study(study, **settings):
        asked.append((study, settings))
        return RunFolder(tmp_path)

    monkeypatch.setattr(hub_service, "run_study", run_study)
    # The command's handler of SIGTERM would stay in the tests' process.
    monkeypatch.setattr("medfed.cli.describe.end_on_signals", lambda: None)
    words = ["describe", str(tiny / "tiny.yaml"), "--quiet", "--set", "seed=2", "--resume"]
    done = CliRunner().invoke(main, [*words, "--enrolment", str(tmp_path), "--broker"])
    assert done.output == f"table: {tmp_path / 'table1.html'}\n"
    ((study, settings),) = asked
    assert (study, settings["overrides"]) == (tiny / "tiny.yaml", ("seed=2", "describe.only=true"))
    assert (settings["broker"], settings["resume"], settings["enrolment"]) == (True, True, tmp_path)


def test_a_command_says_what_it_cannot_do(tiny):
    done = CliRunner().invoke(main, ["describe", str(tiny / "tiny.yaml"), "--without", "north"])
    assert "describe: trains nothing, so there is nothing to retrain; omit --without" in done.output
    assert done.exit_code != 0

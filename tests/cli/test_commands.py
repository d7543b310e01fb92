"""The command line: every option explains itself, a wrong use is answered, and --help is quick."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from medfed.cli import main


def leaves(command: click.Command, name: str = "medfed") -> list[tuple[str, click.Command]]:
    if isinstance(command, click.Group):
        return [leaf for key, sub in command.commands.items() for leaf in leaves(sub, f"{name} {key}")]
    return [(name, command)]


COMMANDS = dict(leaves(main))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_explains_itself(name):
    command = COMMANDS[name]
    assert (command.help or "").strip()
    assert (command.short_help or "").endswith(".")
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{name} --{parameter.name}"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command_is_printed(name):
    result = CliRunner().invoke(main, [*name.split()[1:], "--help"])
    assert result.exit_code == 0
    assert result.output.startswith("Usage: ")


@pytest.mark.parametrize(
    "words, message",
    [
        (["train"], "train: name a study file, or this hospital's site file with --site"),
        (["train", "study.yaml", "--accept", "0"], "train: name a study file, or this hospital's site file"),
        (["train", "study.yaml", "--site", "site.yaml"], "omit STUDY, --out, --set and --without"),
        (["train", "--site", "site.yaml", "--set", "seed=1"], "omit STUDY, --out, --set and --without"),
        (["train", "--compare", "fedavg"], "train --compare: name a study file"),
        (["train", "nowhere.yaml"], "nowhere.yaml: no such file"),
        (["kinds", "agregation"], "kinds: no registry 'agregation'; there are aggregation, local_training"),
    ],
)
def test_a_wrong_use_is_answered_without_a_traceback(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 1
    assert result.stderr.startswith("medfed: ")
    assert message in result.stderr


def test_help_takes_little_processor_time():
    def processor_s() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "medfed.cli", "--help"], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    # 0.15 s on a quiet machine; torch alone would take more than a second.
    assert min(processor_s() for _ in range(3)) < 0.4


def medfed(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the installed command in a folder."""
    command = [str(Path(sys.executable).parent / "medfed"), *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)


def test_an_error_is_one_sentence_and_no_traceback(tmp_path):
    done = medfed("train", "nothing.yaml", folder=tmp_path)
    assert done.returncode == 1
    assert done.stderr.strip() == "medfed: nothing.yaml: no such file"
    assert done.stdout == ""


def test_help_names_every_command(tmp_path):
    done = medfed("--help", folder=tmp_path)
    assert all(name in done.stdout for name in ("train", "evaluate", "report", "kinds", "audit"))


def test_kinds_lists_what_a_study_can_name(tmp_path):
    done = medfed("kinds", "aggregation", folder=tmp_path)
    assert "fedavg" in done.stdout
    assert "Mean of the sites' models" in done.stdout
    assert "no registry 'rulez'" in medfed("kinds", "rulez", folder=tmp_path).stderr

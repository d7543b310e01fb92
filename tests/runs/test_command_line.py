"""What was typed can be typed again, and a report shows no folder of it."""

from __future__ import annotations

import shlex

import pytest

from medfed.runs.command_line import shown_command, typed_command

TYPED = ["/usr/bin/medfed", "train", "/data/Smith/study.yaml", "--set", "train.optimiser={kind: sgd, lr: 1}"]


def test_what_was_typed_is_quoted_so_that_a_shell_reads_it_again() -> None:
    line = typed_command(TYPED)
    assert shlex.split(line) == ["medfed", *TYPED[1:]]
    assert shlex.split(shown_command(TYPED)) == ["medfed", "train", "study.yaml", *TYPED[3:]]


@pytest.mark.parametrize(
    ("part", "shown"),
    [
        ("sites.north=/data/Smith", "sites.north=..."),
        ("sites.north=Smith", "sites.north=..."),
        ("exchange={kind: folder, url: s3://Smith}", "exchange=..."),
        ("start=runs/Smith/federated.ckpt", "start=..."),
        ("data.layout={image: 'Smith/*.nii'}", "data.layout=..."),
        ("--out=/data/Smith/run", "--out=run"),
        ("C:\\Smith\\study.yaml", "study.yaml"),
        ("/data/Smith/", "Smith"),
        ("train.rounds=3", "train.rounds=3"),
    ],
)
def test_places_of_a_hospital_are_left_out(part: str, shown: str) -> None:
    assert shlex.split(shown_command(["medfed", "train", part])) == ["medfed", "train", shown]


@pytest.mark.parametrize("option", ["--data", "--site", "--secret"])
def test_the_value_of_a_private_option_is_left_out_without_a_slash(option: str) -> None:
    assert shown_command(["medfed", "train", option, "Smith"]) == f"medfed train {option} ..."


def test_passwords_are_not_kept_at_all() -> None:
    line = typed_command(["medfed", "hub", "--set", "exchange.url=nats://user:geheim@host:4222"])
    assert line == "medfed hub --set exchange.url=nats://host:4222"


@pytest.mark.parametrize(
    ("program", "is_command"),
    [("/x/medfed/cli/__main__.py", True), ("/x/ipykernel_launcher.py", False), ("/x/pytest", False)],
)
def test_a_python_program_has_no_command_line_of_medfed(program: str, is_command: bool) -> None:
    assert bool(typed_command([program, "train"])) == is_command
    assert bool(shown_command([program, "train"])) == is_command

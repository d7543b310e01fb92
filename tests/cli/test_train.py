"""What `medfed train` refuses of its options before anything is read."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from medfed.cli import main


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["study.yaml", "--folds", "2", "--search"], "--folds and --search: give one of them at a time"),
        (["study.yaml", "--compare", "fedavg", "--leave-one-out"], "--leave-one-out and --compare: give one"),
        (["study.yaml", "--compare", "fedavg", "--without", "north"], "train --compare: name a study file"),
        (
            ["study.yaml", "--search", "--site", "site.yaml"],
            "train --search: name a study file, without --site",
        ),
        (["--site", "site.yaml", "--leave-one-out"], "train --leave-one-out: name a study file"),
        (
            ["--site", "site.yaml", "--without", "north"],
            "train --site: the study comes from the hub; omit STUDY",
        ),
    ],
)
def test_options_that_do_not_go_together_are_refused(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answered = CliRunner().invoke(main, ["train", *words])
    assert answered.exit_code == 1
    assert answered.stderr.startswith(f"medfed: {message}")

"""`medfed kinds` lists what a study file can name."""

from __future__ import annotations

import json

from click.testing import CliRunner

from medfed.cli import main
from medfed.registry import FOLDERS, kinds


def test_every_registry_and_its_kinds_are_listed():
    output = CliRunner().invoke(main, ["kinds"]).output
    assert all(folder in output for folder in FOLDERS)
    assert all(name in output for name in kinds("aggregation"))
    of_one = CliRunner().invoke(main, ["kinds", "privacy"]).output
    assert "secure_sum" in of_one
    assert "fedavg" not in of_one


def test_the_schema_names_the_keys_of_a_study():
    schema = json.loads(CliRunner().invoke(main, ["kinds", "--schema"]).output)
    assert "describe" in json.dumps(schema)


def test_an_unknown_registry_is_an_error():
    done = CliRunner().invoke(main, ["kinds", "nothing"])
    assert done.exit_code != 0

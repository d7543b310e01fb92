"""`medfed plugins`: the digest runs no code, the list of kinds does, and errors have no traceback."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from medfed.cli import main
from medfed.study.plugins import plugin_digest

RULE = '''\
from medfed.aggregation import Rule


class Half(Rule, frozen=True, tag="half"):
    """Half of the mean update is added to the model."""
'''


@pytest.fixture
def parts(tmp_path):
    folder = tmp_path / "parts"
    folder.mkdir()
    (folder / "__init__.py").write_text("from .half import Half\n")
    (folder / "half.py").write_text(RULE)
    return folder


def run(*words):
    return CliRunner().invoke(main, ["plugins", *map(str, words)])


def test_digest_prints_it_alone_and_beside_it_what_a_site_file_says(parts):
    (parts / "half.py").write_text("raise SystemExit('its code ran')\n")
    result = run("digest", parts)
    assert result.stdout == f"{plugin_digest(parts)}\n"
    assert f'  parts: {{path: {parts}, digest: "{plugin_digest(parts)}"}}' in result.stderr
    assert result.exit_code == 0


def test_kinds_lists_what_a_package_adds(parts):
    result = run("kinds", parts)
    assert result.output.split("\n")[0] == "aggregation"
    assert "half" in result.output
    assert "Half of the mean update is added to the model." in result.output


def test_a_package_that_fails_is_one_line_with_its_file_and_line(parts):
    (parts / "half.py").write_text("\nx = unknown\n")
    result = run("kinds", parts)
    assert result.exit_code == 1
    assert (
        result.stderr
        == "medfed: plug-in 'parts': half.py, line 2: NameError: name 'unknown' is not defined\n"
    )

from __future__ import annotations

import pytest
from click.testing import CliRunner

from medfed.cli.enrol import enrol


@pytest.fixture
def said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*words: str, code: int = 0, answer: str = "") -> str:
        result = CliRunner().invoke(enrol, [*words], input=answer)
        assert result.exit_code == code, result.output
        return result.output

    return run


def test_two_people_enrol_a_hospital(said):
    authority = said("init", "lungs", "--host", "hub.example.org").splitlines()[-1].strip()
    theirs = said("site", "north").splitlines()[-1].strip()
    shown = said("sign", "credentials/north.request.pem", answer="y\n")
    assert theirs in shown
    assert "tls://hub.example.org:4222" in said("accept", "north.kit", "--authority", authority)
    assert "north" in said("list")
    assert "valid" in said("list")
    assert "revoked: site north" in said("revoke", "north")
    assert "revoked" in said("list")


def test_a_fingerprint_that_is_not_confirmed_signs_nothing(said, tmp_path):
    said("init", "lungs", "--host", "hub.example.org")
    said("site", "north")
    said("sign", "credentials/north.request.pem", code=1, answer="n\n")
    assert not (tmp_path / "north.kit").exists()
    assert "no site is enrolled yet" in said("list")


def test_errors_are_told_in_one_line(said):
    assert "holds no federation" in said("list", code=1)
    assert "a site's name has 1 to 64 letters" in said("site", "hub", code=1)

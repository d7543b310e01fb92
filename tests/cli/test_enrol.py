from __future__ import annotations

import pytest
from broker_enrolment import TABLE_STUDY
from click.testing import CliRunner

from medfed.cli.enrol import enrol
from medfed.deployment.enrolment.studies import admit
from medfed.errors import MedfedError
from medfed.exchange._admitted import admitted_studies
from medfed.exchange._study_store import space_of
from medfed.study.canonical import study_digest
from medfed.study.reading import read_study


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


def test_a_hospital_is_admitted_to_a_study_that_lets_others_join(said, tmp_path):
    study = tmp_path / "study.yaml"
    study.write_text(TABLE_STUDY)
    said("init", "lungs", "--host", "hub.example.org")
    for site in ("north", "west"):
        said("site", site, "--folder", site)
        said("sign", f"{site}/{site}.request.pem", "--yes")
    assert "north may take part" in said("study", "study.yaml")
    assert "'west' is none of its hospitals" in said_why(tmp_path, "study.yaml", "west")
    study.write_text(f"{TABLE_STUDY}sampling: {{joining: true}}\n")
    assert "'south' has no valid certificate" in said_why(tmp_path, "study.yaml", "south")
    assert "west may take part" in said("study", "study.yaml", "--site", "west")
    said("study", "study.yaml")
    admitted = admitted_studies(tmp_path / "enrolment")
    assert admitted[space_of(study_digest(read_study(study)))] == ["north", "west"]


def said_why(folder, study: str, site: str) -> str:
    with pytest.raises(MedfedError) as raised:
        admit(folder / "enrolment", folder / study, [site])
    return str(raised.value)

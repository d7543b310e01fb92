"""`medfed approvals`: a hospital lists what it approved, and revokes it by the first digits."""

from __future__ import annotations

from click.testing import CliRunner

from medfed.cli import main
from medfed.deployment import approvals
from medfed.study.canonical import study_digest
from medfed.study.reading import read_study


def test_the_command_lists_and_revokes(tmp_path, tiny):
    study = read_study(tiny / "tiny.yaml")
    site = tmp_path / "site.yaml"
    site.write_text("name: north\ndata: images\nexchange: {kind: folder, url: share}\n")
    run = CliRunner().invoke
    assert "no study was approved here yet" in run(main, ["approvals", str(site)]).output
    approvals.approve(tmp_path / "runs", study, "m.muster", approvals.head_of(tmp_path / "secret"))
    known = study_digest(study)
    assert f"{known}  approved" in run(main, ["approvals", str(site)]).output
    assert run(main, ["approvals", str(site), "--revoke", known[:12]]).output == f"revoked: study {known}\n"
    assert f"{known}  revoked " in run(main, ["approvals", str(site)]).output

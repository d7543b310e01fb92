"""`medfed audit`: what it says of a log, where it finds one, and the exit code of its gate."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from medfed.cli import main
from medfed.pipeline.leakage import audit as leakage_audit
from medfed.pipeline.leakage import findings
from medfed.wire.audit_log import AuditLog, verify


@pytest.fixture
def log(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    written = AuditLog(tmp_path / "run" / "audit.jsonl")
    for number in range(3):
        written.write("sent", round=number)
    return tmp_path / "run" / "audit.jsonl"


def audit(*words: object) -> tuple[int, str]:
    done = CliRunner().invoke(main, ["audit", *map(str, words)])
    return done.exit_code, done.output


def test_a_run_folder_or_its_log_is_verified(log: Path) -> None:
    head = verify(log).head
    code, output = audit("verify", log.parent)
    assert code == 0
    assert output.splitlines() == [
        f"3 lines, each linked to the one before it; the last is {head}",
        "without --head nobody can tell whether lines were cut off at the end, or the whole log was written "
        "anew by its own writer; keep this digest elsewhere, or compare the hub's log with hospitals' "
        "(--site-log)",
        "this log holds no merge: who trained is in the hub's log",
        "no line is signed: anyone with write access to this file could have rewritten it",
    ]
    known, _, *others = output.splitlines()
    assert audit("verify", log, "--head", head)[1].splitlines() == [known, *others]


def test_a_log_that_is_cut_changed_or_not_there_is_an_error(log: Path, tmp_path: Path) -> None:
    head = verify(log).head
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:-1]))
    assert audit("verify", log)[0] == 0  # what is left is linked
    code, output = audit("verify", log, "--head", head)
    assert code == 1
    assert output.startswith("medfed: ")
    log.write_text("".join(lines).replace('"round":1', '"round":7'))
    code, output = audit("verify", log)
    assert code == 1
    assert "line 2" in output or "line 3" in output
    code, output = audit("verify", tmp_path)
    assert code == 1
    assert "no audit log; give a run folder or its audit.jsonl" in output


def test_a_log_is_written_as_a_table(log: Path, tmp_path: Path) -> None:
    out = tmp_path / "log.csv"
    code, output = audit("export", log.parent, "--out", out)
    assert (code, output) == (0, f"3 lines in {out}\n")
    assert len(out.read_text().splitlines()) == 4  # with a heading


@pytest.mark.parametrize(("worst", "code"), [(0.4, 0), (0.5, 0), (0.51, 1)])
def test_the_gate_closes_above_its_share(tmp_path: Path, monkeypatch, worst: float, code: int) -> None:
    budgets = []

    def attacked(run, site, budget, out):
        budgets.append(budget)
        return SimpleNamespace(worst=worst), tmp_path / "figure.png"

    monkeypatch.setattr(leakage_audit, "audit", attacked)
    monkeypatch.setattr(findings, "describe", lambda found: "what was recovered")
    done = CliRunner().invoke(
        main, ["audit", "leakage", str(tmp_path), "--gate", "0.5", "--minutes", "2", "--steps", "7"]
    )
    assert done.exit_code == code
    assert "what was recovered" in done.stdout
    assert ("gate: 0.51 is more than 0.5" in done.stderr) is bool(code)
    assert (budgets[0].budget_s, budgets[0].steps, budgets[0].shadows, budgets[0].cases) == (120, 7, 16, None)

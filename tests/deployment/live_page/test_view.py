"""What a run folder says of its run, and that looking changes nothing in it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
import pytest
from deployment.live_page.runs import make_run, written_s

from medfed.deployment.live_page.view import read_view, seconds_of, summary
from medfed.errors import RunError
from medfed.runs.folder import RunFolder
from medfed.runs.rounds import RoundReport, SiteResult, append_round


def test_a_run_is_running_until_its_last_sign_of_life_is_too_old(shown_run):
    written = written_s(shown_run)
    assert read_view(shown_run, written + 30).life == "running"
    lost = read_view(shown_run, written + 31)
    assert (lost.life, lost.seen_s) == ("lost", written)


@pytest.mark.parametrize("state", ["finished", "stopped", "interrupted"])
def test_a_run_that_said_how_it_ended_is_not_lost(tmp_path, state):
    run = make_run(tmp_path / "run", ended=state)
    assert read_view(run, written_s(run) + 1e6).life == state


def test_a_run_of_an_earlier_medfed_is_finished_or_unknown(tmp_path):
    run = make_run(tmp_path / "run")
    folder = RunFolder(run)
    folder.status.unlink()
    view = read_view(run)
    assert (view.life, view.seen_s, view.round, view.rounds) == ("unknown", None, 4, None)
    assert view.sites["north"].round == 4
    assert view.sites["north"].bytes_up == 160_000_000
    folder.write_facts(msgspec.structs.replace(folder.read_facts(), finished="2026-11-30T10:00:00+00:00"))
    assert read_view(run).life == "finished"


def test_a_process_that_died_after_the_run_was_finished_is_no_alarm(tmp_path):
    run = make_run(tmp_path / "run")
    folder = RunFolder(run)
    folder.write_facts(msgspec.structs.replace(folder.read_facts(), finished="2026-11-30T10:00:00+00:00"))
    assert read_view(run, written_s(run) + 5).life == "running"
    assert read_view(run, written_s(run) + 3600).life == "finished"


def test_what_is_missing_is_a_warning_with_its_rounds(shown_run):
    (warning,) = read_view(shown_run).warnings
    assert (warning.site, warning.rounds) == ("south", "round 2")
    assert warning.text.startswith("refused: its update is <script>")
    assert "\\x1b[2J\\u202e" in warning.text


def test_what_holds_in_many_rounds_is_one_warning(tmp_path):
    run = make_run(tmp_path / "run")
    for number in (5, 6, 8):
        why = f"site 'west', round {number}: this hospital's policy does not allow the study"
        report = RoundReport(number, (SiteResult("west", "absent", why),), 1.0, 10)
        append_round(RunFolder(run).rounds, report)
    west = next(warning for warning in read_view(run).warnings if warning.site == "west")
    assert west.text == "absent: this hospital's policy does not allow the study"
    assert west.rounds == "rounds 5 to 6, 8"


def test_a_damaged_file_is_told_and_hides_nothing_else(tmp_path):
    run = make_run(tmp_path / "run")
    folder = RunFolder(run)
    folder.rounds.write_bytes(b"no round\n")
    folder.facts.write_bytes(b"{")
    view = read_view(run)
    assert view.round == 4
    assert view.sites["south"].round == 4
    assert len(view.unreadable) == 2
    assert any("rounds.jsonl: line 1 is not a round" in text for text in view.unreadable)
    assert not any(str(tmp_path) in text for text in view.unreadable)


DAMAGED = {
    "no UTF-8": b'{"study": "\xff"}',
    "nested too deep": b'{"more": ' + b"[" * 100_000,
    "no time there is": b'{"since": "0001-01-01T00:00:00+14:00", "moved": "9999-12-31T23:59:59-14:00"}',
}


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED)
def test_a_status_of_any_bytes_takes_neither_the_page_nor_the_metrics(tmp_path, data):
    from medfed.deployment.live_page.metrics import metrics
    from medfed.deployment.live_page.page import page

    run = make_run(tmp_path / "run")
    for name in ("status.json", "study.json"):
        (run / name).write_bytes(data)
    view = read_view(run)
    assert "lungs" in page(view) or view.unreadable
    assert b"medfed_round 4.0" in metrics(view)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"no run folder: it has neither status\.json nor run\.json; give the"):
        read_view(tmp_path)


def state(folder: Path) -> dict[str, tuple[str, int]]:
    return {
        str(path.relative_to(folder)): (
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
            path.stat().st_mtime_ns,
        )
        for path in [folder, *sorted(folder.rglob("*"))]
    }


def test_nothing_in_the_folder_changes(tmp_path):
    from medfed.deployment.live_page.metrics import metrics
    from medfed.deployment.live_page.page import page

    run = make_run(tmp_path / "run")
    with (run / "rounds.jsonl").open("ab") as file:
        file.write(b'{"round": 5, "si')  # a line that is being written
    before = state(run)
    view = read_view(run)
    page(view), metrics(view), summary(view)
    assert state(run) == before
    assert view.round == 4


def test_rounds_that_are_added_are_seen(tmp_path):
    run = make_run(tmp_path / "run")
    assert read_view(run).round == 4
    with (run / "rounds.jsonl").open("ab") as file:
        file.write(b'{"round": 5, "site": "north", "status": "merged"}\n')
    assert read_view(run).round == 5


def test_the_summary_is_plain(shown_run):
    plain = msgspec.json.decode(msgspec.json.encode(summary(read_view(shown_run))))
    assert (plain["run"], plain["round"], plain["rounds"]) == ("lungs", 4, 10)
    assert plain["status"]["sites"]["south"]["state"] == "not connected"


def test_a_time_that_is_none_is_none():
    assert seconds_of("2026-11-30T10:00:00+00:00") == 1796032800.0
    assert seconds_of("soon") is None
    assert seconds_of(None) is None

"""What a person reads while a study runs, where output is not a terminal."""

from __future__ import annotations

import io
import logging
import re

import pytest
from rich.console import Console

from medfed.runs.progress import LiveProgress, PlainProgress, Progress, ProgressTable, show_warnings
from medfed.runs.rounds import RoundReport, SiteResult

SCORES = {"train/loss": 0.5, "val/dice": 0.25}


def printed(capsys, *rounds: tuple[SiteResult, ...]) -> list[str]:
    lines = PlainProgress()
    lines.start("study", {"north": 3, "south": 2}, 3, "val/dice")
    for number, answers in enumerate(rounds, start=1):
        lines.round(RoundReport(number, answers, 1.0, 10))
    return capsys.readouterr().out.splitlines()


def test_a_round_is_one_line_with_every_site_its_loss_and_score(capsys):
    merged = (SiteResult("north", "merged", scalars=SCORES), SiteResult("south", "merged", scalars=SCORES))
    first, line = printed(capsys, merged)
    assert first == "study: north (3 cases), south (2 cases)"
    assert re.fullmatch(
        r"round 1/3   north loss 0\.500 dice 0\.250 \| south loss 0\.500 dice 0\.250   1\.0 s, 0:00 left",
        line,
    )


def test_a_score_that_stays_in_its_hospital_is_not_shown_as_that_of_an_earlier_round(capsys):
    shown = SiteResult("north", "merged", scalars=SCORES)
    stays = SiteResult("north", "merged", scalars={"train/loss": 0.4})
    lines = printed(capsys, (shown,), (stays,))
    assert lines[-1].startswith("round 2/3   north loss 0.400 dice – | south waiting   1.0 s")


def test_why_a_site_is_absent_is_printed_once_until_it_returns(capsys):
    present = SiteResult("north", "merged", scalars=SCORES)
    away = SiteResult("south", "absent", "its disk is full")
    back = SiteResult("south", "merged", scalars=SCORES)
    lines = printed(capsys, (present, away), (present, away), (present, back), (present, away))
    assert [line for line in lines if "disk" in line] == [
        "round 1: south absent: its disk is full",
        "round 4: south absent: its disk is full",
    ]
    assert sum("south absent" in line and "round 2/3" in line for line in lines) == 1


def test_a_note_on_a_site_is_printed_once(capsys):
    odd = SiteResult("north", "merged", scalars=SCORES, notes=("states 130 examples, and began with 120",))
    lines = printed(capsys, (odd,), (odd,))
    assert [line for line in lines if "130" in line] == [
        "round 1: north: states 130 examples, and began with 120"
    ]


HOSTILE = "cannot read [/data/x] [a, b]\nround 9: south refused\x1b[2J\u202e"
SHOWN = "cannot read [/data/x] [a, b]\\nround 9: south refused\\x1b[2J\\u202e"


def test_a_reason_of_another_site_is_one_line_in_which_every_character_shows(capsys):
    lines = printed(capsys, (SiteResult("south", "refused", HOSTILE, notes=(HOSTILE,)),))
    assert f"round 1: south refused: {SHOWN}" in lines
    assert f"round 1: south: {SHOWN}" in lines


def test_a_live_display_takes_no_text_for_markup(capsys):
    live = LiveProgress()
    live._console = Console(file=(out := io.StringIO()), width=200, force_terminal=True)
    live.round(RoundReport(1, (SiteResult("south", "refused", HOSTILE),), 1.0, 10))
    live.log("[bold]two[/bold]\nlines\x1b[8m")
    assert out.getvalue().splitlines() == [
        f"round 1: south refused: {SHOWN}",
        "[bold]two[/bold]",
        "lines\\x1b[8m",
    ]


WHY = "this hospital's policy does not allow the study"


def drawn(live: LiveProgress, width: int) -> list[str]:
    """Return the lines of the table as it is drawn on a terminal of this width."""
    live._console = Console(file=(out := io.StringIO()), width=width)
    live._console.print(live._render())
    return [line.rstrip() for line in out.getvalue().splitlines()]


@pytest.fixture
def hub_table(monkeypatch):
    """A live table of a hub after a round: one site trains, one is lost, one stopped."""
    monkeypatch.setattr("medfed.runs.progress.time.strftime", lambda form: "22:14")
    live = LiveProgress()
    live._console = Console(file=io.StringIO(), width=200)
    live._table = ProgressTable.begin("a", {"east": 0, "north": 0, "west": 0}, 40, "val/auroc")
    numbers = {"train/loss": 0.25, "val/auroc": 0.5}
    sent = [SiteResult(site, "merged", scalars=numbers, bytes_up=13000) for site in ("east", "north")]
    live.round(RoundReport(1, tuple(sent), 1.0, 12600))
    live.connections(["east"], ["east", "north"], 35.0, {"west": WHY})
    return live


def test_a_live_display_says_once_why_a_site_stopped(hub_table):
    hub_table.connections(["east"], ["east", "north"], 30.0, {"west": WHY})
    said = hub_table._console.file.getvalue().splitlines()
    assert said == [f"west has stopped: {WHY}"]


@pytest.mark.parametrize("width", [200, 80, 60])
def test_a_narrow_terminal_leaves_columns_out_and_cuts_no_number(hub_table, width):
    lines = drawn(hub_table, width)
    assert not [line for line in lines if "…" in line or len(line) > width]
    # By hand: site, state, two scores and `sent` need 5 + 25 + 5 + 5 + 7 characters and 2 after each, which
    # is 57, and `received` needs 10.
    received = ["12.6", "kB"] if width > 57 + 10 else []
    north = ["north", "not", "connected", "since", "22:14", "0.250", "0.500", "13.0", "kB"]
    assert lines[3].split() == [*north, *received]
    (foot,) = (line for line in lines if "round 2/40" in line)
    assert foot.endswith("round ends in 0:35")  # in the same line
    assert "cases" not in lines[1]  # which a hub does not know


def test_a_logged_warning_is_shown_without_sequences(capsys):
    with show_warnings(PlainProgress()):
        logging.getLogger("medfed.exchange").warning("a withdrawal of site '%s' is refused", "\x1b[2J[/x]")
    assert capsys.readouterr().out == "a withdrawal of site '\\x1b[2J[/x]' is refused\n"


def test_a_terminal_shows_since_when_a_site_is_awaited_and_a_site_that_joined(monkeypatch):
    clock = ["10:22"]
    monkeypatch.setattr("medfed.runs.progress.time.strftime", lambda form: clock[0])
    table = ProgressTable.begin("a", {"north": 0, "south": 0}, 3, "val/dice")
    table.update_connections(["north", "west"], ["north", "south", "west"], None)
    clock[0] = "10:40"
    table.update_connections(["north", "west"], ["north", "south"], None)
    assert {site: (row.status, row.since) for site, row in table.rows.items()} == {
        "north": ("training", "10:22"),
        "south": ("not connected", "10:22"),
        "west": ("waiting", ""),  # its update has come
    }
    table.update_connections(["west"], ["north"], None)
    assert (table.rows["north"].status, table.rows["north"].since) == ("not connected", "10:40")
    clock[0] = "10:50"
    table.update_connections(["north"], [], None)  # west is lost, though nobody awaits it
    assert {site: (row.status, row.since) for site, row in table.rows.items()} == {
        "north": ("waiting", ""),
        "south": ("not connected", "10:22"),
        "west": ("not connected", "10:50"),
    }


def test_a_site_that_stopped_is_told_at_once_and_not_again_with_the_round():
    table = ProgressTable.begin("a", {"north": 0, "south": 0}, 3, "val/dice")
    table.update_connections(["north", "south"], ["north", "south"], None)
    why = {"south": "this hospital's policy does not allow the study"}
    told = ["south has stopped: this hospital's policy does not allow the study"]
    assert table.update_connections(["north"], ["north"], None, why) == told
    assert table.update_connections(["north"], ["north"], None, why) == []
    assert table.rows["south"].status == "stopped"
    away = SiteResult(
        "south", "absent", "site 'south', round 1: this hospital's policy does not allow the study"
    )
    assert table.update(RoundReport(1, (SiteResult("north", "merged"), away), 1.0, 0)) == []
    assert table.update_connections(["north", "south"], ["north", "south"], None) == ["south is connected"]
    assert table.rows["south"].status == "training"


def test_a_display_that_knows_of_no_stopped_sites_is_told_who_is_awaited():
    class Own(Progress):
        seen: tuple[object, ...] = ()

        def waiting(self, connected, awaited, remaining_s):
            self.seen = connected, awaited, remaining_s

    display = Own()
    display.connections({"north"}, {"south"}, 3.0, {"south": "its disk is full"})
    assert display.seen == ({"north"}, {"south"}, 3.0)

"""What a person reads while a study runs, where output is not a terminal."""

from __future__ import annotations

import re

from medfed.runs.progress import PlainProgress
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

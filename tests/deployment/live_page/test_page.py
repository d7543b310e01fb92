"""The page's HTML: what an operator reads, and that a text of another party stays text."""

from __future__ import annotations

import re

import pytest
from deployment.live_page.runs import HOSTILE, make_run, written_s

from medfed.deployment.live_page.page import headline, live, page, script, style, title
from medfed.deployment.live_page.view import read_view
from medfed.runs.folder import RunFolder
from medfed.runs.rounds import RoundReport, append_round


@pytest.fixture(scope="module")
def shown(shown_run) -> str:
    return page(read_view(shown_run, written_s(shown_run) + 2))


def words(text: str) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", text).split())


def test_an_operator_reads_whether_it_runs_what_is_awaited_and_until_when(shown):
    text = words(shown)
    assert "Running: round 5 of 10" in text
    assert "Awaits north, south. The round ends in 6 min, without whoever has sent nothing by then." in text
    assert "rounds merged 4 of 10" in text
    assert "sites connected 1 of 2" in text
    assert "the last round took 41 s" in text
    assert "sent by the sites 280.0 MB" in text
    assert "stored at the broker 80.0 MB" in text


def test_each_site_is_a_line(shown):
    north, south = (words(row) for row in re.findall(r"<tr><th scope=\"row\">.*?</tr>", shown, re.DOTALL))
    assert north == "north training 2 s ago 4 12 0.500 0.875 1.000 160.0 MB 200.0 MB"
    assert south == "south not connected 2 s ago 4 12 0.500 0.875 1.000 120.0 MB 200.0 MB"
    assert '<span class="bad">not connected</span>' in shown


def test_curves_of_dice_and_losses_are_drawn_with_the_gap_of_a_missed_round(shown):
    titles = re.findall(r"<h2>([^<]*)</h2>", shown)
    assert titles[2:5] == ["Dice on validation patients", "Loss on validation patients", "Loss in training"]
    assert shown.count('<svg class="panel"') == 6
    # Two strokes cross out south's round 2 in each of its three panels.
    assert shown.count('<line class="gap"') == 6


def test_privacy_is_what_was_spent_of_what_was_planned(shown):
    text = words(shown)
    assert "Mechanism: dp_sgd" in text
    assert "each patient&#39;s part is hidden" in text
    assert "north: epsilon 1.00 of 8 spent at delta 1e-05" in text


def test_what_was_agreed_to_is_shown_as_it_was_written(shown):
    assert '<pre class="consent">Study &#39;lungs&#39;\n\nWhat leaves: &lt;script&gt;' in shown


def test_a_text_of_another_party_is_text(shown):
    assert HOSTILE not in shown
    assert shown.count("<script") == 1  # the page's own
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert shown.count("&lt;script&gt;document.title=&#39;owned&#39;&lt;/script&gt;\\x1b[2J\\u202e") == 3


def test_nothing_comes_from_elsewhere_and_no_script_or_style_is_in_the_page(shown):
    assert not re.findall(r"(?:src|href)=\"(?!live\.js|live\.css|data:,|status\.json|metrics|report)", shown)
    assert not re.findall(r"\sstyle=|<style|\son[a-z]+=|javascript:", shown)
    for text in (style(), script()):
        assert not re.findall(r"https?:|url\(|@import", text)


LIVES = {
    "finished": "Finished",
    "interrupted": "Interrupted by Ctrl-C or SIGTERM",
    "stopped": "Stopped with an error: too few sites",
}


@pytest.mark.parametrize("state", LIVES)
def test_an_end_is_said_first(tmp_path, state):
    run = make_run(tmp_path / "run", ended=state)
    path = RunFolder(run).status
    path.write_bytes(
        path.read_bytes().replace(
            b'"state": "' + state.encode(), b'"reason": "too few sites",\n"state": "' + state.encode()
        )
    )
    view = read_view(run, written_s(run) + 1e6)
    assert headline(view) == LIVES[state]
    how = "The same command with --resume continues after round 4."
    assert (how in words(live(view))) == (state != "finished")


def test_a_lost_process_is_an_alarm_in_the_tab_too(shown_run):
    view = read_view(shown_run, written_s(shown_run) + 600)
    assert headline(view) == "No sign of life for 10 min: the process died, or its machine is off or asleep"
    assert title(view) == "! 4/10 lost · lungs"
    assert "(10 min ago). The same command with --resume continues after round 4." in words(live(view))


def test_a_clock_that_is_behind_is_said(shown_run):
    assert "in the future: the clocks differ" in words(
        live(read_view(shown_run, written_s(shown_run) - 3600))
    )


def test_a_long_run_shows_its_last_rounds(tmp_path):
    from deployment.live_page.runs import merged

    run = make_run(tmp_path / "run")
    for number in range(5, 301):
        append_round(run / "rounds.jsonl", RoundReport(number, (merged("north", number),), 1.0, 0))
    text = live(read_view(run))
    assert "The last 200 rounds; the report shows all." in words(text)
    assert "over 200 rounds" in text
    assert "over 300 rounds" not in text


def test_a_run_that_has_not_begun_says_so(tmp_path):
    from medfed.runs.status import Status

    (tmp_path / "run").mkdir()
    Status(tmp_path / "run" / "status.json", role="site", study="lungs")
    text = words(page(read_view(tmp_path / "run")))
    assert "Running: starting" in text
    assert "No site is known yet." in text

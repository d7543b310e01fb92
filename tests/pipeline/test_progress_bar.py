"""The bar of a folder's reading is on standard error, and not where that is no terminal."""

from __future__ import annotations

from medfed.pipeline.progress_bar import ProgressBar


def test_where_nobody_watches_nothing_is_printed(capsys, monkeypatch):
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    with ProgressBar() as bar:
        bar.update(1, 2)
    assert capsys.readouterr() == ("", "")


def test_a_terminal_shows_how_much_is_read_and_keeps_standard_output_clean(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes any stream for a terminal
    with ProgressBar() as bar:
        bar.update(1, 2)
        task = bar._bar.tasks[0]
        assert (task.completed, task.total) == (1, 2)
    out, err = capsys.readouterr()
    assert out == ""
    assert "reading" in err

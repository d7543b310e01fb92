"""What several commands do: show progress, print the result of a run, end when a service manager says so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from medfed.cli.error_handling import TimeLimit
from medfed.cli.messages import answer, is_asked, note
from medfed.wire.untrusted_text import for_terminal

if TYPE_CHECKING:
    from medfed.cli.options import PageOptions
    from medfed.deployment.live_page.server import PageSettings
    from medfed.runs.folder import RunFolder
    from medfed.runs.progress import Progress


@contextmanager
def show_progress(quiet: bool, page: PageOptions | None = None) -> Iterator[Progress]:
    """Show progress, and with `page` serve the run's live page, until the block ends."""
    from medfed.runs.progress import progress_display

    display = progress_display(quiet)
    with ExitStack() as stack:
        stack.callback(display.stop)
        if page is not None and (settings := page.settings()) is not None:
            stack.enter_context(_served(display, settings))
        yield display


@contextmanager
def _served(display: Progress, settings: PageSettings) -> Iterator[None]:
    """Serve the page of the run that a display is told of."""
    from medfed.deployment.live_page.server import serve

    opened: list[Path] = []
    display.on_opened = opened.append
    with serve(settings, lambda: opened[-1] if opened else None) as url:
        note(f"live page: {url}")
        yield


def run_document(run: RunFolder, site: str | None = None) -> dict[str, object]:
    """Return what --json prints of a run: its files, and its headline, or what it says of one site."""
    from medfed.evaluation.report import headline

    trained = run.report.exists()
    return {
        "run": run.path,
        "headline": headline(run.path, site) if trained else None,
        "report": run.report if trained else None,
        "rows": run.rows if run.rows.exists() else None,
        "table": run.table_one if run.table_one.exists() else None,
    }


def print_result(run: RunFolder, site: str | None = None) -> None:
    """Print the headline of a run, or what it says of one site, and where its report is."""
    from medfed.evaluation.report import headline

    if is_asked():
        answer(run_document(run, site))
        return
    if run.table_one.exists() and not run.report.exists():  # nothing was trained
        click.echo(f"table: {run.table_one}")
        return
    click.echo(for_terminal(headline(run.path, site)))
    click.echo(f"report: {run.report}")


def print_own_values(run: RunFolder, site: str) -> None:
    """Print each patient's value, where the mean is withheld, to those who have the data anyway."""
    from medfed.evaluation.report.own_values import own_values

    if is_asked():  # a document may be passed on
        return
    if lines := own_values(run.path, site):
        click.echo("For you alone, on this machine and in no file that may leave, each patient's value:")
        for line in lines:
            click.echo(f"  {for_terminal(line)}")


def end_on_signals() -> None:
    """Let a service manager's SIGTERM, and a scheduler's SIGUSR1, end a command as Ctrl-C does."""
    import signal

    def interrupt(number: int, frame: object) -> None:
        # Only once: a second signal would interrupt the orderly shutdown that the first one started.
        for one in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(one, signal.SIG_IGN)
        raise TimeLimit if number == signal.SIGUSR1 else KeyboardInterrupt

    for one in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(one, interrupt)

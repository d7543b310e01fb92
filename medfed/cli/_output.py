"""What several commands print: progress while they run, and the result of a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from medfed.wire.untrusted_text import for_terminal

if TYPE_CHECKING:
    from medfed.runs.folder import RunFolder
    from medfed.runs.progress import Progress


@contextmanager
def show_progress(quiet: bool) -> Iterator[Progress]:
    """Show progress until the block ends."""
    from medfed.runs.progress import progress_display

    display = progress_display(quiet)
    try:
        yield display
    finally:
        display.stop()


def print_result(run: RunFolder, site: str | None = None) -> None:
    """Print the headline of a run, or what it says of one site, and where its report is."""
    from medfed.evaluation.report import headline

    if run.table_one.exists() and not run.report.exists():  # nothing was trained
        click.echo(f"table: {run.table_one}")
        return
    click.echo(for_terminal(headline(run.path, site)))
    click.echo(f"report: {run.report}")


def print_own_values(run: RunFolder, site: str) -> None:
    """Print each patient's value, where the mean is withheld, to those who have the data anyway."""
    from medfed.evaluation.report.own_values import own_values

    if lines := own_values(run.path, site):
        click.echo("For you alone, on this machine and in no file that may leave, each patient's value:")
        for line in lines:
            click.echo(f"  {for_terminal(line)}")

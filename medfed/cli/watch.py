"""`medfed watch`: the live page of any run folder. The work is done in `deployment/live_page/`."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from threading import Event

import click

from medfed.cli.messages import answer
from medfed.cli.options import DEFAULT_PAGE, PATH, PageOptions, page_options


@click.command(short_help="Serve the live page of a run folder.")
@click.argument("run_folder", metavar="RUN", type=PATH)
@page_options
def watch(run_folder: Path, page: PageOptions) -> None:
    """Serve the page of a run that goes on, has ended or died, from its folder, which is only read.

    Ctrl-C ends the page, not the run. With --json, print what the page shows, and end.

    \b
    medfed watch runs/our-study
    medfed watch runs/our-study --page 9000
    medfed watch runs/our-study --json
    """
    import msgspec

    from medfed.deployment.live_page.page import headline
    from medfed.deployment.live_page.server import serve
    from medfed.deployment.live_page.view import read_view, summary

    view = read_view(run_folder)
    if answer(msgspec.to_builtins(summary(view))):
        return
    settings = page.settings(default=DEFAULT_PAGE)
    assert settings is not None  # there is a default
    with serve(settings, lambda: run_folder) as url, suppress(KeyboardInterrupt):
        click.echo(f"{view.name}: {headline(view)}")
        click.echo(f"live page: {url} (Ctrl-C ends it, not the run)")
        Event().wait()

"""`medfed demo`: sample hospitals, one study over them, its report. The work is in `pipeline/demo.py`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(short_help="Make sample hospitals, train over them, open the report.")
@click.argument("folder", type=click.Path(path_type=Path), default="medfed-demo")
@click.option("--no-open", is_flag=True, help="Do not open the report in a browser.")
def demo(folder: Path, no_open: bool) -> None:
    """Make five synthetic hospitals in FOLDER, train one model over four of them, and open the report.

    It takes some minutes and needs neither data nor network. Nobody was ever a patient of these hospitals.
    """
    from medfed.cli._output import print_result, show_progress
    from medfed.pipeline.demo import demo as run_demo

    with show_progress(quiet=False) as progress:
        run = run_demo(folder, progress=progress)
    print_result(run)
    if not no_open:
        import webbrowser

        webbrowser.open(run.report.resolve().as_uri())

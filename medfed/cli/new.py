"""`medfed new`: a first study file from hospitals' folders. The work is done in `pipeline/drafting.py`."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from medfed.cli.messages import answer
from medfed.cli.options import folder_options

if TYPE_CHECKING:
    from medfed.data.folder_options import FolderOptions
    from medfed.pipeline._draft_tables import TargetColumns


def _column_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add --target, --time and --event to a command, which receives them as its `columns`."""

    @wraps(command)
    def wrapper(*, target: str | None, time: str | None, event: str | None, **arguments: Any) -> None:
        from medfed.pipeline._draft_tables import TargetColumns

        command(columns=TargetColumns(target, time, event), **arguments)

    for name, text in reversed(_COLUMNS.items()):
        wrapper = click.option(f"--{name}", metavar="COLUMN", help=text)(wrapper)
    return wrapper


_COLUMNS = {
    "target": "For tables: the column with the class, 0, 1, ...",
    "time": "For survival tables: the column with the time to the event or the last contact.",
    "event": "For survival tables: the column with 1 where the event happened, else 0.",
}


@click.command(short_help="Write a study file from hospitals' folders.")
@click.argument("study", type=click.Path(path_type=Path, dir_okay=False))
@click.argument("folders", nargs=-1, required=True)
@click.option(
    "--held-out",
    multiple=True,
    metavar="FOLDER",
    help="A hospital that takes no part in training and measures the models; may be repeated.",
)
@click.option(
    "--task",
    type=click.Choice(["segment", "classify", "multilabel"]),
    help="The task, if the folders hold labels, classes or findings side by side.",
)
@_column_options
@click.option(
    "--budget",
    metavar="TIME",
    help="Plan a segmentation of volumes for this machine: 30m, 2h or 1d for the whole run; takes a short "
    "timing.",
)
@folder_options
def new(
    study: Path,
    folders: tuple[str, ...],
    held_out: tuple[str, ...],
    task: str | None,
    columns: TargetColumns,
    budget: str | None,
    options: FolderOptions,
) -> None:
    """Inspect FOLDERS, one per hospital, and write STUDY with a task and fitting settings, for you to edit.

    Each site is named after its folder; NAME=FOLDER names it differently. For tables, give CSV files.

    \b
    medfed new our-study.yaml /data/north /data/south --held-out /data/west
    medfed new heart.yaml north=a.csv south=b.csv --target disease
    medfed new thin.yaml /data/north --set data.read.uneven=resample
    medfed new quick.yaml /data/north /data/south --budget 2h
    """
    from medfed.errors import StudyError
    from medfed.pipeline._draft_recipe import parse_budget
    from medfed.pipeline.drafting import draft_study, parse_sites, write_draft
    from medfed.pipeline.progress_bar import ProgressBar

    sites, others = parse_sites(folders), parse_sites(held_out)
    both = sorted(set(sites) & set(others))
    if both:
        raise StudyError(f"'{both[0]}' trains and is held out; a held-out hospital must not train")
    if study.exists():
        raise StudyError(f"{study}: the file exists; give another name, or move it away")
    with ProgressBar() as bar:
        draft = draft_study(
            study.stem,
            sites,
            others,
            task=task,  # type: ignore[arg-type]
            columns=columns,
            options=options,
            budget_s=None if budget is None else parse_budget(budget),
            progress=bar.update,
        )
    write_draft(study, draft)
    if answer({"study": study, "summaries": draft.summaries, "warnings": draft.warnings}):
        return
    for line in draft.summaries:
        click.echo(line)
    for line in draft.warnings:
        click.secho("check: ", fg="yellow", nl=False)
        click.echo(line)
    click.echo(f"{study}: written. Read it, then: medfed train {study}")

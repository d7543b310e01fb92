"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from medfed.data.layouts import Layout

PATH = click.Path(path_type=Path)


def _parse_layout(context: click.Context, parameter: click.Parameter, text: str | None) -> Layout | None:
    if text is None:
        return None
    from medfed.data.layouts import parse_layout

    return parse_layout(text)


layout_option = click.option(
    "--layout",
    metavar="NAME",
    callback=_parse_layout,
    help="How the cases lie in the folder, if medfed can't be certain; `medfed kinds layouts` lists them.",
)


@dataclass(frozen=True)
class RunOptions:
    """The options of a run: its folder, changes to the study file, and the run that it continues."""

    out: Path | None
    overrides: tuple[str, ...]
    resume: bool
    without: str | None
    former: Path | None
    quiet: bool


_RUN_OPTIONS = (
    click.option("--out", type=PATH, help="The run folder; default: runs/NAME."),
    click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        help="Override one key of the study, such as train.epochs=3; may be repeated.",
    ),
    click.option("--resume", is_flag=True, help="Continue the run in the run folder after its last round."),
    click.option(
        "--without", metavar="SITE", help="A hospital that withdrew: retrain from before it joined."
    ),
    click.option(
        "--former", type=PATH, help="The run it withdrew from; default: the newest run of the study."
    ),
    click.option("--quiet", is_flag=True, help="Print only the result."),
)


def run_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of `RunOptions` to a command, which receives them as its argument `options`."""

    @wraps(command)
    def wrapper(**arguments: Any) -> None:
        values = {name: arguments.pop(name) for name in RunOptions.__dataclass_fields__}
        command(options=RunOptions(**values), **arguments)

    decorated: Callable[..., None] = wrapper
    for option in reversed(_RUN_OPTIONS):
        decorated = option(decorated)
    return decorated

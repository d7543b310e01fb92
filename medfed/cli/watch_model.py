"""`medfed watch-model`: whether what a deployed model sees and says has changed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from medfed.cli.error_handling import ALARM
from medfed.cli.messages import answer, say
from medfed.cli.options import PATH, layout_option, own_choices, site_option
from medfed.wire.untrusted_text import for_terminal

if TYPE_CHECKING:
    from medfed.data.layouts import Layout


@click.command("watch-model", short_help="Compare a deployed model's new cases with earlier ones.")
@click.argument("run_folder", metavar="RUN", type=PATH)
@click.option("--data", type=PATH, help="A folder or table of new cases; labels are not needed.")
@site_option
@click.option(
    "--reference",
    "references",
    type=PATH,
    multiple=True,
    help="At the first call: the folder or table of earlier cases, or another hospital's sketch.json.",
)
@click.option(
    "--name",
    default="here",
    show_default=True,
    help="What this hospital's watch is called in the run folder.",
)
@click.option("--labels", is_flag=True, help="The new cases have labels: also measure the model on them.")
@click.option(
    "--looks",
    type=click.IntRange(1, 1000),
    help="At the first call: how many looks share a chance of 5 % of any false alarm; default: 12.",
)
@layout_option
def watch_model(
    run_folder: Path,
    data: Path | None,
    site: Path | None,
    references: tuple[Path, ...],
    name: str,
    labels: bool,
    looks: int | None,
    layout: Layout | None,
) -> None:
    """Compare what a run's model sees and says of new cases with a reference, and write a page.

    The exit code is 0 without an alarm and 5 with one. Nothing leaves the hospital.

    \b
    medfed watch-model runs/our-study --data /data/2027-01 --reference /data/our-hospital
    medfed watch-model runs/our-study --data /data/2027-02
    medfed watch-model runs/our-study --data /data/2027-02 --labels
    """
    from dataclasses import replace

    import msgspec

    from medfed.errors import MedfedError
    from medfed.pipeline.watch.watch import Asked, describe, watch

    if data is None:
        raise MedfedError("watch-model: name the folder or table of new cases with --data")
    own, place = own_choices(site, data)
    own = replace(own, layout=layout or own.layout)
    watched = watch(run_folder, place, name=name, own=own, asked=Asked(references, looks, labels))
    look = msgspec.to_builtins(watched.look)
    answer({"alarm": bool(watched.look.alarms), "look": look, "page": watched.page})
    say(for_terminal(describe(watched)))
    say(f"page: {watched.page}")
    if watched.look.alarms:
        sys.exit(ALARM)

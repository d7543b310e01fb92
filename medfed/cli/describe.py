"""`medfed describe`: statistics of a study's data over all its hospitals, before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from medfed.cli._output import end_on_signals, show_progress
from medfed.cli.messages import answer, say
from medfed.cli.options import PATH, RunOptions, run_options
from medfed.errors import MedfedError

if TYPE_CHECKING:
    from medfed.runs.folder import RunFolder
    from medfed.runs.progress import Progress


@click.command(short_help="Statistics of a study's data over all its hospitals: Table 1, and the plan.")
@click.argument("study", type=PATH)
@click.option("--enrolment", type=PATH, help="The folder that `medfed enrol init` made.")
@click.option("--broker", is_flag=True, help="Also start and supervise the broker.")
@run_options
def describe(study: Path, enrolment: Path | None, broker: bool, options: RunOptions) -> None:
    """Write Table 1 of a study's hospitals (table1.html, table1.csv) without training anything.

    Each hospital counts its own training patients and withholds small counts. With data.plan in the study,
    plan.yaml holds the data section that follows. Across hospitals each runs `medfed train --site` and
    approves this, as it would a study; where the study names all hospitals' folders, this process reads them.

    \b
    medfed describe configs/quickstart.yaml
    medfed describe study.yaml --enrolment enrolment --broker
    """
    if options.without is not None:
        raise MedfedError("describe: trains nothing, so there is nothing to retrain; omit --without")
    with show_progress(options.quiet) as progress:
        folder = _described(study, enrolment, broker, options, progress)
    answer({"run": folder.path, "table": folder.table_one, "csv": folder.table_one_csv})
    say(f"table: {folder.table_one}")


def _described(
    study: Path, enrolment: Path | None, broker: bool, options: RunOptions, progress: Progress
) -> RunFolder:
    from medfed.pipeline.describe import describe_study, is_in_one_process

    if enrolment is None and not broker and is_in_one_process(study, options.overrides):
        return describe_study(study, out=options.out, overrides=options.overrides, progress=progress)
    from medfed.deployment.hub_service import run_study

    end_on_signals()
    return run_study(
        study,
        enrolment=enrolment,
        broker=broker,
        out=options.out,
        overrides=(*options.overrides, "describe.only=true"),
        resume=options.resume,
        progress=progress,
    )

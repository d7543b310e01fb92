"""`medfed train`: a study over its hospitals in this process, or one hospital's part in it."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import click

from medfed.cli._output import end_on_signals, print_result, show_progress
from medfed.cli.messages import answer, answer_nothing, is_asked
from medfed.cli.options import (
    PATH,
    ExperimentOptions,
    PageOptions,
    RunOptions,
    experiment_options,
    page_options,
    run_options,
)
from medfed.errors import MedfedError
from medfed.wire.untrusted_text import for_terminal


@click.command(short_help="Train a study over its hospitals, or take part as one.")
@click.argument("study", type=PATH, required=False)
@click.option("--site", type=PATH, help="Take part as the hospital of this site file.")
@click.option("--accept", default="", metavar="DIGEST", help="With --site: approve the study of this digest.")
@run_options
@page_options
@experiment_options
def train(
    study: Path | None,
    site: Path | None,
    accept: str,
    options: RunOptions,
    page: PageOptions,
    experiments: ExperimentOptions,
) -> None:
    """Train the study in a file over its hospitals on this machine, and write a run folder with a report.

    With --site FILE, take part as one hospital in the study that its hub offers. The study is checked against
    the site's policy, shown for approval, then trained. Run the same command again to resume.

    \b
    medfed train configs/quickstart.yaml
    medfed train configs/quickstart.yaml --set train.rounds=3 --out runs/short
    medfed train configs/quickstart.yaml --compare fedavg,fedprox,fedadam
    medfed train study.yaml --folds 5
    medfed train study.yaml --search
    medfed train study.yaml --set simulation.engine=processes --set simulation.workers=4
    medfed train --site site.yaml
    """
    if experiments.given and (study is None or site is not None or options.without is not None):
        raise MedfedError(f"train {experiments.given[0]}: name a study file, without --site and --without")
    if site is not None:
        if study is not None or options.out is not None or options.overrides or options.without is not None:
            raise MedfedError(
                "train --site: the study comes from the hub; omit STUDY, --out, --set and --without"
            )
        _take_part(site, accept, options.quiet, page)
    elif study is None or accept:
        raise MedfedError("train: name a study file, or this hospital's site file with --site (and --accept)")
    elif experiments.folds is not None or experiments.search:
        _train_repeatedly(study, experiments.folds, options, page)
    elif experiments.compare is not None:
        _compare_methods(study, experiments.compare.split(","), options, page)
    else:
        _train_study(study, options, experiments.leave_one_out, page)


def _train_study(study: Path, options: RunOptions, leave_one_out: bool, page: PageOptions) -> None:
    from medfed.pipeline.train import train as train_study

    with show_progress(options.quiet, page) as progress:
        run = train_study(
            study,
            out=options.out,
            overrides=options.overrides,
            resume=options.resume,
            leave_one_out=leave_one_out,
            without=options.without,
            former=options.former,
            progress=progress,
        )
    print_result(run)


def _train_repeatedly(study: Path, folds: int | None, options: RunOptions, page: PageOptions) -> None:
    """Cross-validate in so many folds, or search if there is no number of folds."""
    from medfed.pipeline.cross_validation import cross_validate
    from medfed.pipeline.search import search

    with show_progress(options.quiet, page) as progress:
        run = (search if folds is None else partial(cross_validate, folds=folds))(
            study,
            out=options.out,
            overrides=options.overrides,
            resume=options.resume,
            progress=progress,
        )
    print_result(run)


def _take_part(site: Path, accept: str, quiet: bool, page: PageOptions) -> None:
    from medfed.deployment.ddp import is_worker
    from medfed.deployment.site_service import take_part

    def ask(description: str) -> bool:
        click.echo(for_terminal(description))
        return click.confirm("Does this hospital take part?", default=False)

    end_on_signals()
    if is_worker():
        answer_nothing()
    # A worker of several GPUs is started with the same command: one process serves the page.
    with show_progress(quiet, None if is_worker() else page) as progress:
        run = take_part(site, accept=accept, progress=progress, ask=ask if sys.stdin.isatty() else None)
    if run is not None:
        print_result(run)


def _compare_methods(study: Path, methods: list[str], options: RunOptions, page: PageOptions) -> None:
    from medfed.evaluation.report.method_table import text, to_plain
    from medfed.pipeline import compare

    with show_progress(options.quiet, page) as progress:
        table, folder = compare.compare(
            study,
            methods,
            out=options.out,
            overrides=options.overrides,
            resume=options.resume,
            progress=progress,
        )
    if is_asked():
        answer({"comparison": folder / "comparison.html", **to_plain(table)})
        return
    click.echo(for_terminal(text(table)))
    click.echo(f"\ncomparison: {folder / 'comparison.html'}")

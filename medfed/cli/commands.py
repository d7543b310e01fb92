"""The command line: parse, call, print. What a command does is in `pipeline/` and below, loaded on call."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from medfed.cli._output import (
    end_on_signals,
    print_own_values,
    print_result,
    run_document,
    show_progress,
)
from medfed.cli.approvals import approvals
from medfed.cli.audit import audit
from medfed.cli.data import deidentify, fingerprint, purge
from medfed.cli.demo import demo
from medfed.cli.describe import describe
from medfed.cli.enrol import enrol
from medfed.cli.error_handling import Commands
from medfed.cli.kinds import kinds
from medfed.cli.messages import answer, is_asked, note, say
from medfed.cli.new import new
from medfed.cli.options import (
    PATH,
    DossierOptions,
    PageOptions,
    RunOptions,
    dossier_options,
    layout_option,
    own_choices,
    page_options,
    run_options,
    site_option,
)
from medfed.cli.plugins import plugins
from medfed.cli.train import train
from medfed.cli.watch import watch
from medfed.cli.watch_model import watch_model
from medfed.errors import MedfedError
from medfed.files import private_files
from medfed.runs import json_log

if TYPE_CHECKING:
    from medfed.data.layouts import Layout


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="medfed", prog_name="medfed")  # looked up when it is asked for
@click.option(
    "--log-json",
    is_flag=True,
    envvar=json_log.VARIABLE,
    help=f"Write each log line to standard error as a JSON object; {json_log.VARIABLE}=1 does, too.",
)
def main(log_json: bool) -> None:
    """One model over many hospitals; images stay where they are.

    A first look:  medfed demo
    """
    context = click.get_current_context()
    context.with_resource(private_files())
    if log_json:
        context.with_resource(json_log.json_logs())


@main.command(short_help="Run the hub of a study across hospitals.")
@click.argument("study", type=PATH)
@click.option("--enrolment", type=PATH, help="The folder that `medfed enrol init` made.")
@click.option("--broker", is_flag=True, help="Also start and supervise the broker.")
@run_options
@page_options
def hub(study: Path, enrolment: Path | None, broker: bool, options: RunOptions, page: PageOptions) -> None:
    """Run the hub of a study, whose hospitals run `medfed train --site`, and write a run folder.

    \b
    medfed hub study.yaml --enrolment enrolment --broker
    medfed hub study.yaml --enrolment enrolment --broker --page
    """
    from medfed.deployment.hub_service import RetrainWithout, run_study

    end_on_signals()
    with show_progress(options.quiet, page) as progress:
        run = run_study(
            study,
            enrolment=enrolment,
            broker=broker,
            out=options.out,
            overrides=options.overrides,
            resume=options.resume,
            retrain=None if options.without is None else RetrainWithout(options.without, options.former),
            progress=progress,
        )
    print_result(run)


@main.command(short_help="Run one of a federation's three brokers.")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False, exists=True))
def broker(folder: Path) -> None:
    """Run one broker of a federation that has three, from its folder, until it is stopped.

    \b
    medfed broker broker-1
    """
    from medfed.deployment.enrolment.rights import run_broker

    end_on_signals()
    run_broker(folder, lambda text: note(text, err=False))


@main.command(short_help="Measure a run's models on another hospital.")
@click.argument("run_folder", metavar="RUN", type=PATH)
@click.option("--data", type=PATH, help="A hospital's folder or table.")
@site_option
@click.option(
    "--name", default="evaluated", show_default=True, help="What to call this hospital in the report."
)
@click.option("--all-cases", is_flag=True, help="Measure every case, not only the test split.")
@click.option(
    "--labelled",
    multiple=True,
    metavar="CLASS",
    help="A structure that this hospital draws, if it does not draw all; may be repeated.",
)
@layout_option
def evaluate(
    run_folder: Path,
    data: Path | None,
    site: Path | None,
    name: str,
    all_cases: bool,
    labelled: tuple[str, ...],
    layout: Layout | None,
) -> None:
    """Measure a run's models on a hospital's cases, and rewrite the run's report.

    \b
    medfed evaluate runs/quickstart --data /data/our-hospital --name ours
    medfed evaluate runs/quickstart --site site.yaml --name ours
    """
    from medfed.pipeline.evaluate import evaluate as evaluate_run

    own, folder = own_choices(site, data)
    run = evaluate_run(
        run_folder, folder, name=name, all_cases=all_cases, layout=layout, labelled=labelled, own=own
    )
    print_result(run, name)
    print_own_values(run, name)


@main.command(short_help="Write a run's predictions for a hospital's images.")
@click.argument("run_folder", metavar="RUN", type=PATH)
@click.option("--data", type=PATH, help="A hospital's folder or table.")
@site_option
@click.option("--out", required=True, type=PATH, help="A new folder for the predictions.")
@click.option("--model", default="federated", show_default=True, help="One of the run's models.")
@click.option(
    "--name", default="evaluated", show_default=True, help="The hospital's name, which salts the case ids."
)
@layout_option
@click.option(
    "--guarantee",
    metavar="KIND[:CLASS]",
    help="Decide at the threshold that hospital --name may rely on: found, covered or voxels of a structure, "
    "sensitivity of a class, or set.",
)
def predict(
    run_folder: Path,
    data: Path | None,
    site: Path | None,
    out: Path,
    model: str,
    name: str,
    layout: Layout | None,
    guarantee: str | None,
) -> None:
    """Write a run's predictions for every case of a hospital's folder. It needs no labels; nothing leaves it.

    Masks are NIfTI files; for DICOM images also DICOM SEG that refers to the source series.

    \b
    medfed predict runs/quickstart --data /data/our-hospital --out /data/predicted
    medfed predict runs/quickstart --site site.yaml --out /data/predicted
    medfed predict runs/quickstart --data /data/north --name north --guarantee found --out /data/found
    """
    from medfed.pipeline import guaranteed_threshold
    from medfed.pipeline import predict as predictions

    own, where = own_choices(site, data)
    folder = predictions.predict(
        run_folder, where, out, model=model, name=name, layout=layout, own=own, guarantee=guarantee
    )
    said = None
    if guarantee is not None:
        said = (folder / guaranteed_threshold.SAID).read_text(encoding="utf-8").rstrip()
        say(said)
    answer({"predictions": folder, "guarantee": said})
    say(f"predictions: {folder}")


@main.command(short_help="Write a run's model as MONAI Bundle, ONNX or TorchScript.")
@click.argument("run_folder", metavar="RUN", type=PATH)
@click.option("--out", required=True, type=PATH, help="A new folder for the export.")
@click.option(
    "--format",
    "format_",
    type=click.Choice(["bundle", "onnx", "torchscript"]),
    default="bundle",
    show_default=True,
    help="What to write.",
)
@click.option("--model", default="federated", show_default=True, help="One of the run's models.")
@dossier_options
def export(run_folder: Path, out: Path, format_: str, model: str, asked: DossierOptions) -> None:
    """Write a run's model for others to run, checked against the model that was trained.

    With --dossier, write what is asked before the weights may leave: who trained, epsilon, leakage audits,
    agreements, data, limits, licences, a bill of materials and checklists, with a signed manifest.

    \b
    medfed export runs/quickstart --out bundle
    medfed export runs/quickstart --out exported --format onnx
    medfed export runs/quickstart --dossier --out dossier --statements statements.yaml
    """
    if asked.dossier:
        _export_dossier(run_folder, out, model, asked)
        return
    if asked.given:
        raise MedfedError(
            "export: --site, --site-log, --statements, --exported and --credentials belong to --dossier"
        )
    from medfed.pipeline import export as exports

    written = exports.export(run_folder, out, format=format_, model=model)
    answer({"exported": written, "format": format_, "model": model})
    say(f"exported: {written}")


def _export_dossier(run_folder: Path, out: Path, model: str, asked: DossierOptions) -> None:
    from medfed.cli.audit import log_file
    from medfed.deployment.agreement import agreement_of
    from medfed.deployment.site_file import read_site
    from medfed.evaluation.rows import FEDERATED
    from medfed.pipeline.dossier.collect import Sources
    from medfed.pipeline.dossier.records import Statements
    from medfed.pipeline.dossier.write import read_statements, write_dossier
    from medfed.runs.folder import RunFolder
    from medfed.wire.signing import Identity

    if model != FEDERATED:
        raise MedfedError(
            "export --dossier: a dossier is of the model that hospitals trained together; omit --model"
        )
    digest = RunFolder(run_folder).read_facts().digest
    identity = Identity(asked.credentials).check() if asked.credentials else None
    sources = Sources(
        statements=read_statements(asked.statements) if asked.statements else Statements(),
        agreements=tuple(agreement_of(read_site(one), digest) for one in asked.sites),
        site_logs=tuple(map(log_file, asked.site_logs)),
        authority=identity.authority if identity else None,
        exported=asked.exported,
    )
    written = write_dossier(run_folder, out, sources, identity)
    answer({"dossier": written, "signed": identity is not None})
    say(f"dossier: {written}")
    if identity is None:
        say("its manifest is not signed: --credentials FOLDER signs it")


@main.command(short_help="Rewrite a run's report, or compare runs.")
@click.argument("run_folders", metavar="RUN...", nargs=-1, required=True, type=PATH)
@click.option(
    "--out", type=PATH, help="Folder for the comparison of several runs; default: beside the first run."
)
def report(run_folders: tuple[Path, ...], out: Path | None) -> None:
    """Rewrite the report of each run from its rows, and for several runs write a page that compares them.

    \b
    medfed report runs/quickstart
    medfed report runs/fedavg runs/fedprox runs/scaffold --out runs/compared
    """
    from medfed.pipeline.report import report_run

    if out is not None and len(run_folders) == 1:
        raise click.UsageError(
            f"--out {out}: this is for the comparison of several runs; the report of one run is in its folder"
        )
    runs = [report_run(folder) for folder in run_folders]
    for run in [] if is_asked() else runs:
        print_result(run)
    compared = None
    if len(run_folders) > 1:
        from medfed.evaluation.report.run_comparison import write_comparison

        compared = write_comparison(run_folders, out or run_folders[0].resolve().parent)
        say(f"compared: {compared}")
    if is_asked():
        answer({"runs": [run_document(run) for run in runs], "compared": compared})


@main.command(short_help="Check a hospital's folder before training.")
@click.argument("folder", type=PATH, required=False)
@click.option("--study", type=PATH, help="Also check whether the folder can take part in this study.")
@click.option(
    "--secret", type=PATH, help="The file with the site's secret, for the case ids and splits of training."
)
@click.option(
    "--site",
    type=PATH,
    help="The site file: check its data as training reads them, under the hospital's own policy.",
)
@click.option("--page", type=PATH, help="Write a page with histograms and thumbnails.")
@layout_option
def check(
    folder: Path | None,
    study: Path | None,
    secret: Path | None,
    site: Path | None,
    page: Path | None,
    layout: Layout | None,
) -> None:
    """List what a hospital's FOLDER (or CSV file) holds, its problems and their remedies. Nothing leaves it.

    The exit code is 0 without problems, 1 with warnings, 2 with errors.

    \b
    medfed check /data/our-hospital
    medfed check /data/our-hospital --study study.yaml --page check.html
    medfed check --site site.yaml --study study.yaml
    """
    from dataclasses import replace

    from medfed.pipeline import check as checks
    from medfed.pipeline.secret_file import read_secret

    own, folder = own_choices(site, folder)
    own = replace(own, layout=layout or own.layout, secret=read_secret(secret) or own.secret)
    sys.exit(checks.check(folder, study, answer, page, own))


main.add_command(train)
main.add_command(demo)
main.add_command(watch_model)
main.add_command(kinds)
main.add_command(new)
main.add_command(fingerprint)
main.add_command(purge)
main.add_command(deidentify)
main.add_command(audit)
main.add_command(approvals)
main.add_command(enrol)
main.add_command(plugins)
main.add_command(watch)
main.add_command(describe)

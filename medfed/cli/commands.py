"""The command line: parse, call, print. What a command does is in `pipeline/` and below, and is loaded
when it is called.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

import medfed
from medfed.cli.audit import audit
from medfed.cli.data import fingerprint, purge
from medfed.cli.enrol import enrol
from medfed.cli.error_handling import told
from medfed.cli.new import new
from medfed.errors import MedfedError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(medfed.__version__, prog_name="medfed")
def main() -> None:
    """One model over many hospitals; images stay where they are.

    A first look:  medfed train configs/quickstart.yaml
    """


@main.command(short_help="Train a study over its hospitals, or take part as one.")
@click.argument("study", type=click.Path(path_type=Path), required=False)
@click.option("--site", type=click.Path(path_type=Path), help="Take part as the hospital in this site file.")
@click.option(
    "--accept", default="", metavar="DIGEST", help="Agree to the study with this digest, with --site."
)
@click.option("--out", type=click.Path(path_type=Path), help="The run folder; runs/NAME if not given.")
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override one key: train.epochs=3."
)
@click.option("--resume", is_flag=True, help="Go on with the run in the run folder from its last round.")
@click.option(
    "--leave-one-out", is_flag=True, help="Also train without each hospital in turn, and test on it."
)
@click.option(
    "--without", metavar="SITE", help="A hospital that withdrew: train again from before it joined."
)
@click.option(
    "--former",
    type=click.Path(path_type=Path),
    help="The run it withdrew from; the newest of the study if not given.",
)
@click.option("--quiet", is_flag=True, help="Print the result only.")
@click.option("--compare", metavar="A,B,...", help="Train once a method and compare: fedavg,fedprox,fedadam.")
@told
def train(
    study: Path | None,
    site: Path | None,
    accept: str,
    out: Path | None,
    overrides: tuple[str, ...],
    resume: bool,
    leave_one_out: bool,
    without: str | None,
    former: Path | None,
    quiet: bool,
    compare: str | None,
) -> None:
    """Train the study in a file over its hospitals, all in this process, and write a run
    folder with a report.

    With --site FILE take part as one hospital in the study that its hub offers: it is held to the hospital's
    policy and shown, and trains when someone has agreed to it. Started again, it goes on where it was.

    \b
    medfed train configs/quickstart.yaml
    medfed train configs/quickstart.yaml --set train.rounds=3 --out runs/short
    medfed train configs/quickstart.yaml --compare fedavg,fedprox,fedadam
    medfed train --site site.yaml
    """
    if compare is not None:
        if study is None or site is not None:
            raise MedfedError(
                "train --compare: name a study file; it compares methods over the hospitals of one process"
            )
        _compared(study, compare.split(","), out, overrides, resume, quiet)
        return None
    from medfed.pipeline.report import headline
    from medfed.pipeline.train import train as train_study
    from medfed.runs.progress import progress_display

    shown = progress_display(quiet)
    if site is not None:
        if study is not None or out is not None or overrides:
            raise MedfedError("train --site: the study comes from the hub; leave STUDY, --out and --set away")
        return _take_part(site, accept, shown)
    if study is None or accept:
        raise MedfedError("train: name a study file, or this hospital's own file with --site (and --accept)")
    try:
        done = train_study(
            study,
            out=out,
            overrides=overrides,
            resume=resume,
            leave_one_out=leave_one_out,
            without=without,
            former=former,
            progress=shown,
        )
    finally:
        shown.stop()
    click.echo(headline(done))
    click.echo(f"report: {done.report}")
    return None


def _take_part(site: Path, accept: str, shown: Any) -> None:
    from medfed.deployment.site_service import take_part
    from medfed.pipeline.report import headline

    def ask(words: str) -> bool:
        click.echo(words)
        return click.confirm("Does this hospital take part?", default=False)

    _end_on_terminate()
    try:
        done = take_part(site, accept=accept, progress=shown, ask=ask if sys.stdin.isatty() else None)
    finally:
        shown.stop()
    if done is not None:
        click.echo(headline(done))
        click.echo(f"report: {done.report}")


def _end_on_terminate() -> None:
    """Let a service manager's SIGTERM end a command as Ctrl-C does."""
    import signal

    def interrupt(number: int, frame: object) -> None:
        # Once: a second signal would break off what the first one's end still puts in order.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


@main.command(short_help="Lead a study across hospitals.")
@click.argument("study", type=click.Path(path_type=Path))
@click.option(
    "--enrolment", type=click.Path(path_type=Path), help="The folder that `medfed enrol init` made."
)
@click.option("--broker", is_flag=True, help="Start and watch over the broker too.")
@click.option("--out", type=click.Path(path_type=Path), help="The run folder; runs/NAME if not given.")
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override one key: train.epochs=3."
)
@click.option("--resume", is_flag=True, help="Go on with the run in the run folder, if there is one.")
@click.option(
    "--without", metavar="SITE", help="A hospital that withdrew: train again from before it joined."
)
@click.option(
    "--former",
    type=click.Path(path_type=Path),
    help="The run it withdrew from; the newest of the study if not given.",
)
@click.option("--quiet", is_flag=True, help="Print the result only.")
@told
def hub(
    study: Path,
    enrolment: Path | None,
    broker: bool,
    out: Path | None,
    overrides: tuple[str, ...],
    resume: bool,
    without: str | None,
    former: Path | None,
    quiet: bool,
) -> None:
    """Lead the study in a file across hospitals, each of which runs `medfed train --site`, and
    write a run folder.

    \b
    medfed hub study.yaml --enrolment enrolment --broker
    """
    from medfed.deployment.hub_service import lead
    from medfed.pipeline.report import headline
    from medfed.runs.progress import progress_display

    shown = progress_display(quiet)
    _end_on_terminate()
    try:
        done = lead(
            study,
            enrolment=enrolment,
            broker=broker,
            out=out,
            overrides=overrides,
            resume=resume,
            without=without,
            former=former,
            progress=shown,
        )
    finally:
        shown.stop()
    click.echo(headline(done))
    click.echo(f"report: {done.report}")


def _compared(
    study: Path, methods: list[str], out: Path | None, overrides: tuple[str, ...], resume: bool, quiet: bool
) -> None:
    from medfed.evaluation.report.method_table import text
    from medfed.pipeline import compare
    from medfed.runs.progress import progress_display

    shown = progress_display(quiet)
    try:
        table, folder = compare.compare(
            study, methods, out=out, overrides=overrides, resume=resume, progress=shown
        )
    finally:
        shown.stop()
    click.echo(text(table))
    click.echo(f"\ncomparison: {folder / 'comparison.html'}")


@main.command(short_help="Measure a run's models on another hospital.")
@click.argument("run_folder", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--data", required=True, type=click.Path(path_type=Path), help="A hospital's folder.")
@click.option(
    "--name", default="evaluated", show_default=True, help="What to call this hospital in the report."
)
@click.option("--all-cases", is_flag=True, help="Measure every case, not only those of the test split.")
@told
def evaluate(run_folder: Path, data: Path, name: str, all_cases: bool) -> None:
    """Measure a run's models on a hospital's cases and write its report again.

    \b
    medfed evaluate runs/quickstart --data /data/our-hospital --name ours
    """
    from medfed.pipeline.evaluate import evaluate as evaluate_run
    from medfed.pipeline.report import headline

    done = evaluate_run(run_folder, data, name=name, all_cases=all_cases)
    click.echo(headline(done))
    click.echo(f"report: {done.report}")


@main.command(short_help="Write a run's predictions for a hospital's images.")
@click.argument("run_folder", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--data", required=True, type=click.Path(path_type=Path), help="A hospital's folder.")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="A new folder for the predictions."
)
@click.option("--model", default="federated", show_default=True, help="One of the run's models.")
@click.option(
    "--name", default="evaluated", show_default=True, help="The hospital's name: it salts the tokens."
)
@told
def predict(run_folder: Path, data: Path, out: Path, model: str, name: str) -> None:
    """Write a run's predictions for every case of a hospital's folder. Labels aren't
    needed; nothing leaves it.

    Masks are NIfTI files and, where the images are DICOM, DICOM SEG that refers to its source series.

    \b
    medfed predict runs/quickstart --data /data/our-hospital --out /data/predicted
    """
    from medfed.pipeline import predict as predictions

    found = predictions.predict(run_folder, data, out, model=model, name=name)
    click.echo(f"predictions: {found}")


@main.command(short_help="Write a run's model as MONAI Bundle, ONNX or TorchScript.")
@click.argument("run_folder", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="A new folder for the export.")
@click.option(
    "--format",
    "format_",
    type=click.Choice(["bundle", "onnx", "torchscript"]),
    default="bundle",
    show_default=True,
    help="What to write.",
)
@click.option("--model", default="federated", show_default=True, help="One of the run's models.")
@told
def export(run_folder: Path, out: Path, format_: str, model: str) -> None:
    """Write a run's model for others to run, checked against the model that was trained.

    \b
    medfed export runs/quickstart --out bundle
    medfed export runs/quickstart --out exported --format onnx
    """
    from medfed.pipeline import export as exports

    click.echo(f"exported: {exports.export(run_folder, out, format=format_, model=model)}")


@main.command(short_help="Write a run's report again, or compare runs.")
@click.argument("run_folders", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Where several runs are compared; beside the first if not given.",
)
@told
def report(run_folders: tuple[Path, ...], out: Path | None) -> None:
    """Write the report of each run again, from its rows, and of several runs a page that compares them.

    \b
    medfed report runs/quickstart
    medfed report runs/fedavg runs/fedprox runs/scaffold --out runs/compared
    """
    from medfed.pipeline.report import headline, report_run

    if out is not None and len(run_folders) == 1:
        raise click.UsageError(
            f"--out {out}: that is where several runs are compared, and one is given; a run's own report lies in its folder"
        )
    for folder in run_folders:
        done = report_run(folder)
        click.echo(headline(done))
        click.echo(f"report: {done.report}")
    if len(run_folders) > 1:
        from medfed.evaluation.report.run_comparison import write_comparison

        click.echo(f"compared: {write_comparison(run_folders, out or run_folders[0].resolve().parent)}")


@main.command(short_help="Look at a hospital's folder before training.")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--study",
    type=click.Path(path_type=Path),
    help="Also say whether the folder can take part in this study.",
)
@click.option(
    "--secret",
    type=click.Path(path_type=Path),
    help="The site's secret, for the tokens and splits of training.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for a program.")
@click.option("--page", type=click.Path(path_type=Path), help="Write a page with histograms and thumbnails.")
@told
def check(folder: Path, study: Path | None, secret: Path | None, as_json: bool, page: Path | None) -> None:
    """Say what is in a hospital's FOLDER (or CSV file), what is wrong with it and what to
    do. Nothing leaves it.

    Exits with 0 where all is well, 1 for warnings, 2 for errors.

    \b
    medfed check /data/our-hospital
    medfed check /data/our-hospital --study study.yaml --page check.html
    """
    from medfed.pipeline import check as checks

    sys.exit(checks.check(folder, study, secret, as_json, page))


@main.command(short_help="Copy DICOM images without the patient.")
@click.argument("source", metavar="IN", type=click.Path(path_type=Path))
@click.argument("target", metavar="OUT", type=click.Path(path_type=Path))
@click.option(
    "--secret", type=click.Path(path_type=Path), help="The site's secret: later exports then fit this one."
)
@click.option(
    "--dates",
    type=click.Choice(["shift", "remove"]),
    default="shift",
    show_default=True,
    help="All of a patient's.",
)
@click.option(
    "--descriptors",
    type=click.Choice(["clean", "remove"]),
    default="clean",
    show_default=True,
    help="Descriptions.",
)
@click.option(
    "--device",
    type=click.Choice(["remove", "keep"]),
    default="remove",
    show_default=True,
    help="Device identity.",
)
@told
def deidentify(
    source: Path, target: Path, secret: Path | None, dates: str, descriptors: str, device: str
) -> None:
    """Write the DICOM images in IN to OUT without what says whose they are (PS3.15 Basic Profile).

    \b
    medfed deidentify /archive/export /data/our-hospital --secret /etc/medfed/secret
    """
    from medfed.pipeline.deidentify import deidentify_folder

    deidentify_folder(source, target, secret, dates, descriptors, device)


@main.command(short_help="List what a study file can name.")
@click.argument("folder", required=False)
@click.option("--schema", is_flag=True, help="Print the JSON schema of a study file, for editors.")
@told
def kinds(folder: str | None, schema: bool) -> None:
    """List what a study file can name, all of it or one FOLDER: rules, networks, losses, ..."""
    from medfed import registry

    if schema:
        import msgspec

        from medfed.study.schema import schema as study_schema

        click.echo(msgspec.json.format(msgspec.json.encode(study_schema()), indent=2).decode())
        return
    if folder is not None and folder not in registry.FOLDERS:
        raise MedfedError(f"kinds: no folder '{folder}'; there are {', '.join(registry.FOLDERS)}")
    for name in [folder] if folder else registry.FOLDERS:
        click.secho(f"{name}", bold=True, nl=False)
        click.echo(f"  {registry.FOLDERS[name].description}")
        for kind, record in registry.kinds(name).items():
            click.echo(f"  {kind:<20} {registry.summary(record)}")
        for reason in registry.broken_entry_points(name).values():
            click.secho("  warning: ", fg="yellow", nl=False)
            click.echo(reason)
        click.echo()


main.add_command(new)
main.add_command(fingerprint)
main.add_command(purge)
main.add_command(audit)
main.add_command(enrol)

"""`medfed audit`: the log of what crossed the wall, and what an update tells. Parsed, called and told here."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from medfed.cli.error_handling import told

_PATH = click.Path(path_type=Path)


@click.group()
def audit() -> None:
    """What crossed a hospital's wall, and what it tells."""


def _log(place: Path) -> Path:
    from medfed.errors import AuditError

    path = place / "audit.jsonl" if place.is_dir() else place
    if not path.is_file():
        raise AuditError(f"{path}: no audit log; give a run folder or its audit.jsonl")
    return path


@audit.command(short_help="Check that a log is as it was written.")
@click.argument("log", type=_PATH)
@click.option("--head", help="The last digest that is known to be right; finds a tail that was cut off.")
@click.option(
    "--credentials",
    type=_PATH,
    help="A folder with the federation's authority.pem; then every line must be signed.",
)
@told
def verify(log: Path, head: str | None, credentials: Path | None) -> None:
    """Check that no line of an audit log was changed, removed, moved or written by anyone but the site.

    \b
    medfed audit verify runs/our-study --credentials credentials
    """
    from medfed.wire.audit_log import verify
    from medfed.wire.signing import Identity

    authority = Identity(credentials).authority if credentials else None
    checked = verify(_log(log), head, authority)
    click.echo(f"{checked.lines} lines, each continues the one before it; the last is {checked.head}")
    if not checked.signed:
        click.echo("no line is signed: whoever could write to this file could have written it anew")
        return
    click.echo(f"{checked.signed} lines are signed by '{checked.signer}'", nl=False)
    click.echo(", enrolled in this federation" if authority else f", certificate {checked.fingerprint}")


@audit.command(short_help="Write a log as a page or a table.")
@click.argument("log", type=_PATH)
@click.option(
    "--out", type=_PATH, default=Path("audit.html"), show_default=True, help="Ends in .html or .csv."
)
@told
def export(log: Path, out: Path) -> None:
    """Write an audit log as a page or a table for people.

    \b
    medfed audit export runs/our-study --out audit.csv
    """
    from medfed.pipeline.audit_report import export_log

    checked = export_log(_log(log), out)
    click.echo(f"{checked.lines} lines in {out}")


@audit.command(short_help="Attack a hospital's own updates first.")
@click.argument("run", type=_PATH)
@click.option("--site", help="The hospital whose updates are attacked; needed where RUN has several.")
@click.option("--gate", type=click.FloatRange(0, 1), help="Exit with 1 if more than this came back: 0.5.")
@click.option(
    "--cases", type=click.IntRange(1, 8), help="Cases in the step that is attacked; the study's batch."
)
@click.option("--steps", type=click.IntRange(1), default=300, show_default=True, help="Of gradient matching.")
@click.option(
    "--shadows",
    type=click.IntRange(0),
    default=16,
    show_default=True,
    help="Models; 0 leaves membership out.",
)
@click.option(
    "--minutes", type=click.FloatRange(0), default=5.0, show_default=True, help="For the shadow models."
)
@click.option(
    "--out", type=_PATH, help="Where text and picture go; the hospital's folder of the run if not given."
)
@told
def leakage(
    run: Path,
    site: str | None,
    gate: float | None,
    cases: int | None,
    steps: int,
    shadows: int,
    minutes: float,
    out: Path | None,
) -> None:
    """Attack a hospital's own updates, before they leave: what could the hub compute back from them?

    RUN is a run folder, or a study file before anything was trained. What is found stays in the hospital's
    folder, with a picture of a patient beside what an attacker would get.

    \b
    medfed audit leakage runs/our-study --site north
    medfed audit leakage study.yaml --site north --gate 0.5
    """
    from medfed.pipeline.leakage.audit import audit as audit_leakage
    from medfed.pipeline.leakage.findings import AttackBudget, describe

    budget = AttackBudget(steps=steps, shadows=shadows, budget_s=60 * minutes, cases=cases)
    findings, picture = audit_leakage(run, site, budget, out)
    click.echo(describe(findings))
    click.echo(f"\npicture, not to be passed on: {picture}")
    if gate is not None and findings.worst > gate:
        click.echo(f"gate: {findings.worst:.2f} is more than {gate:g}", err=True)
        sys.exit(1)

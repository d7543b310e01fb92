"""`medfed plugins`: the digest of a package with kinds of one's own, and what it adds."""

from __future__ import annotations

from pathlib import Path

import click

from medfed.cli.error_handling import Commands
from medfed.cli.messages import answer
from medfed.cli.options import PATH


@click.group(cls=Commands, short_help="Digest and check a package with kinds of your own.")
def plugins() -> None:
    """Packages with kinds of one's own, which a study names under `plugins`."""


@plugins.command(short_help="Print a package's digest, without running its code.")
@click.argument("folder", type=PATH)
def digest(folder: Path) -> None:
    """Print the digest of a package's files, by which a hospital allows it in its site file.

    Read the package first: its code runs with all rights of the account that medfed runs under. This command
    runs none of it.

    \b
    medfed plugins digest plugins/age
    """
    from medfed.study.plugins import plugin_digest

    name, found = folder.resolve().name, plugin_digest(folder)
    if answer({"name": name, "digest": found}):
        return
    click.echo(found)
    click.echo("to allow it, write into the site file:", err=True)
    click.echo(f'plugins:\n  {name}: {{path: {folder}, digest: "{found}"}}', err=True)


@plugins.command("kinds", short_help="Run a package's code, and list the kinds that it adds.")
@click.argument("folder", type=PATH)
def list_kinds(folder: Path) -> None:
    """Import a package, as a study that names it does, and list the kinds that it adds.

    \b
    medfed plugins kinds plugins/age
    """
    from medfed.registry import summary
    from medfed.study.plugins import load_plugin

    added = load_plugin(folder.resolve().name, folder.resolve()).kinds
    plain = {one: {name: summary(kind) for name, kind in kinds.items()} for one, kinds in added.items()}
    if answer({"kinds": plain}):
        return
    for registry, kinds in added.items():
        click.secho(registry, bold=True)
        for name, record in kinds.items():
            click.echo(f"  {name:<20} {summary(record)}")

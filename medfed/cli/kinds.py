"""`medfed kinds`: what a study file can name."""

from __future__ import annotations

import click

from medfed.cli.messages import answer
from medfed.errors import MedfedError


@click.command(short_help="List what a study file can name.")
@click.argument("folder", required=False)
@click.option("--schema", is_flag=True, help="Print the JSON schema of a study file, for editors.")
def kinds(folder: str | None, schema: bool) -> None:
    """List the kinds that a study file can name, of all registries or of one FOLDER such as aggregation."""
    from medfed import registry

    if schema:
        import msgspec

        from medfed.study.schema import schema as study_schema

        schema_now = study_schema()
        if not answer(schema_now):
            click.echo(msgspec.json.format(msgspec.json.encode(schema_now), indent=2).decode())
        return
    if folder is not None and folder not in registry.FOLDERS:
        raise MedfedError(f"kinds: no registry '{folder}'; there are {', '.join(registry.FOLDERS)}")
    names = [folder] if folder else list(registry.FOLDERS)
    if answer({"registries": {name: _plain(name) for name in names}}):
        return
    for name in names:
        click.secho(f"{name}", bold=True, nl=False)
        click.echo(f"  {registry.FOLDERS[name].description}")
        for kind, record in registry.kinds(name).items():
            click.echo(f"  {kind:<20} {registry.summary(record)}")
        for reason in registry.broken_entry_points(name).values():
            click.secho("  warning: ", fg="yellow", nl=False)
            click.echo(reason)
        click.echo()


def _plain(name: str) -> dict[str, object]:
    """Return a registry as --json has it."""
    from medfed import registry

    return {
        "description": registry.FOLDERS[name].description,
        "kinds": {kind: registry.summary(record) for kind, record in registry.kinds(name).items()},
        "broken": list(registry.broken_entry_points(name).values()),
    }

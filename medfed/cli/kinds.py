"""`medfed kinds`: what a study file can name."""

from __future__ import annotations

import click

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

        click.echo(msgspec.json.format(msgspec.json.encode(study_schema()), indent=2).decode())
        return
    if folder is not None and folder not in registry.FOLDERS:
        raise MedfedError(f"kinds: no registry '{folder}'; there are {', '.join(registry.FOLDERS)}")
    for name in [folder] if folder else registry.FOLDERS:
        click.secho(f"{name}", bold=True, nl=False)
        click.echo(f"  {registry.FOLDERS[name].description}")
        for kind, record in registry.kinds(name).items():
            click.echo(f"  {kind:<20} {registry.summary(record)}")
        for reason in registry.broken_entry_points(name).values():
            click.secho("  warning: ", fg="yellow", nl=False)
            click.echo(reason)
        click.echo()

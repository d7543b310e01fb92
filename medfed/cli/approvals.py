"""`medfed approvals`: which studies a hospital approved, and how it revokes that."""

from __future__ import annotations

import getpass
from dataclasses import asdict
from pathlib import Path

import click

from medfed.cli.messages import answer, say
from medfed.cli.options import PATH


@click.command(short_help="List or revoke a hospital's approvals of studies.")
@click.argument("site", type=PATH)
@click.option("--revoke", metavar="DIGEST", help="Revoke the approval of this study; a running site stops.")
def approvals(site: Path, revoke: str | None) -> None:
    """List the studies that the hospital of a site file approved, or revoke an approval.

    A site that is training stops before it sends the next update, and the hub is told that it left.

    \b
    medfed approvals site.yaml
    medfed approvals site.yaml --revoke 3f786850e387
    """
    from medfed.deployment import approvals as work
    from medfed.deployment.site_file import read_site

    settings = read_site(site)
    folder, head = Path(settings.out), work.head_of(Path(settings.secret))
    if revoke is not None:
        digest = work.revoke(folder, revoke, getpass.getuser(), head).digest
        answer({"revoked": digest})
        say(f"revoked: study {digest}")
        return
    known = work.approvals(folder, head)
    if answer({"approvals": [asdict(one) for one in known]}):
        return
    if not known:
        click.echo("no study was approved here yet")
    for one in known:
        click.echo(f"{one.digest}  {'revoked ' if one.revoked else 'approved'}  {one.time[:19]}  by {one.by}")

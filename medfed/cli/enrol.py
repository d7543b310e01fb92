"""`medfed enrol`: certificates for the hub and the hospitals. The work is done in `deployment/enrolment/`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from medfed.cli.error_handling import Commands
from medfed.cli.messages import answer, is_asked, say

if TYPE_CHECKING:
    from medfed.deployment.enrolment.participants import Participant

# The default folders of the coordinator's and a hospital's credentials.
COORDINATOR, HOSPITAL = "enrolment", "credentials"

_FOLDER = click.Path(path_type=Path, file_okay=False)
_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
_coordinator_folder = click.option(
    "--folder", type=_FOLDER, default=COORDINATOR, show_default=True, help="The coordinator's folder."
)
_hospital_folder = click.option(
    "--folder",
    type=_FOLDER,
    default=HOSPITAL,
    show_default=True,
    help="The hospital's folder of credentials.",
)


@click.group(cls=Commands, short_help="Give the hub and the hospitals certificates.")
def enrol() -> None:
    """Enrol the hub and the hospitals: certificates and who holds them."""


@enrol.command(short_help="Coordinator: create a federation.")
@click.argument("name")
@click.option("--host", "hosts", multiple=True, help="Name or address of the broker; may be repeated.")
@click.option(
    "--brokers",
    default="",
    help="Instead of --host: the hosts of three brokers, a.org,b.org,c.org (with port 6222 between them).",
)
@click.option("--port", default=4222, show_default=True, help="NATS over TLS.")
@click.option(
    "--websocket-port", default=443, show_default=True, help="WebSocket over TLS, for strict firewalls."
)
@click.option(
    "--listen",
    default="0.0.0.0",
    show_default=True,
    help="The address on which the broker listens; `host`: each of three at its own.",
)
@click.option(
    "--disk", default="", help="The most that the broker may store, such as 20GB; default: all free space."
)
@_coordinator_folder
def init(
    name: str,
    hosts: tuple[str, ...],
    brokers: str,
    port: int,
    websocket_port: int,
    listen: str,
    disk: str,
    folder: Path,
) -> None:
    """Coordinator: create a federation's authority and the certificates of hub and broker."""
    from medfed.deployment.enrolment import enrol as work
    from medfed.wire.credentials import CLUSTER_PORT

    if bool(hosts) == bool(brokers):
        raise click.UsageError("give --host for one broker, or --brokers for three")
    members = [host.strip() for host in brokers.split(",")] if brokers else []
    fingerprint = work.init(
        folder,
        name,
        members or hosts,
        port,
        websocket_port,
        listen,
        disk,
        CLUSTER_PORT if members else None,
    )
    kept = [{"host": host, "folder": folder / f"broker-{number}"} for number, host in enumerate(members, 1)]
    answer({"federation": name, "folder": folder, "fingerprint": fingerprint, "brokers": kept})
    for number, host in enumerate(members, 1):
        say(f"Copy {folder / f'broker-{number}'} to {host}; there it is run by `medfed broker`.")
    say(f"federation {name} is created. Back up {folder}: its authority.key signs every certificate.")
    say(f"The authority's fingerprint, to read out to the hospitals:\n  {fingerprint}")


@enrol.command(short_help="Hospital: create a key and a request.")
@click.argument("name")
@_hospital_folder
def site(name: str, folder: Path) -> None:
    """Hospital: create a private key, which stays here, and a request for a certificate."""
    from medfed.deployment.enrolment import enrol as work

    path, fingerprint = work.request(folder, name)
    answer({"site": name, "request": path, "fingerprint": fingerprint})
    say(f"Send this file to the coordinator: {path}")
    say(f"Its fingerprint, to read out to the coordinator:\n  {fingerprint}")


@enrol.command(short_help="Coordinator: answer a request with a kit.")
@click.argument("request", type=_FILE)
@click.option(
    "--days",
    type=click.IntRange(1, 3650),
    default=730,
    show_default=True,
    help="How long the certificate is valid.",
)
@click.option("--yes", is_flag=True, help="Skip the question: the fingerprint was already compared.")
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="The kit's path; default: NAME.kit."
)
@_coordinator_folder
def sign(request: Path, days: int, yes: bool, out: Path | None, folder: Path) -> None:
    """Coordinator: answer a hospital's request with a kit."""
    from medfed.deployment.enrolment import enrol as work

    name, fingerprint = work.request_fingerprint(request)
    if not (yes and is_asked()):  # what is to be compared is shown beside a document, too
        click.echo(f"site {name} asks for a certificate; its fingerprint is\n  {fingerprint}")
    if not yes:
        click.confirm("Does the hospital read out the same?", abort=True)
    kit = out or Path(f"{name}.kit")
    signed = work.sign(folder, request, kit, days)
    expires = f"{signed.expires:%Y-%m-%d}"
    answer({"site": name, "fingerprint": fingerprint, "kit": kit, "expires": expires})
    say(f"Send this file to {name}: {kit} (it contains no secret; the certificate is valid until {expires})")


@enrol.command(short_help="Hospital: install the kit.")
@click.argument("kit", type=_FILE)
@click.option("--authority", default="", help="The fingerprint that the coordinator read out.")
@_hospital_folder
def accept(kit: Path, authority: str, folder: Path) -> None:
    """Hospital: install the coordinator's kit."""
    from medfed.deployment.enrolment import enrol as work
    from medfed.wire.credentials import broker_urls

    accepted = work.accept(folder, kit, authority)
    urls = list(broker_urls(folder))
    answer({"site": accepted.site, "expires": f"{accepted.expires:%Y-%m-%d}", "urls": urls})
    say(f"site {accepted.site} is enrolled until {accepted.expires:%Y-%m-%d}; it reaches the hub at")
    for url in urls:
        say(f"  {url}")


@enrol.command(short_help="Coordinator: revoke a certificate.")
@click.argument("name")
@click.option("--serial", default="", help="Only the certificate with this serial number.")
@_coordinator_folder
def revoke(name: str, serial: str, folder: Path) -> None:
    """Coordinator: revoke a site's certificates; a running hub and broker apply it at once."""
    from medfed.deployment.enrolment import enrol as work

    revoked = work.revoke(folder, name, serial)
    answer({"revoked": [{"site": one.site, "serial": one.serial} for one in revoked]})
    for one in revoked:
        say(f"revoked: site {one.site}, serial {one.serial}")


@enrol.command(short_help="Coordinator: sign the list of revoked certificates anew.")
@_coordinator_folder
def refresh(folder: Path) -> None:
    """Coordinator: sign the list of revoked certificates anew, which is valid for a year."""
    from medfed.deployment.enrolment import enrol as work

    until = work.refresh(folder)
    answer({"valid_until": f"{until:%Y-%m-%d}"})
    say(f"the list of revoked certificates is valid until {until:%Y-%m-%d}; hospitals get it with the models")


@enrol.command(short_help="Coordinator: let enrolled hospitals take part in a study.")
@click.argument("study", type=_FILE)
@click.option(
    "--site", "sites", multiple=True, help="A hospital to admit; default: those that the study names."
)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="As given to `medfed hub`.")
@_coordinator_folder
def study(study: Path, sites: tuple[str, ...], overrides: tuple[str, ...], folder: Path) -> None:
    """Coordinator: let enrolled hospitals read and write a study at the broker.

    The hub does this for the hospitals that the study names, where it runs beside the enrolment. With --site,
    a hospital that the study does not name joins it while it runs, if the study allows it (sampling.joining).
    """
    from medfed.deployment.enrolment.studies import admit

    admitted = admit(folder, study, sites, overrides)
    answer({"study": admitted.digest, "sites": admitted.sites})
    say(f"study {admitted.digest[:12]}: {', '.join(admitted.sites)} may take part; a running broker and")
    say("hub apply it within a minute. A hospital sees the study when its service runs, and approves it.")


@enrol.command("list", short_help="Coordinator: list the certificates.")
@_coordinator_folder
def list_(folder: Path) -> None:
    """Coordinator: list every certificate, its expiry and whether it was revoked."""
    from medfed.deployment.enrolment.participants import participants
    from medfed.wire.credentials import read_federation

    read_federation(folder)
    every = participants(folder)
    answer({"certificates": [_plain(one) for one in every]})
    if not every:
        say("no site is enrolled yet; `medfed enrol sign` answers a hospital's request")
    for one in every:
        left = f", {one.days_left} days left" if one.status in ("valid", "expires soon") else ""
        say(f"{one.site:24} {one.status:12} until {one.expires:%Y-%m-%d}{left}  serial {one.serial}")


def _plain(one: Participant) -> dict[str, object]:
    """Return a certificate as --json has it."""
    is_valid = one.status in ("valid", "expires soon")
    return {
        "site": one.site,
        "status": one.status,
        "expires": f"{one.expires:%Y-%m-%d}",
        "days_left": one.days_left if is_valid else None,
        "serial": one.serial,
    }

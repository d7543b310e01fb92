"""A broker's configuration, made from the participants and the studies; the template is `nats.conf.jinja`.

Each site has an account that imports exactly its own subjects and the hub's models; only the hub's account
has JetStream. One shared account with permissions per user is not enough: a site could then make the server
write to another site's subject by naming it as the reply subject of an allowed request.

The brokers of a cluster run on machines of their own, each from a copy of its folder in the enrolment. They
let each other in by a name that only brokers' certificates hold; a site's certificate opens no route. Who may
do what (`Rights`) comes to them from the hub, see `rights.py`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec
from cryptography import x509

from medfed.deployment.enrolment.participants import participant, participants
from medfed.errors import DECODING_ERRORS, EnrolmentError
from medfed.exchange._admitted import admitted_studies, record_admitted
from medfed.exchange._study_store import OFFERS
from medfed.files import lock, write_whole
from medfed.wire.credentials import BrokerPlace, Federation, read_federation
from medfed.wire.signing import BROKER, HUB, SITE
from medfed.wire.templates import render
from medfed.wire.untrusted_text import for_text_template

# In the folder of each broker of a cluster: who may do what, which the enrolment holds too, and which broker
# of which federation this is.
RIGHTS, MEMBER = "rights.json", "broker.json"


class SiteRights(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A site's account at the broker: its certificates' names, and the subjects that it may use.

    It reads the models of its own studies and what the hub offers to it, and writes under its own name.
    """

    site: str
    users: list[str]
    spaces: list[str]

    @property
    def account(self) -> str:
        # The prefix keeps a site's name apart from the server's own accounts ($SYS, $G).
        return f"SITE_{self.site}"

    @property
    def services(self) -> list[str]:
        return [
            *(f"up.{space}.{self.site}.>" for space in self.spaces),
            f"$JS.API.DIRECT.GET.UP_{self.site}.>",
            *(f"$JS.API.DIRECT.GET.GLOB.{topic}.>" for topic in self._topics),
        ]

    @property
    def streams(self) -> list[str]:
        """The subjects of the hub's manifests and control messages that this site receives."""
        return [f"{topic}.*.m" for topic in self._topics]

    @property
    def _topics(self) -> list[str]:
        return [f"glob.{OFFERS}{self.site}", *(f"glob.{space}" for space in self.spaces)]


class Rights(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="is", tag="rights"):
    """Who may do what at the brokers: the name of the hub's certificate, and the sites' accounts.

    A broker takes those of a higher version only.
    """

    version: int
    hub_user: str
    sites: list[SiteRights]


class Member(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which broker of a federation a folder is for."""

    federation: Federation
    folder: str

    @property
    def place(self) -> BrokerPlace:
        """Where it runs."""
        return next(place for place in self.federation.brokers if place.folder == self.folder)


def cluster_user(federation: str) -> str:
    """Return the name that every broker of a federation's cluster has in its certificate, and nobody else."""
    return f"cluster.{BROKER}.{federation}.medfed"


def rights_of(folder: Path) -> Rights:
    """Return the rights that a coordinator's folder states, under the version of those that it had before."""
    users: dict[str, list[str]] = {}
    for holder in participants(folder):
        if not holder.revoked and holder.role == SITE:
            users.setdefault(holder.site, []).append(holder.user)
    hub = x509.load_pem_x509_certificate((folder / HUB / "identity.pem").read_bytes())
    admitted = admitted_studies(folder)
    sites = [SiteRights(site, users[site], _spaces_of(site, admitted)) for site in sorted(users)]
    return Rights(read_version(folder), participant(hub, revoked=False).user, sites)


def read_version(folder: Path) -> int:
    """Return the version of the rights in a folder, 0 if there are none."""
    rights = read_rights(folder)
    return 0 if rights is None else rights.version


def _spaces_of(site: str, admitted: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the studies that a site may use, as tokens of subjects; all of them where none was admitted."""
    spaces = [space for space, sites in sorted(admitted.items()) if site in sites]
    return spaces if admitted else ["*"]


def configuration(folder: Path) -> str:
    """Return the nats-server configuration of a federation with one broker (the coordinator's folder).

    Its disk needs room for two rounds: twice (sites + 1) models.
    """
    federation = read_federation(folder)
    return _rendered(federation, federation.brokers[0], rights_of(folder), (folder / BROKER).resolve())


def _rendered(federation: Federation, place: BrokerPlace, rights: Rights, home: Path) -> str:
    """Return a broker's configuration; `home` is its folder, relative to where its server is started."""
    return render(
        Path(__file__).with_name("nats.conf.jinja"),
        show=for_text_template,
        filters={"q": _quoted},
        federation=federation,
        place=place,
        name=f"medfed-{federation.name}",
        broker=home,
        hub_user=rights.hub_user,
        cluster_user=cluster_user(federation.name),
        sites=rights.sites,
    )


def _quoted(value: object) -> str:
    return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'


def admit_study(folder: Path, study_digest: str, sites: Iterable[str], *, keep: bool = False) -> None:
    """Let these sites, and no others, read and write a study at the broker; a running one applies it at once.

    Before the first study is admitted so, every site may read every study. With `keep` those that were
    admitted to the study before stay.
    """
    if record_admitted(folder, study_digest, sites, keep=keep):
        write_configuration(folder)


def write_configuration(folder: Path, *, anew: bool = False) -> None:
    """Write the configuration into the coordinator's folder, where a running broker notices the change.

    The rights of a cluster get a higher version if they have changed, or `anew`: after a back-up was
    restored its brokers may hold newer ones.
    """
    federation = read_federation(folder)
    if not federation.cluster:
        write_whole(folder / BROKER / "nats.conf", f"{configuration(folder)}\n")
        return
    with (folder / RIGHTS).with_suffix(".lock").open("w") as file:
        lock(file)
        rights, before = rights_of(folder), read_rights(folder)
        if anew or rights != before:
            rights = msgspec.structs.replace(rights, version=max(rights.version + 1, int(time.time())))
            write_whole(folder / RIGHTS, msgspec.json.encode(rights), durable=True)
        for place in federation.brokers:
            member = Member(federation, place.folder)
            write_whole(folder / place.folder / MEMBER, msgspec.json.format(msgspec.json.encode(member)))
            take_rights(folder / place.folder, rights)


def read_rights(folder: Path) -> Rights | None:
    """Return the rights in a folder, None if it has none."""
    path = folder / RIGHTS
    return msgspec.json.decode(path.read_bytes(), type=Rights) if path.exists() else None


def take_rights(folder: Path, rights: Rights) -> bool:
    """Write a broker's configuration into its folder; return False if it has rights of a higher version."""
    if read_version(folder) > rights.version:
        return False
    member = read_member(folder)
    text = f"{_rendered(member.federation, member.place, rights, Path())}\n"
    path = folder / "nats.conf"
    if not path.exists() or path.read_text() != text:
        write_whole(path, text)
    write_whole(folder / RIGHTS, msgspec.json.encode(rights), durable=True)
    return True


def read_member(folder: Path) -> Member:
    """Return which broker a folder is for.

    Raises:
        EnrolmentError: if it is not the folder of a cluster's broker.
    """
    try:
        return msgspec.json.decode((folder / MEMBER).read_bytes(), type=Member)
    except (OSError, *DECODING_ERRORS) as error:
        raise EnrolmentError(
            f"this is no folder of a broker ({type(error).__name__}): `medfed enrol init --brokers` makes "
            "one for each broker of a cluster, such as enrolment/broker-1; a federation with one broker runs "
            "it with `medfed hub --broker`"
        ) from None

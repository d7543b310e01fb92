"""Enrolment: the federation's certificate authority, requests, startup kits, revocation and expiry.

    the coordinator    init     creates an authority and the certificates of hub and broker
    a hospital         request  creates a private key, which never leaves, and a certificate request
    the coordinator    sign     writes a kit: the certificate, the authority and the hub's addresses
    the hospital       accept   checks the kit against the key and unpacks it beside the key
    the coordinator    revoke   adds to the list of revoked certificates, which goes to every hospital
                       refresh  signs that list anew, before it expires, and renews hub and broker

All formats are standard and readable with openssl: PKCS#8 and X.509 in PEM, PKCS#10 for a request, Ed25519
keys. Two people verify a request or an authority by comparing the fingerprint that both sides print.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from medfed.deployment.enrolment.configuration import cluster_user, write_configuration
from medfed.deployment.enrolment.participants import Participant, participant, participants
from medfed.errors import EnrolmentError, ExchangeError
from medfed.files import private_folder, write_whole
from medfed.wire import revocations
from medfed.wire.credentials import (
    BROKERS_FILE,
    KIT_FORMAT,
    NATS_PORT,
    WEBSOCKET_PORT,
    BrokerPlace,
    Federation,
    StartupKit,
    read_federation,
)
from medfed.wire.signing import BROKER, EARLIER, HUB, SITE, role, role_of, serial_number

# Certificates are valid for two years, so that none expires during a study; the authority's for ten.
PARTY_DAYS, AUTHORITY_DAYS = 730, 3650

# How many brokers a cluster has.
BROKERS = 3

# A clock may be wrong by hours: a new certificate is already valid on a machine that is a day behind.
BACKDATED = timedelta(days=1)

_FEDERATION = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
_SITE = re.compile(r"[A-Za-z0-9_-]{1,64}")


# -------------------------------------------------------------------------------------------- the coordinator


def init(
    folder: Path,
    name: str,
    hosts: Sequence[str],
    port: int = NATS_PORT,
    websocket_port: int = WEBSOCKET_PORT,
    listen: str = "0.0.0.0",
    disk: str = "",
    cluster_port: int | None = None,
) -> str:
    """Create a federation's authority and the identities of hub and broker; return its fingerprint.

    `hosts` are the names or addresses under which hospitals reach the broker. With a `cluster_port` each of
    them has a broker of its own, and the three store everything together.

    Raises:
        EnrolmentError: if the folder already has an authority, a name is invalid, or a cluster has not three
            hosts.
    """
    if (folder / "authority.key").exists():
        raise EnrolmentError("enrol init: this folder already has an authority; choose another folder")
    if not _FEDERATION.fullmatch(name):
        raise EnrolmentError(
            f"enrol init: '{name}': a federation's name has 1 to 40 lowercase letters, digits and '-'"
        )
    if not hosts:
        raise EnrolmentError("enrol init: give at least one host under which hospitals reach the broker")
    hosts = [host.removeprefix("[").removesuffix("]") for host in hosts]
    if cluster_port is not None and (len(hosts) != BROKERS or len(set(hosts)) != BROKERS):
        raise EnrolmentError(
            f"enrol init: {len(set(hosts))} brokers' hosts were given, expected {BROKERS} that differ: any "
            "one of three may fail; two would be worse than one, as both must then run"
        )
    private_folder(folder)
    key = Ed25519PrivateKey.generate()
    subject = _subject(f"medfed authority of {name}", name)
    authority = (
        _builder(subject, subject, key.public_key(), AUTHORITY_DAYS)
        .serial_number(x509.random_serial_number())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(sign_certificates=True), critical=True)
        .sign(key, None)
    )
    _write_key(folder / "authority.key", key)
    write_whole(folder / "authority.pem", authority.public_bytes(Encoding.PEM))
    federation = Federation(name, list(hosts), port, websocket_port, listen, disk)
    if cluster_port is not None:
        federation = msgspec.structs.replace(federation, cluster=True, cluster_port=cluster_port)
    write_whole(folder / "federation.json", msgspec.json.format(msgspec.json.encode(federation)))
    for own_folder, place in _own(folder):
        own = Ed25519PrivateKey.generate()
        _write_key(own_folder / "identity.key", own)
        _issue_own(folder, own_folder, place, own.public_key())
        write_whole(own_folder / "authority.pem", authority.public_bytes(Encoding.PEM))
    private_folder(folder / "sites")
    refresh(folder)
    return fingerprint(authority.public_key())


def sign(folder: Path, request: Path, kit: Path, days: int = PARTY_DAYS) -> Participant:
    """Write the kit that answers a hospital's request; compare `request_fingerprint` with the hospital first.

    Raises:
        EnrolmentError: if the request is unreadable, or its name is not a valid site name.
    """
    signing_request = _request(request)
    site = _common_name_of(signing_request)
    _check_site_name(site, "enrol sign: the request names")
    public = signing_request.public_key()
    assert isinstance(public, Ed25519PublicKey)
    certificate = _issue(folder, site, public, (), days)
    pem = certificate.public_bytes(Encoding.PEM).decode()
    write_whole(folder / "sites" / f"{site}.{serial_number(certificate)}.pem", pem)
    refresh(folder)
    federation, authority = read_federation(folder), (folder / "authority.pem").read_text()
    answer = StartupKit(KIT_FORMAT, federation.name, site, federation.urls, pem, authority)
    write_whole(kit, msgspec.json.format(msgspec.json.encode(answer)))
    return participant(certificate, revoked=False)


def revoke(folder: Path, site: str, serial: str = "") -> list[Participant]:
    """Revoke a site's certificates, or only the one with a serial number, and return them.

    The hub's and the broker's lists are updated, and the signed one that goes to every hospital.

    Raises:
        EnrolmentError: if the site has no such valid certificate, or if authority.key is not here; hub and
            broker refuse the site all the same then.
    """
    chosen = [
        holder
        for holder in participants(folder)
        if holder.site == site and serial in ("", holder.serial) and not holder.revoked
    ]
    if not chosen:
        valid = ", ".join(_valid_sites(folder)) or "none"
        raise EnrolmentError(
            f"enrol revoke: site '{site}' has no valid certificate; sites that have one: {valid}"
        )
    path = folder / HUB / "revoked.txt"
    earlier = path.read_text() if path.exists() else ""
    write_whole(path, earlier + "".join(f"{holder.serial}\n" for holder in chosen))
    _update_hub(folder)
    try:
        refresh(folder)
    except ExchangeError as error:
        raise EnrolmentError(
            f"enrol revoke: hub and broker refuse site '{site}' from now on, the hospitals do not yet: "
            f"{error}"
        ) from None
    return chosen


def refresh(folder: Path) -> datetime:
    """Sign the list of revoked certificates anew, and return until when it is valid.

    It is sent to every hospital with each model. Certificates of hub and broker that state no role are
    renewed, under the same keys.

    Raises:
        EnrolmentError: if authority.key is not here.
    """
    authority = x509.load_pem_x509_certificate((folder / "authority.pem").read_bytes())
    key, path = _authority_key(folder), folder / HUB / revocations.FILE
    for own_folder, place in _own(folder):
        certificate = x509.load_pem_x509_certificate((own_folder / "identity.pem").read_bytes())
        if role(certificate) != (HUB if place is None else BROKER):
            public = certificate.public_key()
            assert isinstance(public, Ed25519PublicKey)
            _issue_own(folder, own_folder, place, public)
    own = folder / HUB / "revoked.txt"
    serials = own.read_text().split() if own.exists() else []
    previous = path.read_bytes() if path.exists() else b""
    signed = revocations.write_revocations(key, authority, serials, previous)
    write_whole(path, signed)
    _update_hub(folder, anew=True)
    return revocations.read_revocations(signed, authority).expires


def _authority_key(folder: Path) -> Ed25519PrivateKey:
    try:
        key = load_pem_private_key((folder / "authority.key").read_bytes(), password=None)
    except OSError:
        raise EnrolmentError(
            "this folder has no authority.key, which signs certificates and the list of revoked ones; copy "
            "hub/revoked.txt to where it is, run `medfed enrol refresh` there, and copy hub/revoked.crl back"
        ) from None
    assert isinstance(key, Ed25519PrivateKey)
    return key


def _own(folder: Path) -> list[tuple[Path, BrokerPlace | None]]:
    """Return the folders of the hub, which has no place, and of the brokers."""
    brokers = read_federation(folder).brokers
    return [(folder / HUB, None), *((folder / place.folder, place) for place in brokers)]


def _issue_own(folder: Path, own: Path, place: BrokerPlace | None, public: Ed25519PublicKey) -> None:
    """Write the certificate of the hub, or of the broker at a place."""
    if place is None:
        certificate = _issue(folder, HUB, public, ())
    elif place.others:
        # Brokers of a cluster are each other's clients too, and know each other by a name.
        names = [*place.names, cluster_user(read_federation(folder).name)]
        purposes = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)
        certificate = _issue(folder, BROKER, public, names, purposes=purposes)
    else:
        certificate = _issue(folder, BROKER, public, place.names, purposes=(ExtendedKeyUsageOID.SERVER_AUTH,))
    write_whole(own / "identity.pem", certificate.public_bytes(Encoding.PEM))


# ---------------------------------------------------------------------------------------------- a hospital


def request(folder: Path, site: str) -> tuple[Path, str]:
    """Create a private key and a certificate request; return the request's path and fingerprint.

    Raises:
        EnrolmentError: if the site's name is invalid.
    """
    _check_site_name(site, "enrol site:")
    private_folder(folder)
    # Stored beside any key in use, which is replaced only when the new certificate's kit is accepted.
    key = Ed25519PrivateKey.generate()
    _write_key(folder / "requested.key", key)
    signing_request = x509.CertificateSigningRequestBuilder().subject_name(_subject(site)).sign(key, None)
    path = folder / f"{site}.request.pem"
    write_whole(path, signing_request.public_bytes(Encoding.PEM))
    return path, fingerprint(key.public_key())


def accept(folder: Path, kit: Path, authority: str = "") -> Participant:
    """Check a kit against the key created by `request`, and install both as this folder's identity.

    `authority`, if given, is the fingerprint that the coordinator reads out; the kit's must equal it.

    Raises:
        EnrolmentError: if the kit is unreadable or expired, or belongs to another key or authority.
    """
    try:
        startup_kit = msgspec.json.decode(kit.read_bytes(), type=StartupKit)
        certificate = x509.load_pem_x509_certificate(startup_kit.certificate.encode())
        issuer = x509.load_pem_x509_certificate(startup_kit.authority.encode())
        certificate.verify_directly_issued_by(issuer)
    except Exception as error:  # noqa: BLE001 - cryptography's errors have no common class
        raise EnrolmentError(
            f"enrol accept: the kit is unreadable ({type(error).__name__}); ask for it again"
        ) from None
    if startup_kit.format != KIT_FORMAT:
        raise EnrolmentError(
            f"enrol accept: the kit's format is '{startup_kit.format[:30]}', this medfed reads '{KIT_FORMAT}'"
        )
    issued_by = fingerprint(issuer.public_key())
    if authority and _without_spaces(authority) != _without_spaces(issued_by):
        raise EnrolmentError(
            f"enrol accept: the kit was issued by the authority {issued_by}, expected {authority}; "
            "do not use it"
        )
    if role(certificate) != SITE:
        raise EnrolmentError(
            f"enrol accept: the kit's certificate states the role '{role(certificate)}', expected '{SITE}'; "
            "ask the coordinator to sign the request again, with this version of medfed"
        )
    until = certificate.not_valid_after_utc
    if until < datetime.now(UTC):
        raise EnrolmentError(
            f"enrol accept: the kit's certificate expired on {until:%Y-%m-%d %H:%M} UTC, and the clock here "
            f"says {datetime.now(UTC):%Y-%m-%d %H:%M}; ask the coordinator for a new kit, or correct this "
            "machine's clock"
        )
    for name in ("requested.key", "identity.key"):
        path = folder / name
        if path.exists() and _public(path) == certificate.public_key():
            break
    else:
        raise EnrolmentError(
            "enrol accept: the kit does not belong to a key in this folder; accept it where `medfed enrol "
            "site` was run, or make a new request"
        )
    _keep_earlier(folder, certificate)
    write_whole(folder / "identity.pem", startup_kit.certificate.encode())
    write_whole(folder / "authority.pem", startup_kit.authority.encode())
    write_whole(folder / "kit.json", kit.read_bytes())
    if name == "requested.key":
        path.replace(folder / "identity.key")
    return participant(certificate, revoked=False)


def _keep_earlier(folder: Path, certificate: x509.Certificate) -> None:
    """Keep the certificate that a new one replaces: it signed the first lines of the audit logs."""
    path = folder / "identity.pem"
    if not path.exists():
        return
    replaced = x509.load_pem_x509_certificate(path.read_bytes())
    if replaced != certificate:
        write_whole(folder / EARLIER.replace("*", serial_number(replaced)), path.read_bytes())


# ---------------------------------------------------------------------------------------------- both sides


def fingerprint(public: object) -> str:
    """Return the SHA-256 of a public key as 16 groups of 4 hex digits, which two people can compare aloud."""
    assert isinstance(public, Ed25519PublicKey)
    digest = hashlib.sha256(public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()
    return " ".join(digest[at : at + 4] for at in range(0, 64, 4))


def request_fingerprint(path: Path) -> tuple[str, str]:
    """Return a request's site and its key's fingerprint, to compare with what the hospital reads out."""
    signing_request = _request(path)
    return _common_name_of(signing_request), fingerprint(signing_request.public_key())


def _request(path: Path) -> x509.CertificateSigningRequest:
    try:
        signing_request = x509.load_pem_x509_csr(path.read_bytes())
    except (OSError, ValueError) as error:
        raise EnrolmentError(
            f"enrol sign: the request is unreadable ({type(error).__name__}); ask for it again"
        ) from None
    is_ed25519 = isinstance(signing_request.public_key(), Ed25519PublicKey)
    if not (is_ed25519 and signing_request.is_signature_valid):
        raise EnrolmentError(
            "enrol sign: the request was not made by `medfed enrol site`: its key or its signature is invalid"
        )
    return signing_request


def _common_name_of(signing_request: x509.CertificateSigningRequest) -> str:
    names = signing_request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else ""


def _check_site_name(name: str, where: str) -> None:
    if not _SITE.fullmatch(name) or name.lower() in (HUB, BROKER):
        raise EnrolmentError(
            f"{where} '{name[:80]}'; a site's name has 1 to 64 letters, digits, '-' or '_', and is not "
            "'hub' or 'broker'"
        )


def _without_spaces(text: str) -> str:
    return "".join(text.split()).lower()


def _subject(name: str, federation: str = "", unit: str = "") -> x509.Name:
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, name)]
    if unit:
        attributes.insert(0, x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, unit))
    if federation:
        attributes.insert(0, x509.NameAttribute(NameOID.ORGANIZATION_NAME, federation))
    return x509.Name(attributes)


def _issue(
    folder: Path,
    party: str,
    public: Ed25519PublicKey,
    hosts: Sequence[str],
    days: int = PARTY_DAYS,
    purposes: Sequence[x509.ObjectIdentifier] = (ExtendedKeyUsageOID.CLIENT_AUTH,),
) -> x509.Certificate:
    key = _authority_key(folder)
    authority = x509.load_pem_x509_certificate((folder / "authority.pem").read_bytes())
    federation = read_federation(folder).name
    serial = x509.random_serial_number()
    # The broker knows a client by this name. It contains the serial number, so that a revoked certificate
    # does not become valid again when the site gets a new one.
    names: list[x509.GeneralName] = [x509.DNSName(f"{serial:x}.{party}.{federation}.medfed")]
    for host in hosts:
        try:
            names.append(x509.IPAddress(ip_address(host)))
        except ValueError:
            names.append(x509.DNSName(host))
    return (
        _builder(_subject(party, federation, role_of(party)), authority.subject, public, days)
        .serial_number(serial)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(), critical=True)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .sign(key, None)
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, public: Ed25519PublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _usage(sign_certificates: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _valid_sites(folder: Path) -> list[str]:
    return sorted({holder.site for holder in participants(folder) if not holder.revoked})


def _update_hub(folder: Path, *, anew: bool = False) -> None:
    """Write the lists of sites and of a cluster's brokers for the hub, and the brokers' configuration."""
    write_whole(folder / HUB / "sites.txt", "".join(f"{site}\n" for site in _valid_sites(folder)))
    federation = read_federation(folder)
    if federation.cluster:
        write_whole(folder / HUB / BROKERS_FILE, "".join(f"{host}\n" for host in federation.hosts))
    write_configuration(folder, anew=anew)


def _public(path: Path) -> object:
    return load_pem_private_key(path.read_bytes(), password=None).public_key()


def _write_key(path: Path, key: Ed25519PrivateKey) -> None:
    # Created with mode 0600 rather than changed to it, so that others can never read it.
    data = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    write_whole(path, data, mode=0o600)

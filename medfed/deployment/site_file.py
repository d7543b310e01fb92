"""A hospital's own file: where its data are, how it reaches the hub, and what it allows.

The file never leaves the hospital.

    name: north
    data: /srv/images
    exchange: {kind: nats, credentials: credentials}
    policy: {minimum_cases: 20, privacy: [client_dp]}

It is read as strictly as a study file, and every error gives the line, the key and the nearest valid name.
Paths are relative to the file.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from medfed.data.layouts import Layout, layout_of
from medfed.data.own_data import OwnData
from medfed.data.reading import SiteReading
from medfed.data.settings import AnyLayout, Images
from medfed.data.splits import MIN_SECRET_BYTES
from medfed.deployment.policy import Policy
from medfed.errors import DataError, StudyError
from medfed.exchange import Exchange
from medfed.exchange.memory import Memory
from medfed.files import private_folder
from medfed.registry import using_kinds
from medfed.runs.trackers import missing_packages, outside
from medfed.study.plugins import Digest, PluginName, added_by
from medfed.study.reading import load_all, parse_yaml, plugins_in, read_text
from medfed.study.study import AnyExchange, AnyTracker, Count, SiteName, Study

# HMAC-SHA256, which makes tokens and splits, cannot use more random bytes.
SECRET_BYTES = 32


class AllowedPlugin(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A package that a hospital allows: the folder of its own copy, and the digest of that copy's files."""

    path: str
    digest: Digest


class SiteFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The settings of one hospital.

    name: its enrolled name.  data: its folder of images, or its CSV file.  exchange: how it reaches the hub.
    secret: the file that salts tokens and splits, made at the first use; if it is lost, the splits change.
    out: the folder that holds each study's run folder and the approvals.  policy: what studies may do here.
    cache: the folder where a study with `data.cache: disk` stores prepared images, if not inside the data
    folder.  devices: how many GPUs (or processes) train one model.  accelerator: `auto` uses a GPU if there
    is one.  start: the checkpoint that a study begins with, if it has one; it must match the approved digest.
    classes: the hospital's own words for the classes of its studies, such as {Leber: liver}; where its labels
    hold numbers that nothing names, a number stands for the word ({1: liver}); `background` leaves a
    structure out.
    channels: likewise its own words for the channels of its studies, such as {flair_tra: flair}.
    columns: the site's own headings for the columns of a study's table, such as {age: Alter, patient: MRN};
    `patient` and `split` stand for the columns of ids and splits, whatever the study calls them; of a table
    beside images, `case` and `patient` for the columns that name whose row it is.
    table: the file of the table beside its images, if it is not in the data folder under a usual name.
    read: how images are read here, more strictly than the study says, and the most memory for one:
    {uneven: refuse, max_bytes: 4000000000}.
    layout: how the cases lie in the folder of images, as in a study's `data.layout`, before which it goes.
    plugins: the packages whose code studies may run here, each by the digest of its files, with the folder of
    this hospital's own copy: {age: {path: plugins/age, digest: "sha256:..."}}.
    labelled: the structures that this hospital draws, by the studies' names, if not all of them; what it does
    not draw is not measured here, and a study that would learn from it that there is none is refused.
    trackers: where the numbers of this hospital's training go beside its run folder, such as [{kind: csv},
    {kind: mlflow, url: https://mlflow.hospital.example}]: servers of the hospital, never the hub's.
    give_up_hours: the site stops after so many hours without a sign of life from the hub, or without a study
    that is offered; null waits for ever.
    checkpoint_minutes: in a round of several epochs, a checkpoint is also written at an epoch's end, once the
    last one is so many minutes old; a site that was killed goes on from there. 0 after each epoch, null after
    merges only.
    """

    name: SiteName
    data: str
    exchange: AnyExchange
    secret: str = "secret"
    out: str = "runs"
    policy: Policy = Policy()
    cache: str | None = None
    devices: Count = 1
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    start: str | None = None
    classes: dict[str | int, str] = {}
    channels: dict[str, str] = {}
    columns: dict[str, str] = {}
    table: str | None = None
    read: SiteReading = SiteReading()
    layout: AnyLayout | str | None = None
    plugins: dict[PluginName, AllowedPlugin] = {}
    labelled: list[str] = []
    trackers: tuple[AnyTracker, ...] = ()
    give_up_hours: Annotated[float, msgspec.Meta(gt=0)] | None = 168.0
    checkpoint_minutes: Annotated[float, msgspec.Meta(ge=0)] | None = 10.0

    @property
    def own_data(self) -> OwnData:
        """The site's own table beside its images, its headings of a table, and its words for channels."""
        return OwnData(self.table, self.columns, self.channels)

    @property
    def given_layout(self) -> Layout | None:
        """The layout that the site gives, or None."""
        return None if self.layout is None else layout_of(self.layout)


def give_up_s(site: SiteFile) -> float | None:
    """Return after how many seconds without a sign of life from the hub this site gives up."""
    return None if site.give_up_hours is None else site.give_up_hours * 3600


def checkpoint_s(site: SiteFile) -> float | None:
    """Return how old a checkpoint is, in seconds, when the next is written at the end of an epoch."""
    return None if site.checkpoint_minutes is None else site.checkpoint_minutes * 60


def as_read_here(study: Study, site: SiteFile) -> Study:
    """Return a study whose images are read as this site reads them: more strictly, with its own memory."""
    if not isinstance(study.data, Images):
        return study
    data = msgspec.structs.replace(study.data, read=site.read.over(study.data.read))
    return msgspec.structs.replace(study, data=data)


def read_site(path: str | Path) -> SiteFile:
    """Return the settings in a site's YAML file, with absolute paths.

    The file may name kinds of the plug-ins that it allows, such as a layout, so their code is loaded.

    Raises:
        StudyError: with the file, the line, the key path, the value found and the values allowed; or with the
            plug-in whose folder or code is wrong.
    """
    path = Path(path)
    folder, text = path.resolve().parent, read_text(path)
    expected = "a site (keys such as name, data, exchange)"
    allowed = {
        name: msgspec.structs.replace(plugin, path=str(folder / (plugin.path or "")))
        for name, plugin in plugins_in(text, path.name, expected=expected).items()
        if plugin.path is not None and plugin.digest is not None  # else refused below, with its line
    }
    added = added_by(load_all(allowed, path.name).values())
    site = parse_yaml(text, path.name, SiteFile, expected, added=added)
    if isinstance(site.exchange, Memory):
        raise StudyError(
            f"{path.name}: exchange.kind: 'memory' connects sites within one process; use 'nats' or 'folder' "
            "to reach a hub on another machine"
        )
    for problem in (*missing_packages(site.trackers), *outside(site.trackers)):
        raise StudyError(f"{path.name}: {problem}")
    try:
        with using_kinds(added):
            layout = site.given_layout
    except DataError as error:
        raise StudyError(f"{path.name}: {error}") from None
    return msgspec.structs.replace(
        site,
        layout=layout,
        data=str(folder / site.data),
        secret=str(folder / site.secret),
        out=str(folder / site.out),
        table=None if site.table is None else str(folder / site.table),
        cache=None if site.cache is None else str(folder / site.cache),
        start=site.start and str(folder / site.start),
        exchange=resolve_paths(site.exchange, folder),
        plugins={
            name: msgspec.structs.replace(plugin, path=str(folder / plugin.path))
            for name, plugin in site.plugins.items()
        },
    )


def resolve_paths(exchange: Exchange, folder: Path) -> Exchange:
    """Return the exchange with its relative paths resolved against a folder."""
    changes = {}
    credentials, url = getattr(exchange, "credentials", ""), getattr(exchange, "url", "")
    if credentials:
        changes["credentials"] = str(folder / credentials)
    if url and ":" not in url:  # a path, not a URL with one of fsspec's protocols
        changes["url"] = str(folder / url)
    return msgspec.structs.replace(exchange, **changes)


def secret_of(path: Path) -> bytes:
    """Return the site's secret, which is created at the first use and readable only by its owner.

    Raises:
        StudyError: if it cannot be read, is too short, or others can read it.
    """
    try:
        private_folder(path.parent)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return _read_secret(path)
    except OSError as error:
        raise StudyError(f"secret: its file cannot be created: {error.strerror}") from None
    secret = secrets.token_bytes(SECRET_BYTES)
    with os.fdopen(handle, "wb") as file:
        file.write(secret)
        file.flush()
        os.fsync(file.fileno())
    return secret


def _read_secret(path: Path) -> bytes:
    try:
        secret, mode = path.read_bytes(), path.stat().st_mode & 0o777
    except OSError as error:
        raise StudyError(f"secret: its file cannot be read: {error.strerror}") from None
    if mode & 0o077:
        raise StudyError(
            f"secret: its file has mode {mode:04o}, which lets other accounts use it; `chmod 600` it, and "
            "if someone may have read it, replace it before the next study"
        )
    if len(secret) < MIN_SECRET_BYTES:
        raise StudyError(
            f"secret: its file holds {len(secret)} bytes, at least {MIN_SECRET_BYTES} are needed; remove it, "
            "and a new one is created"
        )
    return secret

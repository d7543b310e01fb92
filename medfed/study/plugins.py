"""A study's own code: local packages with kinds of one's own, each known by the digest of its files.

A study file names a package beside it by its folder; the study that a hub offers names only the digest, and
each hospital says in its site file where its own copy lies. No code comes from the hub. The kinds of a
package are known to the studies that name it, and to no other.
"""

from __future__ import annotations

import copyreg
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Annotated

import msgspec
from msgspec import Meta

from medfed.errors import StudyError
from medfed.registry import FOLDERS, NONE_ADDED, AddedKinds, Kind, installed_kinds, is_kind
from medfed.study._plugin_files import read_plugin
from medfed.study._plugin_import import import_plugin

# A plug-in's name is a package's: the name of its folder.
PluginName = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
MAX_PLUGINS = 16
Digest = Annotated[str, Meta(pattern=r"^sha256:[0-9a-f]{64}$")]

_KIND_NAME = re.compile(r"[a-z][a-z0-9_]*")


class Plugin(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A package with kinds of one's own.

    path: its folder, relative to the file.  digest: that of its files (`medfed plugins digest FOLDER`); a
    study file may leave it out, and takes the folder as it is.
    """

    path: str | None = None
    digest: Digest | None = None


@dataclass(frozen=True, eq=False)
class LoadedPlugin:
    """A plug-in whose code runs in this process: its name and digest, and its kinds by registry and name."""

    name: str
    folder: Path
    digest: str
    kinds: Mapping[str, Mapping[str, type[Kind]]]

    @property
    def adds(self) -> tuple[str, ...]:
        """What it adds, such as "tasks 'age'"."""
        return tuple(
            f"{folder} {', '.join(repr(name) for name in kinds)}" for folder, kinds in self.kinds.items()
        )


def plugin_digest(folder: Path, name: str = "") -> str:
    """Return the digest of a plug-in's folder, without running its code.

    Raises:
        StudyError: if the folder holds no plug-in.
    """
    return read_plugin(name or folder.resolve().name, folder).digest


# Plug-ins of this process; a digest is loaded once, whichever folder it was read from first.
_LOADED: dict[tuple[str, str], LoadedPlugin] = {}


def load_plugin(name: str, folder: Path, digest: str | None = None) -> LoadedPlugin:
    """Return a plug-in with its code imported, if the digest of its folder is the given one.

    Raises:
        StudyError: naming the plug-in, and what in its folder, its digest or its code is wrong.
    """
    files = read_plugin(name, folder)
    found = files.digest
    if digest is not None and found != digest:
        raise StudyError(
            f"plug-in '{name}': its folder has the digest {found}, expected {digest}; get the copy that was "
            "agreed on, or look at what changed and name the new digest"
        )
    if (name, found) not in _LOADED:
        _LOADED[name, found] = LoadedPlugin(name, folder, found, _kinds_in(name, import_plugin(files)))
        copyreg.pickle(type(Kind), _reduced)  # type: ignore[arg-type]  # a record's type is its class
    for registry, kinds in _LOADED[name, found].kinds.items():
        _ORIGINS.update((kind, (name, str(folder), found, registry, tag)) for tag, kind in kinds.items())
    return _LOADED[name, found]


# How another process, which has not loaded a plug-in, gets at its records: by loading it there.
_ORIGINS: dict[type[Kind], tuple[str, str, str, str, str]] = {}


def _reduced(record: type[Kind]) -> str | tuple[object, ...]:
    """Return how a record's class is pickled: a plug-in's with its origin, any other by its name."""
    return (_loaded_kind, _ORIGINS[record]) if record in _ORIGINS else record.__qualname__


def _loaded_kind(name: str, folder: str, digest: str, registry: str, tag: str) -> type[Kind]:
    return load_plugin(name, Path(folder), digest).kinds[registry][tag]


def loaded_plugin(name: str, digest: str) -> LoadedPlugin:
    """Return a plug-in that this process has loaded.

    Raises:
        StudyError: if it has not.
    """
    if (name, digest) not in _LOADED:
        raise StudyError(f"plug-in '{name}' ({digest}): was not loaded; read the study with read_study")
    return _LOADED[name, digest]


def added_by(plugins: Iterable[LoadedPlugin]) -> AddedKinds:
    """Return the kinds that these plug-ins add together.

    Raises:
        StudyError: if two of them add kinds of one name.
    """
    return _added_by(tuple(sorted(plugins, key=lambda plugin: (plugin.name, plugin.digest))))


@cache
def _added_by(plugins: tuple[LoadedPlugin, ...]) -> AddedKinds:
    together: dict[str, dict[str, type[Kind]]] = {}
    owners: dict[tuple[str, str], str] = {}
    for plugin in plugins:
        for folder, kinds in plugin.kinds.items():
            for name, kind in kinds.items():
                owner = owners.setdefault((folder, name), plugin.name)
                if owner != plugin.name:
                    raise StudyError(
                        f"plug-ins '{owner}' and '{plugin.name}' both add '{name}' to {folder}; a study can "
                        "name only one of them"
                    )
                together.setdefault(folder, {})[name] = kind
    return AddedKinds(together) if together else NONE_ADDED


def _kinds_in(name: str, package: ModuleType) -> dict[str, dict[str, type[Kind]]]:
    """Return the kinds that a package's `__init__.py` defines or imports from its own modules."""
    kinds: dict[str, dict[str, type[Kind]]] = {}
    for attribute, record in vars(package).items():
        own = is_kind(record) and record.__module__.partition(".")[0] == package.__name__
        if not own or attribute.startswith("_"):
            continue
        tag = _checked_tag(name, record)
        if kinds.setdefault(record.folder, {}).setdefault(tag, record) is not record:
            raise StudyError(f"plug-in '{name}': two of its kinds are called '{tag}' in {record.folder}")
    if not kinds:
        raise StudyError(
            f"plug-in '{name}': its __init__.py shows no kind; import them there, such as "
            "`from .task import Age`, each a subclass of medfed's record with a tag"
        )
    return kinds


def _checked_tag(name: str, record: type[Kind]) -> str:
    """Return the name by which a study calls a plug-in's kind.

    Raises:
        StudyError: if no study can call it so, or it could not be read from a study.
    """
    whose, tag = f"plug-in '{name}': the kind {record.__name__}", str(record.__struct_config__.tag)
    if record.folder not in FOLDERS:
        raise StudyError(f"{whose} is of no registry; subclass one of medfed's records, such as Task")
    if not _KIND_NAME.fullmatch(tag):
        raise StudyError(
            f'{whose} has no tag; write class {record.__name__}(..., frozen=True, tag="...") with the name '
            "by which a study calls it, or begin the name of a base with '_'"
        )
    if tag in installed_kinds(record.folder):
        raise StudyError(
            f"{whose} is called '{tag}', and medfed or an installed package has a kind of this name in "
            f"{record.folder}, which cannot be replaced; give it another tag"
        )
    try:
        msgspec.json.Decoder(record)
    except (TypeError, NameError) as error:
        raise StudyError(f"{whose} cannot be read from a study: {error}") from None
    return tag


__all__ = [
    "Digest",
    "LoadedPlugin",
    "Plugin",
    "PluginName",
    "added_by",
    "load_plugin",
    "loaded_plugin",
    "plugin_digest",
]

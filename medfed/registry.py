"""The registry of what a study file may name: `kind: fedavg` becomes a `FedAvg` of aggregation/fedavg.py.

A folder is a registry and an allow-list: each module in it holds one `Kind` record whose tag is the module's
name. To add a kind, add a file; nothing else is edited, and the folder's contract test covers it at once. A
package outside medfed adds a kind through the entry point group `medfed.<registry>`. No import path is ever
read from a study file. The kinds of a study's own plug-ins (`study/plugins.py`) are known only where that
study is used: `use_kinds` says of which one.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache, wraps
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, ParamSpec, TypeGuard, TypeVar

import msgspec

from medfed.errors import RegistryError


class Folder(NamedTuple):
    """Where the modules of a registry are, below `medfed`, and what its kinds decide."""

    package: str
    description: str


# The registries by name, in the order in which `medfed kinds` lists them.
FOLDERS: dict[str, Folder] = {
    "aggregation": Folder("aggregation", "how the sites' updates become new weights"),
    "local_training": Folder("local_training", "what changes training inside a site"),
    "privacy": Folder("privacy", "what happens to an update before it leaves"),
    "compression": Folder("wire.compression", "how an update is made smaller"),
    "exchange": Folder("exchange", "how sites and hub meet"),
    "tasks": Folder("models.tasks", "what is learned"),
    "networks": Folder("models.networks", "the network"),
    "losses": Folder("models.losses", "the loss"),
    "optimisers": Folder("models.optimisers", "the optimiser"),
    "schedules": Folder("models.schedules", "the learning rate over time"),
    "metrics": Folder("evaluation.metrics", "what models are scored by"),
    "normalise": Folder("data.normalise", "how intensities are normalised"),
    "layouts": Folder("data.layouts", "how cases lie in a hospital's folder"),
    "transforms": Folder("data.image_transforms", "what changes an image after its normalisation"),
    "trackers": Folder("runs.trackers", "where a run's numbers go while it trains"),
    "datamodules": Folder("data.datamodules", "which cases a hospital has, and what each gives to a batch"),
}


class Kind(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind"):
    """A frozen record that a study file can name by `kind`; its fields are its settings."""

    # The registry that the kind belongs to, a key of FOLDERS.
    folder: ClassVar[str] = ""

    if TYPE_CHECKING:
        # msgspec's own takes anything, and would be that of the kinds without settings.
        def __init__(self) -> None: ...


class _Registry(NamedTuple):
    kinds: dict[str, type[Kind]]
    broken: dict[str, str]


@dataclass(frozen=True, eq=False)
class AddedKinds:
    """The kinds that a study's plug-ins add, by registry and name; two are equal if they are one object."""

    by_registry: Mapping[str, Mapping[str, type[Kind]]] = field(default_factory=dict)


# What a study without plug-ins adds.
NONE_ADDED = AddedKinds()

# Each thread begins without plug-ins; `simulation.py` hands its own on to the threads of its sites.
_ADDED: ContextVar[AddedKinds] = ContextVar("the kinds of the study in use", default=NONE_ADDED)

_P = ParamSpec("_P")
_R = TypeVar("_R")


def use_kinds(added: AddedKinds) -> None:
    """Make these the added kinds from here on, in this thread (context), in place of another study's."""
    _ADDED.set(added)


@contextmanager
def using_kinds(added: AddedKinds) -> Iterator[None]:
    """Make these the added kinds within the block."""
    token = _ADDED.set(added)
    try:
        yield
    finally:
        _ADDED.reset(token)


def cached_by_kinds(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Cache what a function returns, by its arguments and the kinds that the study in use adds."""

    @cache
    def cached(added: AddedKinds, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        return function(*args, **kwargs)

    @wraps(function)
    def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        return cached(_ADDED.get(), *args, **kwargs)  # type: ignore[arg-type]  # what can be cached is hashable

    wrapper.cache_clear = cached.cache_clear  # type: ignore[attr-defined]  # for tests that add kinds
    return wrapper


def kinds(folder: str) -> dict[str, type[Kind]]:
    """Return the kinds of one registry by name, sorted.

    They are medfed's own, those of installed packages, and those of the plug-ins of the study in use.

    Raises:
        RegistryError: if a module of medfed's folder does not hold exactly one kind, named after the module.
    """
    known, added = installed_kinds(folder), _ADDED.get().by_registry.get(folder, {})
    return dict(sorted({**known, **added}.items())) if added else known


def installed_kinds(folder: str) -> dict[str, type[Kind]]:
    """Return the kinds of one registry that every study can name: medfed's and installed packages'."""
    return _registry(folder).kinds


def broken_entry_points(folder: str) -> dict[str, str]:
    """Return, by kind name, why an entry point of this registry is not used: one sentence per name."""
    return _registry(folder).broken


def union(folder: str) -> Any:
    """Return the type 'any kind of this registry', which msgspec decodes by its `kind` key."""
    records = tuple(kinds(folder).values())
    result: Any = records[0]
    for record in records[1:]:
        result = result | record
    return result


def kind_named(folder: str, value: object) -> Any:
    """Return a kind of this registry: the record itself, or one with its defaults by its name.

    Raises:
        RegistryError: if there is none of that name, or it has settings without defaults.
    """
    if isinstance(value, Kind) and value.folder == folder:
        return value
    known = kinds(folder)
    if not isinstance(value, str):
        found = f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"
        raise RegistryError(
            f"expected a kind of '{folder}' such as medfed.{FOLDERS[folder].package}.<name>, or its name, "
            f"found {found}"
        )
    if value not in known:
        near = get_close_matches(value, known, n=1)
        meant = f"did you mean '{near[0]}'? " if near else ""
        raise RegistryError(f"{folder}: no '{value}'; {meant}there are {', '.join(known)}")
    record = known[value]
    try:
        return record()
    except TypeError:
        required = [field.name for field in msgspec.structs.fields(record) if field.required]
        raise RegistryError(
            f"{folder}: '{value}' has settings without defaults; pass {record.__module__}.{record.__name__}"
            f"({', '.join(f'{name}=...' for name in required)}) instead of its name"
        ) from None


def kind_of(record: Kind) -> str:
    """Return the name by which a study file calls this record."""
    return _tag(type(record))


def package_of(record: Kind) -> str | None:
    """Return the installed package that adds a kind, with its version; None for medfed's and plug-ins'."""
    for point in entry_points(group=f"medfed.{record.folder}"):
        if point.name == kind_of(record) and installed_kinds(record.folder).get(point.name) is type(record):
            return f"{point.dist.name} {point.dist.version}" if point.dist is not None else point.value
    return None


def summary(record: type[Kind]) -> str:
    """Return the first sentence of a record's docstring."""
    return (record.__doc__ or "").strip().split("\n")[0]


@cache
def _registry(folder: str) -> _Registry:
    """Import a registry's modules and entry points.

    Kinds of medfed are never replaced from outside: a study must mean the same in every hospital. For the
    same reason none is taken of two packages that add kinds of one name.
    """
    built_in = _built_in(importlib.import_module(f"medfed.{FOLDERS[folder].package}"), folder)
    added: dict[str, type[Kind]] = {}
    broken: dict[str, str] = {}
    points = entry_points(group=f"medfed.{folder}")
    copies = Counter(point.name for point in points)
    for point in points:
        try:
            if point.name in built_in:
                raise RegistryError(f"medfed has a kind of this name in '{folder}', which cannot be replaced")
            if copies[point.name] > 1:
                raise RegistryError("several packages add a kind of this name; uninstall all but one")
            added[point.name] = _load(point, folder)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a plug-in may fail in any way; it is named
            reason = str(error) if isinstance(error, RegistryError) else f"{type(error).__name__}: {error}"
            broken[point.name] = f"{_describe(point)} is not used: {reason}"
    return _Registry(dict(sorted((built_in | added).items())), dict(sorted(broken.items())))


def _built_in(package: ModuleType, folder: str) -> dict[str, type[Kind]]:
    names = [info.name for info in pkgutil.iter_modules(package.__path__) if not info.ispkg]
    modules = {
        name: importlib.import_module(f"{package.__name__}.{name}")
        for name in names
        if not name.startswith("_")
    }
    return {name: _only_kind(module, name, folder) for name, module in modules.items()}


def _only_kind(module: ModuleType, name: str, folder: str) -> type[Kind]:
    """Return the one kind that a module of a registry's folder defines, named after the module."""
    records = [kind for kind in vars(module).values() if is_kind(kind) and kind.__module__ == module.__name__]
    records = list(dict.fromkeys(records))
    if [_tag(record) for record in records] != [name] or records[0].folder != folder:
        tags = ", ".join(f"'{_tag(record)}' of '{record.folder}'" for record in records) or "no kind"
        raise RegistryError(
            f"{module.__name__.replace('.', '/')}.py: a module of this folder defines one kind with the tag "
            f"'{name}' of the registry '{folder}', found {tags}; correct the tag, or begin the file's name "
            "with '_'"
        )
    return records[0]


def _load(point: EntryPoint, folder: str) -> type[Kind]:
    record = point.load()
    if not is_kind(record) or record.folder != folder:
        raise RegistryError(f"it is no kind of the registry '{folder}'")
    if _tag(record) != point.name:
        raise RegistryError(f"its tag is '{_tag(record)}', expected the entry point's name '{point.name}'")
    msgspec.json.Decoder(record)  # a type that cannot be decoded would break every study
    return record


def _describe(point: EntryPoint) -> str:
    package = f" of the package '{point.dist.name}'" if point.dist is not None else ""
    return f"the entry point '{point.name} = {point.value}' in '{point.group}'{package}"


def is_kind(value: object) -> TypeGuard[type[Kind]]:
    """Return whether a value is the record of a kind."""
    return isinstance(value, type) and issubclass(value, Kind)


def _tag(record: type[Kind]) -> str:
    return str(record.__struct_config__.tag)

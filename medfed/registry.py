"""What a study file may name: `kind: fedavg` becomes a `FedAvg`, because aggregation/fedavg.py exists.

The folder is the registry and the allow-list: one file a kind, named after it, holding one `Kind` record
whose tag is the file's name. To add a kind, add a file; nothing else is edited, and the folder's contract
test holds it at once. A package outside medfed adds one through the entry point group `medfed.<folder>`. No
import path is ever read from a study file.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from importlib.metadata import entry_points
from typing import ClassVar

import msgspec

# The folders that hold kinds, and what a person calls their contents.
FOLDERS: dict[str, str] = {
    "aggregation": "how the sites' updates become new weights",
    "local_training": "what changes training inside a site",
    "privacy": "what happens to an update before it leaves",
    "compression": "how an update is made smaller",
    "exchange": "how sites and hub meet",
    "tasks": "what is learned",
    "networks": "the network",
    "losses": "the loss",
    "optimisers": "the optimiser",
    "schedules": "the learning rate over time",
    "normalise": "how intensities are normalised",
}


# Where a folder lies, if not directly below medfed/.
_PACKAGES = {
    "compression": "wire.compression",
    "tasks": "models.tasks",
    "networks": "models.networks",
    "losses": "models.losses",
    "optimisers": "models.optimisers",
    "schedules": "models.schedules",
    "normalise": "data.normalise",
}


class Kind(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind"):
    """A frozen record that a study file can name by `kind`; its fields are its settings."""

    folder: ClassVar[str] = ""


@cache
def kinds(folder: str) -> dict[str, type[Kind]]:
    """Return the records of one folder by name, sorted; the folder's files first,
    then installed entry points.
    """
    package = importlib.import_module(f"medfed.{_PACKAGES.get(folder, folder)}")
    found: dict[str, type[Kind]] = {}
    for module in pkgutil.iter_modules(package.__path__):
        if not module.name.startswith("_"):
            record = _record(importlib.import_module(f"{package.__name__}.{module.name}"), module.name)
            if record is not None:
                found[module.name] = record
    for entry in entry_points(group=f"medfed.{folder}"):
        # A kind of our own is never replaced from outside: a study must mean the same in every hospital.
        found.setdefault(entry.name, entry.load())
    return dict(sorted(found.items()))


def _record(module: object, name: str) -> type[Kind] | None:
    for value in vars(module).values():
        if (
            isinstance(value, type)
            and issubclass(value, Kind)
            and value.__module__ == module.__name__  # type: ignore[attr-defined]
            and value.__struct_config__.tag == name
        ):
            return value
    return None


def union(folder: str) -> object:
    """Return the type 'any kind of this folder', which msgspec decodes by its `kind` key."""
    records = tuple(kinds(folder).values())
    result: object = records[0]
    for record in records[1:]:
        result = result | record
    return result


def kind_of(record: Kind) -> str:
    """Return the name under which a study file would call this record."""
    return str(type(record).__struct_config__.tag)


def summary(record: type[Kind]) -> str:
    """Return the first sentence of a record's docstring."""
    return (record.__doc__ or "").strip().split("\n")[0]

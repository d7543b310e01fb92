"""Record types that also take the kinds of a study's plug-ins, to decode that study and no other with."""

from __future__ import annotations

import types
from functools import cache
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import msgspec

from medfed.registry import AddedKinds, installed_kinds, is_kind

_Record = TypeVar("_Record")

# The record that a derived one stands for.
_ORIGINAL: dict[type[msgspec.Struct], type[msgspec.Struct]] = {}


def with_kinds(record: type[_Record], added: AddedKinds) -> type[_Record]:
    """Return a record type whose fields also take the added kinds, wherever they take any of a registry.

    `as_original` returns what it decodes to as the original records.
    """
    return _Types(added).of(record) if added.by_registry else record


def as_original(value: Any) -> Any:
    """Return decoded values with each derived record as the record it was derived from."""
    if isinstance(value, tuple):
        return tuple(map(as_original, value))
    if isinstance(value, dict):
        return {key: as_original(one) for key, one in value.items()}
    if not isinstance(value, msgspec.Struct):
        return value
    fields = {name: getattr(value, name) for name in value.__struct_fields__}
    originals = {name: as_original(one) for name, one in fields.items()}
    original = _ORIGINAL.get(type(value), type(value))
    if original is type(value) and all(originals[name] is fields[name] for name in fields):
        return value
    return original(**originals)


class _Types:
    """The types that take the added kinds, each made once."""

    def __init__(self, added: AddedKinds) -> None:
        self.added = added
        self.records: dict[type[msgspec.Struct], type[msgspec.Struct]] = {}

    def of(self, annotation: Any) -> Any:
        """Return a type that takes the added kinds, too; the same one if nothing changes."""
        origin, args = get_origin(annotation), get_args(annotation)
        if origin is Annotated:
            return Annotated[(self.of(args[0]), *args[1:])]
        if origin in (Union, types.UnionType):
            members = [self._member(one) for one in _extended(args, self.added)]
            return annotation if members == list(args) else Union[tuple(members)]  # noqa: UP007
        if origin in (dict, tuple, list):
            inner = tuple(one if one is Ellipsis else self.of(one) for one in args)
            return annotation if inner == args else origin[inner]
        if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
            members = _extended((annotation,), self.added)
            return self.record(annotation) if len(members) == 1 else self.of(Union[tuple(members)])  # noqa: UP007
        return annotation

    def _member(self, annotation: Any) -> Any:
        # A registry of one kind: by itself it would be taken for a union of all of them, again and again.
        return self.record(annotation) if is_kind(annotation) else self.of(annotation)

    def record(self, record: type[msgspec.Struct]) -> type[msgspec.Struct]:
        """Return a record whose fields take the added kinds; the same one if none changes."""
        if record not in self.records:
            self.records[record] = record  # of a record that holds itself
            changed = [
                (field, new)
                for field in msgspec.structs.fields(record)
                if (new := self.of(field.type)) is not field.type
            ]
            if changed:
                self.records[record] = _derived(record, changed)
        return self.records[record]


def _derived(
    record: type[msgspec.Struct], changed: list[tuple[msgspec.structs.FieldInfo, Any]]
) -> type[msgspec.Struct]:
    fields: list[Any] = []
    for field, annotation in changed:
        if field.required:
            fields.append((field.name, annotation))
        elif field.default is not msgspec.NODEFAULT:
            fields.append((field.name, annotation, field.default))
        else:
            default = msgspec.field(default_factory=field.default_factory)
            fields.append((field.name, annotation, default))
    derived = msgspec.defstruct(
        record.__name__, fields, bases=(record,), module=record.__module__, frozen=True, kw_only=True
    )
    _ORIGINAL[derived] = record
    return derived


def _extended(members: tuple[Any, ...], added: AddedKinds) -> list[Any]:
    """Return a union's members, with the added kinds of each registry of which it takes every kind."""
    tags: dict[str, set[str]] = {}
    for member in filter(is_kind, members):
        tags.setdefault(member.folder, set()).add(str(member.__struct_config__.tag))
    result = list(members)
    for folder, kinds in added.by_registry.items():
        if folder in tags and tags[folder] >= set(_names(folder)):
            result += [kind for kind in kinds.values() if kind not in members]
    return result


@cache
def _names(folder: str) -> tuple[str, ...]:
    return tuple(installed_kinds(folder))

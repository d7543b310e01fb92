"""Error messages for a file that does not decode: msgspec's error in plain words, with place and remedy."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec

from medfed.registry import Kind, broken_entry_points

# The keys and list indices that lead to a value, and the line of each.
KeyPath = tuple[str | int, ...]
Lines = dict[KeyPath, int]

# Plain words for the names that msgspec gives to types.
_TYPE_NAMES = {
    "`int`": "a whole number",
    "`float`": "a number",
    "`str`": "text",
    "`bool`": "true or false",
    "`object`": "keys with values",
    "`array`": "a list",
    "`null`": "null",
}

# Renamed keys of study and site files. An old key is answered with the new one, where that is a key.
RENAMED_KEYS = {
    "fewest": "min_patients",
    "grid": "intensity_bins",
    "least": "min_sites",
    "most": "max_share",
    "most_examples": "max_examples",
}


def explain(
    error: str, raw: Any, name: str, lines: Lines, overrides: Sequence[str], record: type[Any]
) -> str:
    """Return msgspec's error for a person: the place, what was found, what is allowed, the nearest name."""
    message, _, at = error.partition(" - at `")
    path = _parse_path(at.removesuffix("`"))
    unknown = re.search(r"unknown field `([^`]*)`", message)
    place = _place((*path, unknown[1]) if unknown else path, name, lines, overrides)
    return f"{place}: {_problem(message, path, raw, record)}"


def _problem(message: str, path: KeyPath, raw: Any, record: type[Any]) -> str:
    value = _value_at(raw, path)
    if unknown := re.search(r"unknown field `([^`]*)`", message):
        allowed = _field_names(path, raw, record)
        if (new_key := RENAMED_KEYS.get(unknown[1])) in allowed:
            return f"no such key; it is now called '{new_key}': write {new_key}, the value stays"
        return f"no such key{nearest(unknown[1], allowed)}; there are {', '.join(allowed)}"
    if missing := re.search(r"missing required field `([^`]*)`", message):
        if missing[1] == "kind":
            return f"which kind? Write kind: and one of {', '.join(_kind_names(path, raw, record))}"
        return f"'{missing[1]}' is missing; it has no default"
    if path and path[-1] == "kind":
        allowed = _kind_names(path[:-1], raw, record)
        broken = _broken_entry_point(path[:-1], raw, record, str(value))
        return broken or f"no '{value}'{nearest(str(value), allowed)}; there are {', '.join(allowed)}"
    if message.startswith(("Invalid enum value", "Invalid value")):
        allowed = _choices(path, raw, record)
        hint = f"{nearest(str(value), allowed)}; there are {', '.join(allowed)}" if allowed else ""
        return f"found {describe_value(value)}{hint}"
    # Of several sites' values msgspec does not say which does not fit.
    found = "another value" if value is None and "..." in path else describe_value(value)
    return f"found {found}; {_plain_words(message)}"


def describe_value(value: Any) -> str:
    """Return a short description of a parsed value, for errors."""
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return f"keys ({', '.join(map(str, list(value)[:4]))})"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return repr(value)[:60]


def nearest(name: str, allowed: Sequence[str]) -> str:
    """Return '; did you mean ...?' with the most similar allowed name, or '' if none is similar."""
    similar = difflib.get_close_matches(name, allowed, n=1, cutoff=0.5)
    return f"; did you mean '{similar[0]}'?" if similar else ""


def _parse_path(at: str) -> KeyPath:
    """Return `$.sites[...].x` as a tuple; msgspec writes [...] for an unnamed key of a dictionary."""
    path: list[str | int] = []
    for part in re.findall(r"\.([A-Za-z_]\w*)|\[(\d+|\.\.\.)\]", at):
        key = part[0] or part[1]
        path.append(int(key) if key.isdigit() else key)
    return tuple(path)


def _place(path: KeyPath, name: str, lines: Lines, overrides: Sequence[str]) -> str:
    """Return the file, line and key of a value, or the flag that set it."""
    shown = ".".join("*" if part == "..." else str(part) for part in path)
    for override in overrides:
        keys = override.partition("=")[0].strip().split(".")[: len(path)]
        if len(keys) == len(path) and all(map(_fits, keys, path)):
            return f"--set {'.'.join(keys)}"
    line = next((lines[path[:k]] for k in range(len(path), 0, -1) if path[:k] in lines), None)
    return f"{name}{f':{line}' if line else ''}{f': {shown}' if shown else ''}"


def _fits(key: str, part: str | int) -> bool:
    """Whether a key of a flag may be this part of a path, of which msgspec says ... for a name."""
    return part == "..." or key == str(part)


def _plain_words(message: str) -> str:
    message = re.sub(r", got (`[^`]*`|\d+)", "", message)
    for word, plain in _TYPE_NAMES.items():
        message = message.replace(word, plain)
    message = re.sub(r"`([^`]*)`", _alternatives, message)
    message = message.replace(
        "matching regex '^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$'", "of letters, digits, '-' and '_'"
    )
    message = message.replace(
        "matching regex '^[a-z][a-z0-9_]{0,62}$'", "of small letters, digits and '_', as a package's name is"
    )
    message = message.replace(
        "matching regex '^sha256:[0-9a-f]{64}$'", "such as sha256:..., as `medfed plugins digest` prints it"
    )
    return message[:1].lower() + message[1:]


def _alternatives(match: re.Match[str]) -> str:
    return " or ".join(_TYPE_NAMES.get(f"`{word.strip()}`", word.strip()) for word in match[1].split("|"))


def _value_at(raw: Any, path: KeyPath) -> Any:
    for part in path:
        try:
            raw = raw[part]
        except (KeyError, IndexError, TypeError):
            return None
    return raw


def _type_at(path: KeyPath, raw: Any, record: type[Any]) -> Any:
    """Return the type that a record has at a key path, following the kinds that the file names."""
    result: Any = record
    for depth, part in enumerate(path):
        section = _record_type(result, _value_at(raw, path[:depth]))
        if section is not None:
            fields = {field.name: field.type for field in msgspec.structs.fields(section)}
            result = fields.get(str(part))
        elif get_origin(_bare(result)) is dict:
            result = get_args(_bare(result))[1]
        elif get_args(_bare(result)):
            result = get_args(_bare(result))[0]
        else:
            return None
    return result


def _bare(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _members(annotation: Any) -> list[Any]:
    annotation = _bare(annotation)
    is_union = get_origin(annotation) is Union or type(annotation).__name__ == "UnionType"
    return [_bare(member) for member in get_args(annotation)] if is_union else [annotation]


def _records(annotation: Any) -> list[type[msgspec.Struct]]:
    members = _members(annotation)
    return [member for member in members if isinstance(member, type) and issubclass(member, msgspec.Struct)]


def _record_type(annotation: Any, value: Any) -> type[msgspec.Struct] | None:
    """Return the record of an annotation, or of several the one whose tag is the value's `kind`."""
    records = _records(annotation)
    if len(records) == 1:
        return records[0]
    kind = value.get("kind") if isinstance(value, dict) else None
    return next((record for record in records if record.__struct_config__.tag == kind), None)


def _field_names(path: KeyPath, raw: Any, record: type[Any]) -> list[str]:
    section = _record_type(_type_at(path, raw, record), _value_at(raw, path))
    return [] if section is None else sorted(field.encode_name for field in msgspec.structs.fields(section))


def _kind_names(path: KeyPath, raw: Any, record: type[Any]) -> list[str]:
    tags = [member.__struct_config__.tag for member in _records(_type_at(path, raw, record))]
    return sorted(str(tag) for tag in tags if tag)


def _broken_entry_point(path: KeyPath, raw: Any, record: type[Any], name: str) -> str | None:
    """Return why an installed package's kind of this name is not used; None if no package adds one."""
    members = _records(_type_at(path, raw, record))
    folders = {member.folder for member in members if issubclass(member, Kind)}
    reasons = (broken_entry_points(folder).get(name) for folder in folders)
    return next((reason for reason in reasons if reason), None)


def _choices(path: KeyPath, raw: Any, record: type[Any]) -> list[str]:
    literals = [m for m in _members(_type_at(path, raw, record)) if get_origin(m) is Literal]
    return [str(choice) for literal in literals for choice in get_args(literal)]

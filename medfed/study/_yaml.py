"""A strict YAML reader: bounded, without aliases or duplicate keys, and with the line of every key."""

from __future__ import annotations

import re
from typing import Any

import yaml

from medfed.errors import StudyError
from medfed.study._explain import KeyPath, Lines, describe_value

# A study of hundreds of sites has some tens of thousands of characters.
MAX_FILE_CHARACTERS = 1 << 20

# A study has some six levels.
MAX_DEPTH = 32


class _Loader(yaml.SafeLoader):
    """A loader that reads 1e-3 as a number (PyYAML: text) and refuses a duplicate key (PyYAML: last wins)."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+0123456789."),
)


def _mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    first_line: dict[Any, int] = {}
    for key, _ in node.value:
        name = loader.construct_object(key)
        if name in first_line:
            raise yaml.MarkedYAMLError(
                problem=f"'{name}' occurs twice, first in line {first_line[name]}",
                problem_mark=key.start_mark,
            )
        first_line[name] = key.start_mark.line + 1
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def load_yaml(text: str, name: str, expected: str) -> tuple[dict[str, Any], Lines]:
    """Return the mapping in a YAML text, and the line of every key; `expected` names the text in errors.

    Raises:
        StudyError: if the text is too long, uses aliases, or is no YAML mapping.
    """
    if len(text) > MAX_FILE_CHARACTERS:
        raise StudyError(f"{name}: {len(text)} characters; {expected} has at most {MAX_FILE_CHARACTERS}")
    try:
        _check_events(text, name, expected)
        raw = yaml.load(text, Loader=_Loader)
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise StudyError(f"{name}{line}: not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise StudyError(f"{name}: not valid YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(raw, dict):
        raise StudyError(f"{name}: expected {expected}, found {describe_value(raw)}")
    lines: Lines = {}
    _record_lines(node, (), lines)
    return raw, lines


def _check_events(text: str, name: str, expected: str) -> None:
    """Check, before anything is built, that a text has no alias and is not nested too deeply.

    Aliases of aliases let a short text stand for billions of values, and the time that PyYAML takes grows
    with the square of the depth.
    """
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.AliasEvent):
            raise StudyError(f"{name}: YAML aliases (*name) are not allowed; write the value out")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            line = event.start_mark.line + 1 if event.start_mark is not None else 1
            raise StudyError(
                f"{name}:{line}: it is nested too deeply to be {expected}; at most "
                f"{MAX_DEPTH} levels are read"
            )


def apply_override(raw: dict[str, Any], override: str) -> None:
    """Set one key of a parsed file, such as 'train.epochs=3'.

    Raises:
        StudyError: if the override is not key=value, or the key lies below a plain value.
    """
    key, equals, value = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise StudyError(f"--set {override}: expected key=value, such as train.epochs=3")
    section: Any = raw
    for part in parts[:-1]:
        section = section.setdefault(part, {})
        if not isinstance(section, dict):
            raise StudyError(f"--set {override}: '{part}' holds {describe_value(section)}, no keys below it")
    try:
        section[parts[-1]] = yaml.load(value, Loader=_Loader)
    except yaml.YAMLError:
        raise StudyError(f"--set {override}: '{value}' is not valid YAML") from None


def _record_lines(node: yaml.Node | None, path: KeyPath, lines: Lines) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            lines[(*path, str(key.value))] = key.start_mark.line + 1
            _record_lines(value, (*path, str(key.value)), lines)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            lines[(*path, index)] = value.start_mark.line + 1
            _record_lines(value, (*path, index), lines)

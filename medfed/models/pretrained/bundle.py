"""Reads the configurations of a MONAI Bundle as data: its network's definition, and what metadata.json says.

MONAI runs such a configuration: `_target_` names any class and a value that begins with `$` is Python. Here
nothing of it is run. A definition is a `_target_` and literal arguments; `@name` stands for another literal
of the same file. Which targets and arguments are allowed is decided where the network is built
(`medfed.models.networks._monai_catalogue`).
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

from medfed.errors import StudyError
from medfed.models.pretrained.source import DEFINITIONS, METADATA, Source

# The entries under which bundles define their network.
ENTRIES = ("network_def", "network")
# How far a reference may lead to another one, and how deeply a value may be nested.
MAX_DEPTH = 16
MAX_TEXT = 200

_REFERENCE = re.compile(r"\$?@([A-Za-z_][A-Za-z0-9_]*)(?:#[A-Za-z0-9_#]+|(?:::[A-Za-z0-9_]+)+)?")
# Keys that steer MONAI's parser and say nothing of the network.
_STEERING = {"_target_", "_disabled_", "_desc_", "_requires_", "_mode_"}
# A class of monai.networks.nets, with or without the module it is in, or alone.
_PLACE = re.compile(r"monai\.networks\.nets(?:\.[a-z0-9_]+)?\.([A-Za-z0-9_]+)|([A-Za-z0-9_]+)")


class Description(NamedTuple):
    """What a bundle's metadata say of it, as plain text; empty where they say nothing."""

    title: str = ""
    licence: str = ""
    classes: tuple[str, ...] = ()


class Definition(NamedTuple):
    """A network's class in monai.networks.nets, and its literal arguments."""

    name: str
    arguments: dict[str, Any]


def network_definition(source: Source) -> Definition:
    """Return the definition of a bundle's network.

    Raises:
        StudyError: if it is no bundle, defines no network, or defines it by anything but literals.
    """
    if source.config is None:
        raise StudyError(
            f"network.name: bundle: start is {source.name}, which is no MONAI bundle and defines no network; "
            "name the network in the study"
        )
    for file in DEFINITIONS:
        content = source.config(file)
        config = None if content is None else _json(source.name, file, content)
        for entry in ENTRIES:
            value = None if config is None else config.get(entry)
            if config is not None and isinstance(value, dict):
                return _definition(f"{source.name}: {file}: {entry}", value, config)
    raise StudyError(
        f"start: {source.name}: none of {', '.join(DEFINITIONS)} defines a network under "
        f"{' or '.join(ENTRIES)} (YAML is not read); name the network in the study"
    )


def describe_bundle(source: Source) -> Description:
    """Return what a bundle's metadata.json says; nothing of a file that is no bundle or says it otherwise."""
    content = None if source.config is None else source.config(METADATA)
    if content is None:
        return Description()
    metadata = _json(source.name, METADATA, content)
    licence = metadata.get("license") or metadata.get("licence") or metadata.get("copyright")
    title = " ".join(_text(metadata.get(key)) for key in ("name", "version")).strip()
    return Description(title, _text(licence), _classes(metadata))


def _classes(metadata: dict[str, Any]) -> tuple[str, ...]:
    """Return the names of the channels of a bundle's output, in order; () if they are not stated."""
    try:
        channels = metadata["network_data_format"]["outputs"]["pred"]["channel_def"]
        return tuple(_text(channels[str(number)]) for number in range(len(channels)))
    except (KeyError, TypeError):
        return ()


def _json(bundle: str, file: str, content: bytes) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise StudyError(f"start: {bundle}: {file} is no JSON object; the bundle is damaged")
    return value


def _definition(where: str, value: dict[str, Any], config: dict[str, Any]) -> Definition:
    target = value.get("_target_")
    match = _PLACE.fullmatch(target) if isinstance(target, str) else None
    if match is None:
        raise StudyError(
            f"start: {where}: _target_ is {_shown(target)}; only networks of monai.networks.nets are built, "
            "and no other class or function; name the network in the study"
        )
    arguments = {
        str(key): _literal(f"{where}: {_text(key)}", one, config, 0)
        for key, one in value.items()
        if key not in _STEERING
    }
    return Definition(match[1] or match[2], arguments)


def _literal(where: str, value: Any, config: dict[str, Any], depth: int) -> Any:
    """Return a value with its references replaced by the literals they stand for.

    Raises:
        StudyError: of an expression, a class, a reference to neither, or one that leads to itself.
    """
    if depth > MAX_DEPTH:
        raise StudyError(f"start: {where}: is nested too deeply, or refers to itself")
    if isinstance(value, str) and value.startswith(("$", "@", "%")):
        return _literal(where, _referred(where, value, config), config, depth + 1)
    if isinstance(value, list):
        return [_literal(where, one, config, depth + 1) for one in value]
    if isinstance(value, dict):
        if "_target_" in value:
            raise StudyError(
                f"start: {where}: is an object of {_shown(value['_target_'])}; an argument must be a number, "
                "a text or a list of them; name the network in the study"
            )
        return {str(key): _literal(where, one, config, depth + 1) for key, one in value.items()}
    return value


def _referred(where: str, text: str, config: dict[str, Any]) -> Any:
    match = _REFERENCE.fullmatch(text)
    path = re.split(r"#|::", text.lstrip("$@")) if match else []
    value: Any = config
    for step in path:
        if isinstance(value, dict) and step in value:
            value = value[step]
        elif isinstance(value, list) and step.isdecimal() and int(step) < len(value):
            value = value[int(step)]
        else:
            path = []
            break
    if not path:
        raise StudyError(
            f"start: {where}: is {_shown(text)}; Python of a bundle is never run, and only @name of a "
            "value in the same file is followed; name the network in the study, with its arguments"
        )
    return value


def _shown(value: object) -> str:
    """Return a value of the file for a message: short, and of plain characters."""
    return f"'{_text(value)}'" if isinstance(value, str) else f"a {type(value).__name__}"


def _text(value: object) -> str:
    """Return a text of the file on one line, without control characters; '' of anything else."""
    if not isinstance(value, str):
        return ""
    return "".join(one if one.isprintable() else " " for one in value[:MAX_TEXT]).strip()

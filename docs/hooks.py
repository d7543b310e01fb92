"""Fills the generated pages of the site: the study file's keys and the registries' kinds."""

from __future__ import annotations

import inspect
import json
import re
from typing import Any

import msgspec

_ANNOTATED = re.compile(r"Annotated\[([\w.]+), (?:msgspec\.)?Meta\(((?:[^()]|\([^)]*\))*)\)\]")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the markers of generated sections."""
    if "<!-- study -->" in markdown:
        markdown = markdown.replace("<!-- study -->", study_reference())
    if "<!-- kinds -->" in markdown:
        markdown = markdown.replace("<!-- kinds -->", kinds_reference())
    if "<!-- testing -->" in markdown:
        markdown = markdown.replace("<!-- testing -->", testing_reference())
    if "<!-- names -->" in markdown:
        markdown = markdown.replace("<!-- names -->", names_reference())
    return markdown


def study_reference() -> str:
    """Return a section for each part of a study file."""
    from medfed.study import study as types

    sections = ("Study", "Train", "Lora", "Sampling", "Evaluation", "SiteOverride")
    return "\n\n".join(_section(getattr(types, name), f"## {name}") for name in sections)


def kinds_reference() -> str:
    """Return a section for each registry, with each kind's docstring and settings."""
    from medfed.registry import FOLDERS, kinds

    parts = []
    for folder, entry in FOLDERS.items():
        purpose = entry.description
        parts.append(f"## {folder}\n\n{purpose[:1].upper()}{purpose[1:]}.")
        parts += [_section(record, f"### {name}") for name, record in kinds(folder).items()]
    return "\n\n".join(parts)


def names_reference() -> str:
    """Return a section for each public name, which mkdocstrings fills."""
    import medfed

    return "\n\n".join(f"::: {_path(name)}" for name in medfed.__all__)


def testing_reference() -> str:
    """Return a section for each contract of medfed.testing, with its checks, and for each of its records."""
    from medfed import testing

    contracts = [name for name in testing.__all__ if isinstance(getattr(testing, name), testing.Contract)]
    records = [name for name in testing.__all__ if isinstance(getattr(testing, name), type)]
    parts = []
    for name in contracts:
        contract = getattr(testing, name)
        checks = [f"- {check.replace('_', ' ')}" for check in contract.checks]
        parts.append("\n".join([f"## {name}", "", f"What a {contract.noun} keeps:", "", *checks]))
    parts += [
        f"::: {getattr(testing, name).__module__}.{getattr(testing, name).__qualname__}" for name in records
    ]
    return "\n\n".join(parts)


def _path(name: str) -> str:
    import medfed

    value = getattr(medfed, name)
    if inspect.ismodule(value):
        return value.__name__
    return f"{value.__module__}.{value.__qualname__}"


def _section(record: type, heading: str) -> str:
    """Return a record's docstring, and its keys with type, default and what the docstring says of each."""
    fields = msgspec.structs.fields(record)
    text, said = _explained(inspect.cleandoc(record.__doc__ or ""), [field.encode_name for field in fields])
    if not fields:
        return f"{heading}\n\n{text}"
    columns = ["key", "type", "default", *(["meaning"] if said else [])]
    rows = [[f"`{f.encode_name}`", _type(f.type), _default(f), said.get(f.encode_name, "")] for f in fields]
    lines = [columns, ["---"] * len(columns), *(row[: len(columns)] for row in rows)]
    return "\n".join([heading, "", text, "", *(f"| {' | '.join(line)} |" for line in lines)])


def _explained(docstring: str, keys: list[str]) -> tuple[str, dict[str, str]]:
    """Split a docstring into its text and its `key: what it is.` entries."""
    names = "|".join(map(re.escape, keys))
    parts = re.split(rf"(?:^|(?<=\.)\s+)({names}): ", docstring, flags=re.MULTILINE) if names else [docstring]
    said = {
        key: " ".join(what.split()).replace("|", "\\|")
        for key, what in zip(parts[1::2], parts[2::2], strict=True)
    }
    return parts[0].strip(), said


def _default(field: msgspec.structs.FieldInfo) -> str:
    if field.required:
        return "required"
    value = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
    plain = msgspec.to_builtins(value)
    if isinstance(plain, dict) and "kind" in plain:
        plain = plain["kind"]
    elif isinstance(value, msgspec.Struct):
        return "see there"
    return f"`{json.dumps(plain)}`".replace('"', "")


def _type(annotation: Any) -> str:
    """Return a type as a person reads it: limits in brackets, one word for a registry's kinds."""
    text = re.sub(
        r"Annotated\[([\w.]+), (?:msgspec\.)?Meta\(((?:[^()]|\([^)]*\))*)\)\]", _limited, _bare(annotation)
    )
    if text.count(" | ") > 4:
        return "a kind"
    return "`" + re.sub(r"NoneType|None", "null", text).replace(" | ", " or ") + "`"


def _bare(annotation: Any) -> str:
    text = re.sub(r"<class '([\w.]+)'>", r"\1", str(annotation))
    return re.sub(r"\b(?:typing|medfed(?:\.\w+)+)\.", "", text)


def _limited(match: re.Match[str]) -> str:
    limits = match[2]
    for name, sign in (("gt=", "> "), ("ge=", ">= "), ("lt=", "< "), ("le=", "<= ")):
        limits = limits.replace(name, sign)
    return match[1] if limits.startswith("pattern") else f"{match[1]} ({limits})"

"""The JSON schema of a study file, for completion and checks in editors."""

from __future__ import annotations

from typing import Any

import msgspec

from medfed.study.reading import LISTED_KEYS, PLUGINS
from medfed.study.study import Study


def schema() -> dict[str, Any]:
    """Return the JSON schema of a study file."""
    result = msgspec.json.schema(Study)
    properties = result["$defs"]["Study"]["properties"]
    for key in LISTED_KEYS:
        folders = {name: value for name, value in properties[key].items() if name != "default"}
        names = {"type": "array", "items": folders["propertyNames"]}
        properties[key] = {"anyOf": [folders, names]}
    named = {name: value for name, value in properties[PLUGINS].items() if name != "default"}
    folder = {"type": "string"}
    named["additionalProperties"] = {"anyOf": [folder, named["additionalProperties"]]}
    properties[PLUGINS] = {"anyOf": [named, {"type": "array", "items": folder}]}
    return result

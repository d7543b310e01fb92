"""The command that made a run: as it was typed, which stays, and without folders for the report.

Both are quoted for a shell, so that what is printed can be typed again.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

# The options whose values are a hospital's own places.
PRIVATE_OPTIONS = ("--data", "--site", "--secret")
# The keys of a study under which its hospitals' places and the way to the hub stand.
PRIVATE_KEYS = ("sites.", "held_out.", "site_overrides.", "exchange", "start")
# What stands for a place that is not shown.
LEFT_OUT = "..."

_PROGRAMS = ("medfed", "medfed.exe")
_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]*@")


def typed_command(argv: Sequence[str]) -> str:
    """Return the line that was typed, or '' if Python called medfed; passwords in addresses are left out.

    >>> typed_command(["/usr/bin/medfed", "train", "s.yaml", "--set", "train.optimiser={kind: adam}"])
    "medfed train s.yaml --set 'train.optimiser={kind: adam}'"
    >>> typed_command(["ipykernel_launcher.py", "-f", "kernel.json"])
    ''
    """
    if not _is_medfed(argv):
        return ""
    return shlex.join(["medfed", *(_CREDENTIALS.sub("", part) for part in argv[1:])])


def shown_command(argv: Sequence[str]) -> str:
    """Return the line for the report: of a path its last part, and of a hospital's own places nothing.

    >>> shown_command(["medfed", "train", "/srv/s.yaml", "--set", "sites.north=/srv/north", "--resume"])
    'medfed train s.yaml --set sites.north=... --resume'
    """
    if not _is_medfed(argv):
        return ""
    parts = argv[1:]
    before = ["", *parts]
    return shlex.join(["medfed", *map(_shown, parts, before)])


def _is_medfed(argv: Sequence[str]) -> bool:
    """Return whether this process is medfed's command, by its name or by `python -m medfed.cli`."""
    program = Path(argv[0]) if argv else Path()
    return program.name in _PROGRAMS or (program.name == "__main__.py" and "medfed" in program.parts)


def _shown(part: str, before: str) -> str:
    option, equals, value = part.partition("=")
    if before in PRIVATE_OPTIONS:
        return LEFT_OUT
    if equals and (option in PRIVATE_OPTIONS or option.startswith(PRIVATE_KEYS)):
        return f"{option}={LEFT_OUT}"
    if not _is_path(part):
        return part
    if not equals or _is_path(option):
        return _last(part)
    # Of a list or a mapping the last part would be half of it.
    return f"{option}={LEFT_OUT if any(mark in value for mark in '{}[]') else _last(value)}"


def _is_path(text: str) -> bool:
    return "/" in text or "\\" in text


def _last(path: str) -> str:
    """Return a path's last part; what looks like a path and has none is left out."""
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1] or LEFT_OUT

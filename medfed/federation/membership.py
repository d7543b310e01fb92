"""When each site's first update was merged, and the model from just before: where unlearning a site starts.

A hub keeps only the newest rounds' checkpoints. The one from before a site joined is kept beside them, in
`joined/`, so that a site's withdrawal costs only the rounds since it joined. Sites that join together share
one.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from medfed.files import replacing, write_whole

# In a hub's folder: a site's name to the round of its first merged update.
FILE = "joined.json"
# In a hub's folder: the sites that joined while the study ran, and the first round that each was asked for.
JOINS = "joins.json"
# In a hub's folder: the checkpoints from before.
FOLDER = "joined"


def first_rounds(hub: Path) -> dict[str, int]:
    """Return for each site the round into which its first update was merged."""
    path = hub / FILE
    return msgspec.json.decode(path.read_bytes(), type=dict[str, int]) if path.exists() else {}


def recorded_joins(hub: Path) -> dict[str, int]:
    """Return the sites that joined while the study ran, and the first round that each was asked for."""
    path = hub / JOINS
    return msgspec.json.decode(path.read_bytes(), type=dict[str, int]) if path.exists() else {}


def record_joins(hub: Path, joins: Mapping[str, int]) -> None:
    """Record the sites that joined while the study ran, before they are asked to train."""
    write_whole(hub / JOINS, msgspec.json.encode(dict(joins)), durable=True)


def record_first_rounds(hub: Path, round: int, merged: Iterable[str]) -> None:
    """Record the sites that are merged for the first time, and keep the checkpoint of the round before."""
    known = first_rounds(hub)
    new = sorted(set(merged) - set(known))
    if not new:
        return
    before = f"round-{round - 1:05d}.safetensors"
    # Round 0 is the untrained model, which the study's seed gives again.
    if round > 1 and (hub / before).exists():
        with replacing(hub / FOLDER / before, durable=True) as unfinished:
            shutil.copyfile(hub / before, unfinished)
    write_whole(hub / FILE, msgspec.json.encode({**known, **dict.fromkeys(new, round)}), durable=True)

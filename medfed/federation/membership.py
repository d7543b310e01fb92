"""When each site's first update was merged, and the model from just before: what a withdrawal goes back to.

A hub keeps the newest rounds' checkpoints only. The one before a site joined is kept beside them, in
`joined/`, so that a site that withdraws costs the rounds since it joined and no more. Sites that
join together share one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import msgspec

# In a hub's folder: a site's name to the round of its first merged update.
FILE = "joined.json"
# In a hub's folder: the checkpoints from before.
FOLDER = "joined"


def joined(hub: Path) -> dict[str, int]:
    """Return the round in which each site's first update was merged."""
    path = hub / FILE
    return msgspec.json.decode(path.read_bytes(), type=dict[str, int]) if path.exists() else {}


def remember(hub: Path, round: int, merged: Iterable[str]) -> None:
    """Write down which of the sites merged in this round are new, and keep the checkpoint
    of the round before.
    """
    known = joined(hub)
    new = sorted(set(merged) - set(known))
    if not new:
        return
    before = f"round-{round - 1:05d}.safetensors"
    # Round 0 is the untrained model, which the study's seed gives again.
    if round > 1 and (hub / before).exists():
        (hub / FOLDER).mkdir(exist_ok=True)
        _write(hub / FOLDER / before, None, hub / before)
    _write(hub / FILE, msgspec.json.encode({**known, **dict.fromkeys(new, round)}))


def _write(path: Path, data: bytes | None, source: Path | None = None) -> None:
    aside = path.with_suffix(".writing")
    if source is not None:
        shutil.copyfile(source, aside)
    else:
        aside.write_bytes(data or b"")
    with aside.open("rb+") as file:
        os.fsync(file.fileno())
    aside.replace(path)

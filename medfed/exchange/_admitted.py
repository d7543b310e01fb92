"""Which sites may read and write which study at a broker; kept in the coordinator's enrolment folder.

The broker's configuration is made from it (`deployment/enrolment/configuration.py`), which watches the file.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from medfed.exchange._study_store import space_of
from medfed.files import lock, write_whole
from medfed.wire.signing import BROKER

# In the broker's folder, or in the enrolment where the brokers are a cluster: which sites each study has.
STUDIES = "studies.json"


def _studies(enrolment: Path) -> Path:
    own = enrolment / BROKER
    return own / STUDIES if own.is_dir() else enrolment / STUDIES


def admitted_studies(enrolment: Path) -> dict[str, list[str]]:
    """Return the sites of each study that the broker knows, by the study's token in subjects."""
    path = _studies(enrolment)
    return msgspec.json.decode(path.read_bytes(), type=dict[str, list[str]]) if path.exists() else {}


def record_admitted(enrolment: Path, study_digest: str, sites: Iterable[str], *, keep: bool = False) -> bool:
    """Let these sites, and no others, read and write a study; return whether that is new.

    With `keep` those that were admitted to the study before stay.
    """
    path = _studies(enrolment)
    with path.with_suffix(".lock").open("w") as file:
        lock(file)
        admitted, space = admitted_studies(enrolment), space_of(study_digest)
        own = {space: sorted({*sites, *(admitted.get(space, ()) if keep else ())})}
        if own.items() <= admitted.items():
            return False
        write_whole(path, msgspec.json.encode({**admitted, **own}), durable=True)
    return True

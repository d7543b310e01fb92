"""The canonical form of a study: what its digest covers, and the file that the hub publishes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import yaml

from medfed.study.study import Study

# The keys of `evaluation` that say what is trained or measured beside the federated model, and stays there.
COMPARISONS = ("local_models", "pooled_model", "robustness", "seeds")

_SHA256 = re.compile(r"[0-9a-f]{64}")


def to_dict(study: Study) -> dict[str, Any]:
    """Return a study as plain values, with every default written out."""
    plain: dict[str, Any] = msgspec.to_builtins(study)
    return plain


def study_digest(study: Study) -> str:
    """Return the SHA-256 of a study's canonical form, by which hospitals approve it.

    It covers the names of the sites but not their folders, which are each hospital's own matter. Nor does it
    cover the exchange: how a party reaches the hub is in its own file and does not change what is computed.
    Nor does it cover with what the federated model is compared (`COMPARISONS`): nobody else sees it, and it
    may change when a run is resumed.
    """
    # A number may be a key (`classes: {1: liver}`), which JSON has as a text only.
    plain = msgspec.to_builtins(_canonical(study), str_keys=True)
    plain["evaluation"] = {key: value for key, value in plain["evaluation"].items() if key not in COMPARISONS}
    return hashlib.sha256(msgspec.json.encode(plain, order="sorted")).hexdigest()


def public_yaml(study: Study) -> str:
    """Return the study file that the hub sends to the sites: what they approve, without folders."""
    text: str = yaml.safe_dump(_canonical(study), sort_keys=False, allow_unicode=True)
    return text


def comparisons_of(evaluation: Mapping[str, Any]) -> list[str]:
    """Return which comparisons a study's section `evaluation` asks for."""
    return [
        name for name in COMPARISONS if evaluation.get(name) is True or int(evaluation.get(name) or 0) > 1
    ]


def start_digest(start: str) -> str:
    """Return the SHA-256 of the checkpoint that a study starts from.

    A study file names the checkpoint by its path; a study that came from a hub already gives the digest.
    """
    return start if _SHA256.fullmatch(start) else hashlib.sha256(Path(start).read_bytes()).hexdigest()


def _canonical(study: Study) -> dict[str, Any]:
    plain = to_dict(study)
    plain["sites"], plain["held_out"] = sorted(study.sites), sorted(study.held_out)
    del plain["exchange"]
    if study.start is not None:
        # The content of the checkpoint counts, not where a hospital stores it.
        plain["start"] = start_digest(study.start)
    return plain

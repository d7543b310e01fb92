"""The canonical form of a study: what its digest covers, and the file that the hub publishes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

import msgspec
import yaml

from medfed.errors import StudyError
from medfed.models.pretrained.source import weights_digest
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
    cover the exchange and the trackers: how a party reaches the hub, and where it watches, is in its own file
    and does not change what is computed. Nor the search, which comes before a study and does not change it,
    nor how a simulation is spread over one machine. Nor does it cover with what the federated model is
    compared (`COMPARISONS`): nobody else sees it, and it may change when a run is resumed.
    """
    return digest_of(_canonical(study))


def digest_of(plain: dict[str, Any]) -> str:
    """Return the digest of a study's canonical form, such as `public_yaml` writes it."""
    # A number may be a key (`classes: {1: liver}`), which JSON has as a text only.
    named = msgspec.to_builtins(plain, str_keys=True)
    if isinstance(evaluation := named.get("evaluation"), dict):
        named["evaluation"] = {key: value for key, value in evaluation.items() if key not in COMPARISONS}
    return hashlib.sha256(msgspec.json.encode(named, order="sorted")).hexdigest()


def public_yaml(study: Study) -> str:
    """Return the study file that the hub sends to the sites: what they approve, without folders."""
    text: str = yaml.safe_dump(_canonical(study), sort_keys=False, allow_unicode=True)
    return text


def comparisons_of(evaluation: Mapping[str, Any]) -> list[str]:
    """Return which comparisons a study's section `evaluation` asks for."""
    values = {name: evaluation.get(name) or 0 for name in COMPARISONS}
    return [name for name, value in values.items() if value is True or value > 1]


def start_digest(start: str) -> str:
    """Return the SHA-256 of the weights that a study starts from.

    A study file names them by their path; a study that came from a hub already gives the digest.

    Raises:
        StudyError: if the file is missing, or is no file of weights.
    """
    return start if is_digest(start) else weights_digest(start)


def is_digest(start: str) -> bool:
    """Return whether a start is given by its SHA-256 alone, as in a study that came from a hub."""
    return _SHA256.fullmatch(start) is not None


def _canonical(study: Study) -> dict[str, Any]:
    plain = to_dict(study)
    plain["sites"], plain["held_out"] = sorted(study.sites), sorted(study.held_out)
    del plain["exchange"], plain["trackers"], plain["search"], plain["simulation"]
    if (start := study.given_start) is not None:
        # The content of the weights counts, not where a hospital stores them.
        digest = start_digest(start.path)
        plain["start"] = digest if isinstance(study.start, str) else {**plain["start"], "path": digest}
    plain["plugins"] = _plugin_digests(study)
    if study.describe is None:  # a study without it keeps the digest by which it was approved
        del plain["describe"]
    elif study.describe.noise is None:
        del plain["describe"]["noise"]
    if not plain["data"].get("transforms", True):  # likewise, and so below
        del plain["data"]["transforms"]
    if plain["task"].get("postprocess") == "none":
        del plain["task"]["postprocess"]
    if not study.train.last_rounds_on_all:
        del plain["train"]["last_rounds_on_all"]
    if plain["privacy"].get("augmentations") == 1:
        del plain["privacy"]["augmentations"]
    if study.data.fold is None:
        del plain["data"]["fold"]
    if not study.sampling.joining:
        del plain["sampling"]["joining"]
    if not study.plugins:  # a study without any keeps the digest by which it was approved
        del plain["plugins"]
    return plain


def _plugin_digests(study: Study) -> dict[str, dict[str, str]]:
    """Return the digest of each plug-in, sorted by name: where a party's copy is, is its own matter."""
    for name, plugin in study.plugins.items():
        if plugin.digest is None:
            raise StudyError(f"plugins.{name}: it was not read yet; read the study with read_study")
    return {name: {"digest": str(study.plugins[name].digest)} for name in sorted(study.plugins)}

"""The channels of a drafted study: by name and in one order where the hospitals' folders name them."""

from __future__ import annotations

import math
from collections.abc import Mapping

from medfed.data.channels import printable
from medfed.data.class_names import words_of
from medfed.data.preflight.preflight import Preflight
from medfed.data.settings import Unreadable
from medfed.errors import DataError
from medfed.pipeline._draft import yaml_inline


def draft_channels(preflights: Mapping[str, Preflight]) -> tuple[str, list[str]]:
    """Return `data.channels` as YAML, and warnings where the order of channels rests on trust.

    Raises:
        DataError: if the hospitals have different numbers of channels, or different ones by name.
    """
    usual = {site: _usual_count(one) for site, one in preflights.items()}
    counts = set(usual.values())
    if len(counts) > 1 or None in counts:
        found = "; ".join(f"{site}: {_in_words(one.facts['channels'])}" for site, one in preflights.items())
        raise DataError(
            f"the hospitals' images have different numbers of channels ({found}); a study needs the same "
            "number everywhere"
        )
    text, warnings = _by_names(preflights, str(counts.pop()))
    odd = {
        site: sum(one.facts["channels"].values()) - one.facts["channels"][usual[site]]
        for site, one in preflights.items()
    }
    return text, warnings + [
        f"{site}: {count} of its images have another number of channels than the others "
        f"({_in_words(preflights[site].facts['channels'])}); training leaves them out"
        for site, count in odd.items()
        if count
    ]


def _usual_count(preflight: Preflight) -> str | None:
    """Return a hospital's number of channels, or None if more images have another than training bears."""
    counts: Mapping[str, int] = preflight.facts["channels"]
    usual = max(counts, key=lambda number: counts[number], default=None)
    cases = sum(counts.values())
    if usual is None or cases - counts[usual] > math.ceil(Unreadable().max_share * cases):
        return None
    return usual


def _in_words(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{number} in {count} cases" for number, count in sorted(counts.items()))


def _by_names(preflights: Mapping[str, Preflight], count: str) -> tuple[str, list[str]]:
    """Return `data.channels` of images that have `count` channels, and warnings."""
    named = {site: one.facts["channel_names"] for site, one in preflights.items()}
    named = {site: names for site, names in named.items() if names}
    told = "; ".join(f"{site}: {printable(names)}" for site, names in named.items())
    different = len({frozenset(map(words_of, names)) for names in named.values()}) > 1
    if count == "1":
        warning = f"the hospitals call their images differently ({told}); make sure that they are of one kind"
        return "1", [warning] if different else []
    if different:
        raise DataError(
            f"the hospitals name their channels differently ({told}); call them alike in dataset.json, by "
            "the folders' or files' names, or by each site's `layout`"
        )
    unnamed = [site for site in preflights if site not in named]
    warnings = [
        f"{site}: nothing in its folder names the channels of a case; make sure that they are in the order "
        "of the study"
        for site in unnamed
        if not preflights[site].facts["colours"]
    ]
    if not named:
        return count, warnings
    first = next(iter(named.values()))
    return yaml_inline(first), warnings

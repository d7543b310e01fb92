"""The channels of a drafted study: by name and in one order where the hospitals' folders name them."""

from __future__ import annotations

from collections.abc import Mapping

from medfed.data.channels import printable
from medfed.data.class_names import words_of
from medfed.data.preflight.preflight import Preflight
from medfed.errors import DataError
from medfed.pipeline._draft import yaml_inline


def draft_channels(preflights: Mapping[str, Preflight]) -> tuple[str, list[str]]:
    """Return `data.channels` as YAML, and warnings where the order of channels rests on trust.

    Raises:
        DataError: if the hospitals have different numbers of channels, or different ones by name.
    """
    counts = {number for one in preflights.values() for number in one.facts["channels"]}
    if len(counts) > 1:
        raise DataError(
            f"the hospitals' images have {' and '.join(sorted(counts))} channels; a study needs the same "
            "number everywhere"
        )
    named = {site: one.facts["channel_names"] for site, one in preflights.items()}
    named = {site: names for site, names in named.items() if names}
    told = "; ".join(f"{site}: {printable(names)}" for site, names in named.items())
    different = len({frozenset(map(words_of, names)) for names in named.values()}) > 1
    if counts == {"1"}:
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
        if not preflights[site].facts["in_pixels"]
    ]
    if not named:
        return counts.pop(), warnings
    first = next(iter(named.values()))
    return yaml_inline(first), warnings

"""Whose patients a folder holds, as far as a run can tell: a guarantee is of one hospital's patients alone.

A run's `trained.json` has keyed digests of the cases that trained the model or calibrated its thresholds, by
hospital. A folder with one of them is that hospital's. Patients that no run has seen are known to nobody:
then it is said that their hospital is the word of whoever runs the command.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from medfed.errors import RunError
from medfed.evaluation.rows import EVERY_SITE
from medfed.runs.folder import RunFolder
from medfed.runs.trained import read_trained
from medfed.study.study import Study
from medfed.wire.untrusted_text import for_log


def guaranteed_name(name: str, own: str, default: str = "evaluated") -> str:
    """Return whose guarantee is asked for: the hospital of the site file (`own`), else `name`.

    Raises:
        RunError: if they are different hospitals.
    """
    if own and name not in (default, own, EVERY_SITE):
        raise RunError(
            f"--name is '{for_log(name, 64)}', and the site file is of '{own}': a guarantee is of one "
            "hospital's own patients; leave --name out"
        )
    return name if name == EVERY_SITE or not own else own


def check_folder(study: Study, data: Path, name: str) -> None:
    """Raise if a simulation's study gives this folder or table to another hospital than `name`.

    Raises:
        RunError: naming that hospital.
    """
    for site, place in {**study.sites, **study.held_out}.items():
        same = place is not None and Path(place).exists() and Path(place).resolve() == data.resolve()
        if same and site != name and (name != EVERY_SITE or site in study.held_out):
            raise RunError(_other(site, name, "by the study, this folder is that"))


def check_whose(folder: RunFolder, contents: Iterable[bytes], name: str) -> str:
    """Return a sentence on whose patients these are, by the digests of their images or rows.

    Raises:
        RunError: if one of them is of another hospital than `name`.
    """
    trained = read_trained(folder.trained)
    if trained is None:
        return (
            f"That these are patients of {name} is the word of whoever ran this: this run folder knows no "
            "case of any hospital."
        )
    every = list(contents)
    known = Counter(site for content in every if (site := trained.site_of(content)) is not None)
    others = {site: number for site, number in sorted(known.items()) if site != name}
    if others and name != EVERY_SITE:
        site, number = next(iter(others.items()))
        raise RunError(
            _other(site, name, f"{number} of the {len(every)} cases were training or validation cases")
        )
    if known:
        return (
            f"{sum(known.values())} of the {len(every)} cases trained the model or chose this threshold, as "
            f"cases of {' and '.join(sorted(known))}: the guarantee is of the others, the next patients."
        )
    return (
        f"None of the {len(every)} cases is known to this run: that they are patients of {name} is the word "
        "of whoever ran this. `medfed watch-model` compares new patients with those it was chosen on."
    )


def _other(site: str, name: str, found: str) -> str:
    return (
        f"a guarantee of '{for_log(name, 64)}' was asked for, and {found} of '{site}': a threshold "
        f"holds for the hospital that it was chosen at; give its own folder, or --name {site} if it has one"
    )

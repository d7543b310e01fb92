"""A study without each of its hospitals in turn: what a hospital that joins nothing gets, and
what each one gave.

The model trained without a hospital and tested on it says how the federation would do at a hospital like it
that took no part. What the federation loses at the others when a hospital leaves is that hospital's
contribution (Cook's leave-one-out, Technometrics 1977); paired by patient, it has an interval like any
difference of two models.
"""

from __future__ import annotations

import msgspec

from medfed.errors import StudyError
from medfed.study.study import Study


def studies_without(study: Study) -> dict[str, Study]:
    """Return, for each hospital, the study of all the others: the same seed, rounds and
    settings, one site fewer.

    A quorum of more sites than are left becomes all that are left.

    Raises:
        StudyError: if fewer than three hospitals train, or the rule cannot merge one fewer.
    """
    if len(study.sites) < 3:
        raise StudyError(
            f"study '{study.name}': --leave-one-out needs at least 3 sites, as 2 must be left to federate; it has "
            f"{len(study.sites)}"
        )
    left = len(study.sites) - 1
    fewest = study.rule.min_sites()
    if fewest > left:
        raise StudyError(
            f"study '{study.name}': --leave-one-out leaves {left} sites and the rule needs {fewest}; train without it, "
            f"or take a rule that needs fewer"
        )
    minimum = min(study.minimum, left)
    return {
        site: msgspec.structs.replace(
            study,
            sites={name: where for name, where in study.sites.items() if name != site},
            sampling=msgspec.structs.replace(study.sampling, minimum=minimum),
        )
        for site in sorted(study.sites)
    }

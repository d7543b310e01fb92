"""The federation without each of its hospitals in turn.

The model trained without a hospital and tested on it shows how the federation would do at a similar hospital
that took no part. What the federation loses at the other hospitals when one leaves is that hospital's
contribution (Cook's leave-one-out, Technometrics 1977); paired by patient, it has an interval like any
difference of two models.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import msgspec

from medfed.errors import StudyError
from medfed.evaluation.rows import without
from medfed.files import private_folder
from medfed.pipeline.federate import StudyRun, federate
from medfed.registry import kind_of
from medfed.runs.checkpoints import load_or_train
from medfed.runs.folder import RunFolder
from medfed.study.study import Study
from medfed.wire.audit_log import AuditLog
from medfed.wire.weights import Weights


def models_without_each(run: StudyRun) -> dict[str, Weights]:
    """Return the federated model without each hospital by name; saved models are not trained again."""
    return {
        without(site): load_or_train(
            run.folder.checkpoint(without(site)), smaller.train.rounds, partial(_train, run, site, smaller)
        )
        for site, smaller in studies_without(run.study).items()
    }


def _train(run: StudyRun, site: str, smaller: Study) -> Weights:
    run.progress.log(f"the federation without {site}")
    folder = RunFolder(run.folder.path / "leave-one-out" / site)
    private_folder(folder.path)
    # Its merges are not those of the study's model, whose log says who trained it.
    return federate(replace(run, study=smaller, folder=folder, audit=AuditLog(folder.audit))).weights


def studies_without(study: Study) -> dict[str, Study]:
    """Return for each hospital the study of all the others, with the same seed, rounds and settings.

    A quorum larger than the remaining number of sites becomes that number.

    Raises:
        StudyError: if fewer than three hospitals train, the rule cannot merge one fewer, or the privacy
            mechanism shows sums without noise.
    """
    if len(study.sites) < 3:
        raise StudyError(
            f"study '{study.name}': --leave-one-out needs at least 3 sites, as 2 must be left to federate; "
            f"it has {len(study.sites)}"
        )
    require_noised_sums(study, "--leave-one-out")
    others, fewest = len(study.sites) - 1, study.rule.min_sites
    if fewest > others:
        raise StudyError(
            f"study '{study.name}': --leave-one-out leaves {others} sites and the rule needs {fewest}; train "
            "without --leave-one-out, or choose a rule that needs fewer sites"
        )
    return {site: study_without(study, site) for site in sorted(study.sites)}


def require_noised_sums(study: Study, command: str) -> None:
    """Check that a second training without a hospital would not undo the study's privacy.

    Two sums from one model, with and without a hospital, differ by its update and by what the others draw by
    chance in training. That is little, and none where a step holds all cases and nothing is augmented.

    Raises:
        StudyError: if the study hides updates in sums to which no noise is added.
    """
    privacy = study.privacy
    if privacy.reveals_each_update or privacy.planned(study.train.rounds).round_cost() is not None:
        return
    anew = (
        ""
        if study.start is not None
        else (
            "remove the hospital from `sites` and set another `seed`, so that training starts from another "
            "untrained model, or "
        )
    )
    raise StudyError(
        f"study '{study.name}': {command} would make two sums from one model under '{kind_of(privacy)}', "
        f"with and without a hospital, and their difference is that hospital's update; {anew}take privacy "
        "distributed_dp, whose noise covers both"
    )


def study_without(study: Study, site: str) -> Study:
    """Return the study of the other hospitals; a quorum larger than their number becomes that number."""
    sites = {name: path for name, path in study.sites.items() if name != site}
    sampling = msgspec.structs.replace(study.sampling, minimum=min(study.minimum, len(sites)))
    return msgspec.structs.replace(study, sites=sites, sampling=sampling)

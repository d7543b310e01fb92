"""The federation again with other seeds: how much of a result is the luck of one training.

The splits stay, so every model is measured on the same patients; initial weights, order of cases and
augmentation change. One seed gives the same model again on one machine, but another number of threads or
another processor rounds differently and gives another model, as another seed does (Bouthillier et al., MLSys
2021, arXiv:2103.03098).
"""

from __future__ import annotations

from functools import partial

import msgspec

from medfed.errors import StudyError
from medfed.evaluation.rows import of_seed
from medfed.pipeline.experiments.repeated_training import require_no_privacy, run_again
from medfed.pipeline.federate import StudyRun, federate
from medfed.runs.checkpoints import load_or_train
from medfed.runs.folder import RunFolder
from medfed.study.study import Study
from medfed.wire.weights import Weights


def models_of_seeds(run: StudyRun) -> dict[str, Weights]:
    """Return the federated model of each further seed by name; saved models are not trained again."""
    return {
        of_seed(study.seed): load_or_train(
            run.folder.checkpoint(of_seed(study.seed)), study.train.rounds, partial(_train, run, study)
        )
        for study in studies_of_seeds(run.study)
    }


def studies_of_seeds(study: Study) -> list[Study]:
    """Return the study with each further seed of `evaluation.seeds`: the study's own seed plus 1, 2, ...

    Raises:
        StudyError: if training again would tell more than the study's privacy counts, or hospitals keep
            layers of their own.
    """
    if study.evaluation.seeds == 1:
        return []
    named = f"study '{study.name}': evaluation.seeds: {study.evaluation.seeds} would train again"
    require_no_privacy(study, named, "take seeds: 1")
    if study.keep_local:
        raise StudyError(
            f"{named}, and a model whose layers stay in the hospitals (keep_local) is not kept for each "
            "seed; take seeds: 1"
        )
    further = range(study.seed + 1, study.seed + study.evaluation.seeds)
    return [msgspec.structs.replace(study, seed=seed) for seed in further]


def _train(run: StudyRun, study: Study) -> Weights:
    run.progress.log(f"the federation with seed {study.seed}")
    folder = RunFolder(run.folder.path / "seeds" / str(study.seed))
    return federate(run_again(run, study, folder)).weights

"""Each hospital's own model, trained on its cases alone: what it would have without the federation."""

from __future__ import annotations

from functools import partial

from medfed.errors import MedfedError
from medfed.evaluation.rows import local
from medfed.federation.site import train_alone
from medfed.pipeline.factory import module_of, site_config_of
from medfed.pipeline.federate import StudyRun
from medfed.runs.checkpoints import load_or_train
from medfed.wire.weights import Weights, weights_of


def train_local_models(run: StudyRun) -> tuple[dict[str, Weights], dict[str, str]]:
    """Return each hospital's own model, and why a model is missing; saved models are not trained again.

    The budget is that of the federation. A hospital whose cases cannot be read has no model of its own.
    """
    models: dict[str, Weights] = {}
    missing: dict[str, str] = {}
    for site in sorted(run.study.sites):
        path = run.folder.checkpoint(local(site))
        try:
            models[local(site)] = load_or_train(path, run.study.train.rounds, partial(_train, run, site))
        except MedfedError as error:
            missing[local(site)] = str(error)
            run.progress.log(f"{site}: no model of its own: {error}")
    return models, missing


def _train(run: StudyRun, site: str) -> Weights:
    run.progress.log(f"{site}: its own model, for comparison")
    module = module_of(run.study, site)
    data, training = run.hospital(site).data, site_config_of(run.study, site)
    train_alone(site, module, data, training, folder=run.folder.site(site))
    return weights_of(module)

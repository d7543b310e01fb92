"""What a hospital measures on its own cases: the final model, and its own model for comparison."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from medfed.deployment.earlier_results import apart_from_earlier
from medfed.deployment.policy import egress_under
from medfed.deployment.site_file import SiteFile
from medfed.deployment.site_session import SiteSession
from medfed.deployment.study_page import OwnPart
from medfed.evaluation.aggregate import aggregate
from medfed.evaluation.guarantees import Level, guarantees
from medfed.evaluation.inference import SiteCases
from medfed.evaluation.metrics import metric_of
from medfed.evaluation.patients import SummarySettings
from medfed.evaluation.probabilities import temperature_scaled
from medfed.evaluation.row_transport import scalars_of
from medfed.evaluation.rows import FEDERATED, UNTRAINED, CaseRow, Row, local, read_cases
from medfed.federation.config import SiteConfig
from medfed.federation.site import train_alone
from medfed.pipeline.factory import module_of, site_config_of
from medfed.pipeline.measure_models import measure_site, write_baselines, write_gallery
from medfed.pipeline.small_scores import patient_counts
from medfed.runs.checkpoints import load_checkpoint, save_checkpoint
from medfed.runs.rounds import WITHHELD
from medfed.study.study import Study
from medfed.wire.update import GlobalModel
from medfed.wire.weights import Weights, weights_of


def site_config_under_policy(site: SiteFile, study: Study, hospital: SiteCases) -> SiteConfig:
    """Return how this site trains: as the study says, on its own devices, under its own policy."""
    egress = egress_under(study, site.policy, patient_counts(study, hospital.data))
    config = site_config_of(study, site.name)
    return replace(config, accelerator=site.accelerator, devices=site.devices, egress=egress)


def measure_final_model(session: SiteSession, received: GlobalModel) -> Mapping[str, float]:
    """Measure the final model on this hospital's test cases, and return the results that may leave."""
    study, folder, progress = session.study, session.folder, session.progress
    session.status.update(state="measuring the final model", round=received.merges)
    progress.log("measuring the final model on this hospital's test cases")
    if study.task.predicts == "survival":
        progress.log(
            "Brier scores rest on this hospital's own baseline hazard, and stay here; the c-index leaves"
        )
    untrained = weights_of(module_of(study))
    _measure(session, {UNTRAINED: untrained, FEDERATED: {**untrained, **received.weights}})
    if not OwnPart(study, session.site).results or not folder.cases.exists():
        return {}
    classes = getattr(study.task, "classes", ())
    predicted = cases = read_cases(folder.cases)
    if study.evaluation.temperature:
        cases, _ = temperature_scaled(predicted, classes)
    settings = SummarySettings(
        round=received.merges,
        seed=study.seed,
        classes=classes,
        held_out=tuple(study.held_out),
        min_patients=max(session.site.policy.smallest_group, study.evaluation.smallest_group),
        draws=study.evaluation.draws,
    )
    measured = aggregate(cases, settings) + _guarantees(session, predicted, settings)
    own = [row for row in measured if row.site == session.name]
    rows = apart_from_earlier(session, cases, own)
    if withheld := sum(one.is_suppressed and metric_of(one.metric).comparable for one in rows):
        progress.log(f"{withheld} results stay here: they are, or would give, those of too few patients")
    return {**scalars_of(rows), **({WITHHELD: float(withheld)} if withheld else {})}


def _guarantees(session: SiteSession, cases: list[CaseRow], settings: SummarySettings) -> list[Row]:
    """Return this hospital's guaranteed thresholds, if the study asks for them.

    `cases` are as predicted, without a temperature: `predict` decides on these.
    """
    evaluation, path = session.study.evaluation, session.folder.scores
    if evaluation.guarantee is None:
        return []
    scores = read_cases(path) if path.is_file() else []
    return guarantees(cases, scores, settings, Level(evaluation.guarantee, evaluation.confidence))


def compare_local_model(session: SiteSession) -> None:
    """Train a model on the hospital's cases alone and measure it; neither it nor its results leave."""
    study, folder, name = session.study, session.folder, session.name
    path = folder.checkpoint(local(name))
    if path.exists():
        own = load_checkpoint(path)
    else:
        session.progress.log(f"{name}: its own model, for comparison; it stays here")
        module = module_of(study, name)
        config = replace(site_config_under_policy(session.site, study, session.hospital), devices=1)
        train_alone(name, module, session.hospital.data, config, folder=folder.site(name))
        own = weights_of(module)
        save_checkpoint(path, own, study.train.rounds)
    untrained = weights_of(module_of(study))
    federated = load_checkpoint(folder.checkpoint(FEDERATED))
    _measure(session, {UNTRAINED: untrained, FEDERATED: {**untrained, **federated}, local(name): own})


def write_own_gallery(session: SiteSession) -> None:
    """Write the pictures of this hospital's worst, median and best cases, which stay here."""
    study, folder = session.study, session.folder
    if folder.cases.exists():
        untrained, federated = weights_of(module_of(study)), load_checkpoint(folder.checkpoint(FEDERATED))
        write_gallery(study, folder, [session.hospital], {FEDERATED: {**untrained, **federated}})


def _measure(session: SiteSession, models: Mapping[str, Weights]) -> None:
    """Measure models on this hospital's cases; a survival baseline hazard is that of its own patients."""
    session.folder.cases.unlink(missing_ok=True)
    session.folder.scores.unlink(missing_ok=True)
    if session.study.task.predicts == "survival":
        write_baselines(session.study, session.folder, [session.hospital], models)
    measure_site(session.study, session.folder, session.hospital, models)

"""One run of a study, from its file to its report: what the commands do, and what `medfed.train` does as a library."""

from __future__ import annotations

import hashlib
import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import torch
import yaml

from medfed import baseline as baselines
from medfed import privacy_facts, withdrawal
from medfed.audit import AuditLog
from medfed.data.cache import cache_root
from medfed.data.settings import Table
from medfed.data.splits import SPLITS
from medfed.errors import DataError, MedfedError, RunError, StudyError
from medfed.evaluation.rows import (
    FEDERATED,
    POOLED,
    UNTRAINED,
    append,
    local,
    model_of,
    personal,
    without,
)
from medfed.hub import RoundReport
from medfed.kinds import kind_of
from medfed.measure import Hospital, References, conditions, measure
from medfed.networks import replace_batch_norms
from medfed.plan import planned
from medfed.policy import egress_of
from medfed.privacy_ledger import data_set
from medfed.progress import Progress, Silent
from medfed.run_folder import RunFolder, save_checkpoint, surroundings, write_whole
from medfed.study import Study, digest, read_study, resolved
from medfed.weights import Weights, load, weights_of

if TYPE_CHECKING:
    import pytorch_lightning as pl

    from medfed.data.datamodule import SiteData
    from medfed.data.index import Case
    from medfed.exchange import MemoryExchange
    from medfed.site import Training

# The score that progress shows and that the headline is about, by what a task needs.
SHOWN = {"segment": "val/dice", "classify": "val/auroc", "table": "val/auroc", "survival": "val/c_index"}


# ---------------------------------------------------------------------------------------------- train


def train(
    study: str | Path | Study,
    *,
    out: str | Path | None = None,
    overrides: Sequence[str] = (),
    resume: bool = False,
    leave_one_out: bool = False,
    without: str | None = None,
    former: str | Path | None = None,
    progress: Progress | None = None,
) -> RunFolder:
    """Train a study over its hospitals in this process, measure the models, write the report; return the run folder.

    `without` names a hospital that withdrew from a `former` run of the study (the newest one if None): the study is
    trained again without it, from the last model that it had no part in. With `leave_one_out` the federation is also
    trained without each hospital in turn and tested on it.

    Raises:
        StudyError: what the study file says cannot be done.
        DataError: what a hospital's folder holds cannot be used, naming the site and the case by its salted id.
        QuorumError: too few sites were left; the run resumes.
        RunError: the run folder is taken, or holds another study's run.
    """
    progress = progress or Silent()
    if not isinstance(study, Study):
        study = read_study(study, overrides)
    whole = study
    if without is not None:
        before = None if resume else _folder(study, Path(former) if former is not None else None, resume=True)
        study = withdrawal.without(study, without)
    folder = _folder(study, Path(out) if out is not None else None, resume)
    began = time.monotonic()
    with _quiet():
        places = _folders(study)
        hospitals = {site: _hospital(study, site, where) for site, where in places.items()}
        data = {site: hospital.data for site, hospital in hospitals.items()}
        for site, one in data.items():
            progress.say(f"{site}: {one.index.describe()}")
            for note in one.notes:
                progress.say(f"{site}: {note}")
        facts = _begin(folder, study, data)
        if without is not None and before is not None:
            record = withdrawal.prepare(whole, without, before, folder)
            progress.say(f"without {without}: training goes on from round {record.retrained_from}")
        facts |= withdrawal.facts(folder)
        for note in facts["privacy"]["notes"]:
            progress.say(f"privacy: {note}")
        audit = AuditLog(folder.audit)
        audit.write("began", study=digest(study), sites=sorted(study.sites), resumed=resume)
        if study.data.plan != "given":
            trained = {site: data[site] for site in study.sites}
            study = planned(study, trained, folder.path / "fingerprint.json", audit, progress.say)
            hospitals = {site: _hospital(study, site, where) for site, where in places.items()}
            data = {site: hospital.data for site, hospital in hospitals.items()}
            _write_study(folder, study)
        final = _federate(study, folder, hospitals, progress, audit, resume)
        models = {UNTRAINED: weights_of(_module(study)), FEDERATED: final}
        if study.evaluation.local_models and len(study.sites) > 1:
            models |= _alone(study, folder, data, progress, facts)
        if study.evaluation.pooled_model and len(study.sites) > 1:
            try:
                models[POOLED] = train_pooled(study, folder, data, progress)
            except MedfedError as error:
                # The federation went on without a hospital whose case can't be read; its result must not be lost here.
                facts["missing_models"][POOLED] = str(error)
                progress.say(f"no pooled model: {error}")
        # Models that a local objective left in the folder, one for each hospital.
        models |= {
            model: weights for model, weights in saved(folder).items() if model.startswith("personal:")
        }
        if leave_one_out:
            models |= _without_each(study, folder, hospitals, progress, audit, resume)
        progress.stop()
        progress.say("measuring every model on every hospital's test cases")
        measured = _measure(study, folder, list(hospitals.values()), models, progress, facts)
        _gallery(study, folder, measured, models)
    facts["privacy"] |= privacy_facts.spent(study, {site: folder.site(site) for site in study.sites})
    folder.write_facts({**facts, "seconds": round(time.monotonic() - began, 1), "finished": _now()})
    return report(folder.path)


def _folder(study: Study, out: Path | None, resume: bool) -> RunFolder:
    """Return the run folder: the one named, or the next free runs/NAME, or with `resume` the newest of those."""
    if out is None:
        taken = sorted(Path("runs").glob(f"{study.name}*"), key=lambda path: (len(path.name), path.name))
        mine = [path for path in taken if path.name == study.name or _numbered(path.name, study.name)]
        if resume and not mine:
            raise RunError(f"runs/{study.name}: nothing to resume; leave --resume away to start")
        if resume:
            out = mine[-1]
        else:
            out = Path("runs") / (
                study.name if not mine else f"{study.name}-{_number(mine[-1].name, study.name) + 1}"
            )
    folder = RunFolder(out)
    if resume:
        found = folder.read_facts()["digest"]
        if found != digest(study):
            raise RunError(
                f"{out}: holds a run of study {found[:12]}, the study file's digest is {digest(study)[:12]}; resume with "
                f"the file and the --set that started it, or start anew with another --out"
            )
    elif out.exists() and any(out.iterdir()):
        raise RunError(f"{out}: is not empty; go on with --resume, or give another --out")
    out.mkdir(parents=True, exist_ok=True)
    return folder


def _numbered(name: str, study: str) -> bool:
    return name.startswith(f"{study}-") and name.removeprefix(f"{study}-").isdigit()


def _number(name: str, study: str) -> int:
    return int(name.removeprefix(f"{study}-")) if _numbered(name, study) else 1


def _begin(folder: RunFolder, study: Study, data: dict[str, SiteData]) -> dict[str, Any]:
    _write_study(folder, study)
    facts = {
        "study": study.name,
        "digest": digest(study),
        "seed": study.seed,
        "task": kind_of(study.task),
        "classes": list(getattr(study.task, "classes", ())),
        "sites": sorted(study.sites),
        "held_out": sorted(study.held_out),
        "cases": {site: {split: len(one.cases(split)) for split in ("train", "val", "test")}
                  for site, one in data.items()},
        "layouts": {site: one.index.layout for site, one in data.items()},
        "notes": {site: list(one.notes) for site, one in data.items()},
        "privacy": {"kind": kind_of(study.privacy), "notes": privacy_facts.notes(study, _network(study))},
        # What could not be made or measured, each with its reason: a model by its name, a hospital by its.
        "missing_models": {},
        "unmeasured": {},
        "started": _now(),
        **surroundings(),
    }  # fmt: skip
    folder.write_facts(facts)
    return facts


def _write_study(folder: RunFolder, study: Study) -> None:
    plain = resolved(study)
    write_whole(folder.study, yaml.safe_dump(plain, sort_keys=False, allow_unicode=True).encode())
    # For the report, which may be shared: without the folders, which only this machine's owner needs to know.
    shared = {**plain, "sites": sorted(study.sites), "held_out": sorted(study.held_out)}
    shared["start"] = study.start and Path(study.start).name
    write_whole(folder.study.with_suffix(".json"), msgspec.json.encode(shared))


def secret_of(study: Study, site: str) -> bytes:
    """Return what salts a site's tokens and splits where one person holds all folders."""
    return hashlib.sha256(f"medfed/simulated/{study.seed}/{site}".encode()).digest()


def _folders(study: Study) -> dict[str, str]:
    """Return where each hospital's data lie, which a run in one process has to know."""
    places: dict[str, str] = {}
    for site, where in {**study.sites, **study.held_out}.items():
        if where is None:
            raise StudyError(
                f"site '{site}': the study names no folder for it, and this process trains every site; name one (sites: "
                f"{{{site}: path/to/folder}}), or across hospitals use `medfed hub` and `medfed train --site`"
            )
        places[site] = where
    return places


def _hospital(study: Study, site: str, where: str, secret: bytes | None = None) -> Hospital:
    """Return a site's data, its folder indexed and checked.

    In a simulation one person holds all folders, so the secret that salts tokens and splits is made of the study's
    seed and the site's name, and a run repeats; a hospital's own secret is in its site file.
    """
    from medfed.data.datamodule import SiteData

    secret = secret or secret_of(study, site)
    try:
        data = SiteData.open(
            where,
            study.data,
            study.task.needs,
            site_secret=secret,
            batch=study.at(site).train.batch,
            steps=study.train.steps,
            seed=study.seed,
            classes=len(getattr(study.task, "classes", ())) or None,
            cache_folder=cache_root() / hashlib.sha256(b"medfed/cache/" + secret).hexdigest()[:16],
        )
    except MedfedError as error:
        raise type(error)(f"site '{site}': {error}") from None
    return Hospital(site, data, secret)


def _module(study: Study, site: str = "") -> pl.LightningModule:
    """Return the study's LightningModule with the weights of its seed, the same wherever it is built.

    With a site, it trains as that one does: its own epochs, and what the task says of it.
    """
    network = _network(study)
    if study.privacy.replaces_batch_norm:
        network = replace_batch_norms(network, "group")
    return study.task.module(
        network,
        optimiser=study.train.optimiser,
        schedule=study.train.schedule,
        epochs=study.at(site).epochs,
        patch=getattr(study.data, "patch", None),
        site=site,
    )


def _network(study: Study) -> torch.nn.Module:
    """Return the study's network as its file describes it."""
    from medfed.networks._partial import prepare

    with torch.random.fork_rng():
        torch.manual_seed(study.seed)
        inputs = study.data.inputs if isinstance(study.data, Table) else study.data.channels
        network = study.network.build(inputs, study.task.outputs, getattr(study.data, "patch", None))
        prepare(network, study.start, study.train.lora, study.train.only)
    return network


def _training(study: Study, site: str = "") -> Training:
    from medfed.site import Training

    study = study.at(site)
    return Training(
        epochs=study.epochs,
        local_epochs=study.train.epochs,
        precision=study.train.precision,
        clip=study.train.clip,
        accumulate=study.train.accumulate,
        keep_local=study.keep_local,
        trained_only=study.trained_only,
        optimiser_state=study.train.optimiser_state,
        batch=study.train.batch,
        local=study.local,
        privacy=study.privacy.planned(study.train.rounds),
        egress=egress_of(study),
        compress=study.compress,
        needs=study.rule.needs_scalars,
        seed=study.seed,
    )


def _federate(
    study: Study,
    folder: RunFolder,
    hospitals: dict[str, Hospital],
    progress: Progress,
    audit: AuditLog,
    resume: bool,
) -> Weights:
    from medfed.simulate import run_federation
    from medfed.site import train_site

    privacy = study.privacy.planned(study.train.rounds)
    data = {site: hospital.data for site, hospital in hospitals.items()}
    metric = SHOWN[study.task.needs]

    def site(name: str) -> Callable[[MemoryExchange], None]:
        def work(exchange: MemoryExchange) -> None:
            train_site(
                name,
                _module(study, name),
                data[name],
                exchange,
                _training(study, name),
                folder=folder.site(name),
                examples=data[name].examples,
                audit=audit,
                callbacks=[_steps(progress, name, study.at(name).train.epochs)],
                resume=resume,
                study=digest(study),
                dataset=data_set(data[name].patients("train"), hospitals[name].secret),
                items=data[name].items_by_patient() if privacy.trains_privately else (),
                say=progress.say,
            )

        return work

    def heard(found: RoundReport) -> None:
        progress.round(found)
        _write_round(folder, found)

    # What is not exchanged because it never changes belongs to a checkpoint all the same.
    frozen = weights_of(_module(study)) if study.trained_only else {}

    def merged(current: Any) -> None:
        save_checkpoint(folder.checkpoint(FEDERATED), {**frozen, **current.weights}, current.round)

    progress.start(
        f"{study.name}: {kind_of(study.rule)} over {len(study.sites)} hospitals",
        {name: data[name].examples for name in study.sites},
        study.train.rounds,
        metric,
    )
    try:
        final = run_federation(
            {name: site(name) for name in study.sites},
            weights_of(_module(study), study.keep_local, trained_only=study.trained_only),
            rule=study.rule,
            rounds=study.train.rounds,
            privacy=privacy,
            fraction=study.sampling.fraction,
            minimum=study.minimum,
            seed=study.seed,
            study=digest(study),
            folder=folder.hub,
            watch=heard,
            merged=merged,
            audit=audit,
            compress=study.compress,
        )
    finally:
        progress.stop()
    # As a site has it, where the hub holds a part of the model encrypted.
    whole = {**frozen, **final.weights}
    save_checkpoint(folder.checkpoint(FEDERATED), whole, final.round)
    return whole


def _alone(
    study: Study,
    folder: RunFolder,
    data: dict[str, SiteData],
    progress: Progress,
    facts: dict[str, Any],
) -> dict[str, Weights]:
    """Return each hospital's own model, trained on its cases alone with the same budget, kept where one is there.

    A hospital whose cases cannot be read has none: the federation went on without it, and its result must not be lost.
    """
    from medfed.site import train_alone

    models: dict[str, Weights] = {}
    for name in sorted(study.sites):
        model, path = local(name), folder.checkpoint(local(name))
        if path.exists():
            models[model] = torch.load(path, weights_only=True)["state_dict"]
            continue
        progress.say(f"{name}: its own model, for comparison")
        module = _module(study, name)
        try:
            train_alone(name, module, data[name], _training(study, name), folder=folder.site(name))
        except MedfedError as error:
            facts["missing_models"][model] = str(error)
            progress.say(f"{name}: no model of its own: {error}")
            continue
        models[model] = weights_of(module)
        save_checkpoint(path, models[model], study.train.rounds)
    return models


def saved(folder: RunFolder) -> dict[str, Weights]:
    """Return the weights of every model that a run has saved, by the model's name."""
    return {
        model_of(path.stem): torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
        for path in sorted(folder.checkpoints.glob("*.ckpt"))
    }


def _without_each(
    study: Study,
    folder: RunFolder,
    hospitals: dict[str, Hospital],
    progress: Progress,
    audit: AuditLog,
    resume: bool,
) -> dict[str, Weights]:
    """Return the federated model without each hospital in turn, kept where one is there; each has a folder of its own."""
    from medfed.leave_one_out import studies_without

    models: dict[str, Weights] = {}
    for left_out, smaller in studies_without(study).items():
        model, path = without(left_out), folder.checkpoint(without(left_out))
        if path.exists():
            models[model] = torch.load(path, weights_only=True)["state_dict"]
            continue
        progress.say(f"the federation without {left_out}")
        inner = RunFolder(folder.path / "leave-one-out" / left_out)
        inner.path.mkdir(parents=True, exist_ok=True)
        models[model] = _federate(smaller, inner, hospitals, progress, audit, resume)
        save_checkpoint(path, models[model], study.train.rounds)
    return models


def train_pooled(
    study: Study, folder: RunFolder, data: Mapping[str, SiteData], progress: Progress | None = None
) -> Weights:
    """Return the model trained on all the study's hospitals' cases in one place, kept where one is there."""
    from medfed import pooled

    path = folder.checkpoint(POOLED)
    if path.exists():
        return torch.load(path, weights_only=True)["state_dict"]
    if progress is not None:
        progress.say("all cases in one place, for comparison")
    module = _module(study)
    sites = {name: data[name] for name in study.sites}
    pooled.train_pooled(sites, module, _training(study), batch=study.train.batch, folder=folder.site(POOLED))
    weights = weights_of(module)
    save_checkpoint(path, weights, study.train.rounds)
    return weights


def _steps(progress: Progress, site: str, local_epochs: int) -> pl.Callback:
    import pytorch_lightning as pl

    class Steps(pl.Callback):
        """Tells the display how far a site is in its round."""

        def on_train_batch_start(
            self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
        ) -> None:
            steps = int(trainer.num_training_batches)
            done = (trainer.current_epoch % local_epochs) * steps + batch_idx
            progress.training(site, done, steps * local_epochs)

    return Steps()


def _write_round(folder: RunFolder, found: RoundReport) -> None:
    """Append a line a site; a round that is reported again after a resume is written again, and the last one counts."""
    with folder.rounds.open("ab") as file:
        for answer in found.answers:
            line = {
                "round": found.round,
                "site": answer.site,
                "status": answer.status,
                "reason": answer.reason,
                "examples": answer.examples,
                "seconds": round(answer.seconds, 3),
                "bytes_up": answer.bytes_up,
                "bytes_down": found.bytes_down if answer.status != "not sampled" else 0,
                "scalars": dict(answer.scalars),
            }
            file.write(msgspec.json.encode(line) + b"\n")


# ---------------------------------------------------------------------------------------------- measure and report


def evaluate(
    run: str | Path | RunFolder, data: str | Path, *, name: str = "evaluated", all_cases: bool = False
) -> RunFolder:
    """Measure a run's models on the cases of a hospital's folder and write the report again; return the run folder.

    The hospital is called `name` in rows and report. Its test split is measured, or every case with `all_cases`, which
    is right for a hospital that took no part in the study.

    Raises:
        RunError: if this is no run folder, or the name is that of a hospital that trained.
        DataError: if the folder's cases cannot be used.
    """
    folder = run if isinstance(run, RunFolder) else RunFolder(Path(run))
    facts = folder.read_facts()
    study = read_study(folder.study)
    if name in study.sites:
        raise RunError(
            f"{folder.path}: hospital '{name}' trained in this run; call the one to evaluate something else"
        )
    with _quiet():
        hospital = _hospital(study, name, str(Path(data).resolve()))
        models = {UNTRAINED: weights_of(_module(study)), **saved(folder)}
        cases = _usable(hospital) if all_cases else hospital.data.cases("test")
        if not cases:
            raise DataError(
                f"hospital '{name}': no case is in the test split ({hospital.data.index.describe()}); measure them all with "
                f"--all-cases if none of them took part in training"
            )
        whole = _models_at(study, folder, name, models)
        for model, weights in whole.items():
            _measure_one(study, folder, hospital, cases, "test", model, weights, References(hospital))
        if FEDERATED in whole:
            _measure_changed(study, folder, hospital, cases, whole[FEDERATED], References(hospital))
        _gallery(study, folder, [hospital], models)
    held_out = sorted({*facts["held_out"], name})
    folder.write_facts(
        {**facts, "held_out": held_out, "cases": {**facts["cases"], name: {"test": len(cases)}}}
    )
    return report(folder.path)


def _measure(
    study: Study,
    folder: RunFolder,
    hospitals: Sequence[Hospital],
    models: Mapping[str, Weights],
    progress: Progress,
    facts: dict[str, Any],
) -> list[Hospital]:
    """Measure every model on every hospital's test cases, and on all cases of those that took no part.

    A classifier is measured on validation cases too: its operating point is fixed there and not on what is reported.
    Returns the hospitals that could be measured; one with a case that cannot be read is named in `facts` instead.

    Raises:
        MedfedError: if no hospital could be measured, the first one's reason.
    """
    folder.cases.unlink(missing_ok=True)
    if study.task.needs == "survival":
        _write_baselines(study, folder, hospitals, models)
    measured: list[Hospital] = []
    first: MedfedError | None = None
    for hospital in hospitals:
        try:
            _measure_at(study, folder, hospital, models)
            measured.append(hospital)
        except MedfedError as error:
            first = first or error
            facts["unmeasured"][hospital.name] = str(error)
            progress.say(f"{hospital.name}: nothing measured there: {error}")
    if first is not None and not measured:
        raise first
    return measured


def _measure_at(study: Study, folder: RunFolder, hospital: Hospital, models: Mapping[str, Weights]) -> None:
    splits = ("test",) if study.task.needs == "segment" else ("val", "test")
    references = References(hospital)
    held_out = hospital.name in study.held_out
    for split in ("test",) if held_out else splits:
        cases = _usable(hospital) if held_out else hospital.data.cases(split)
        whole = _models_at(study, folder, hospital.name, models)
        for model, weights in whole.items():
            _measure_one(study, folder, hospital, cases, split, model, weights, references)
        if split == "test" and FEDERATED in whole:
            _measure_changed(study, folder, hospital, cases, whole[FEDERATED], references)


def _measure_changed(
    study: Study,
    folder: RunFolder,
    hospital: Hospital,
    cases: Sequence[Case],
    weights: Weights,
    references: References,
) -> None:
    """Measure the federated model on these cases changed a little, each way that the task knows."""
    for condition in conditions(study.task) if study.evaluation.robustness else ():
        _measure_one(study, folder, hospital, cases, "test", FEDERATED, weights, references, condition)


def _models_at(
    study: Study, folder: RunFolder, site: str, models: Mapping[str, Weights]
) -> dict[str, Weights]:
    """Return the models that can be measured at a hospital: with what it kept for itself, and its personal one.

    Where layers stay in the hospitals the federated model is whole only at one that has such layers; a hospital that
    took no part has none.
    """
    from safetensors.torch import load_file

    from medfed.site import KEPT, PERSONAL

    found = dict(models)
    if site not in study.sites:
        return {m: w for m, w in found.items() if m != FEDERATED or not study.keep_local}
    own = folder.site(site)
    if study.keep_local and (own / KEPT).exists():
        found[FEDERATED] = {**models[FEDERATED], **load_file(own / KEPT)}
    if (own / PERSONAL).exists():
        found[personal(site)] = load_file(own / PERSONAL)
    return found


def _measure_one(
    study: Study,
    folder: RunFolder,
    hospital: Hospital,
    cases: Sequence[Case],
    split: str,
    model: str,
    weights: Weights,
    references: References,
    condition: str | None = None,
) -> None:
    module = _module(study)
    load(module, weights)
    tolerance_mm = study.evaluation.tolerance_mm
    baseline = baselines.read(folder.path).get(model) if study.task.needs == "survival" else None
    rows = measure(
        study.task,
        module,
        hospital,
        cases,
        split=split,
        model=model,
        references=references,
        tolerance_mm=tolerance_mm,
        condition=condition,
        seed=study.seed,
        baseline=baseline,
    )
    append(folder.cases, list(rows))  # whole or not at all: a case of this hospital may prove unreadable


def _gallery(
    study: Study, folder: RunFolder, hospitals: Sequence[Hospital], models: Mapping[str, Weights]
) -> None:
    """Write cases.html, the pictures that stay: best, median, worst and what was missed, of a segmentation."""
    if study.task.needs != "segment":
        return
    from medfed.gallery import write_gallery

    shown = {}
    for hospital in hospitals:
        whole = _models_at(study, folder, hospital.name, models)
        if FEDERATED in whole:
            shown[hospital.name] = (hospital, whole[FEDERATED])

    def module_at(site: str) -> pl.LightningModule:
        module = _module(study)
        load(module, shown[site][1])
        return module

    write_gallery(
        folder.path, study.task, module_at, {site: hospital for site, (hospital, _) in shown.items()}
    )


def _write_baselines(
    study: Study, folder: RunFolder, hospitals: Sequence[Hospital], models: Mapping[str, Weights]
) -> None:
    """Write each model's baseline hazard, over the training patients of the hospitals that trained."""
    sites = [hospital.data for hospital in hospitals if hospital.name in study.sites]
    found = {}
    for model, weights in models.items():
        if study.keep_local and model == FEDERATED:
            # It is whole only with a hospital's own layers, and there is no one baseline for all of them.
            continue
        module = _module(study)
        load(module, weights)
        found[model] = baselines.baseline_of(module, sites)
    baselines.write(folder.path, found)


def _usable(hospital: Hospital) -> list[Case]:
    return [case for split in SPLITS for case in hospital.data.cases(split)]


def report(run: str | Path) -> RunFolder:
    """Write a run's rows and report again, from its cases and what hospitals reported; return the run folder.

    Raises:
        RunError: if this is no run folder, or nothing was measured in it yet.
    """
    from medfed.evaluation.report import write_report

    folder = RunFolder(Path(run))
    folder.read_facts()
    if not any(path.exists() for path in (folder.cases, folder.reported, folder.rows)):
        raise RunError(
            f"{folder.path}: nothing was measured in this run yet; finish it with medfed train --resume"
        )
    write_report(folder.path)
    return folder


def headline(run: RunFolder | str | Path) -> str:
    """Return the result of a run in one line."""
    from medfed.evaluation import report as reports

    return reports.headline(run.path if isinstance(run, RunFolder) else Path(run))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning's advice and warnings out of a run's display: medfed says what a person can act on."""
    import pytorch_lightning as pl  # its import sets the levels that are changed here

    loggers = [logging.getLogger(name) for name in (pl.__name__, "lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pytorch_lightning|monai|torch")
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)

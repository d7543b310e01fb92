"""The coordinator of a whole study: who is asked each round, when a round is over, what is kept so
that a run resumes.

The hub's own checkpoint is the truth: it is on disk before any site can take a round's model (whose bytes may
be on their way by then), so after a kill -9 of anything the study goes on from the last merged round. One
round's message to everyone and the results are `round.py`'s.
"""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import safetensors
from safetensors.torch import load_file

from medfed.aggregation import Rule, State
from medfed.errors import RunError
from medfed.exchange import HubSide
from medfed.federation import membership as joins
from medfed.federation.round import conduct
from medfed.privacy import NoPrivacy, Privacy
from medfed.runs.rounds import RoundReport, SiteResult
from medfed.wire import encoding as wire
from medfed.wire.audit_log import AuditLog
from medfed.wire.compression import Compression
from medfed.wire.update import DEFAULT_OUTLIER_FACTOR, GlobalModel
from medfed.wire.weights import Weights

# How many rounds' checkpoints stay on disk: the newest, and one before it in case the newest was cut by
# a power loss.
KEPT_CHECKPOINTS = 2


@dataclass(frozen=True)
class Plan:
    """What a hub needs to know of a study."""

    rounds: int
    sites: tuple[str, ...]
    rule: Rule
    privacy: Privacy = field(default_factory=NoPrivacy)
    fraction: float = 1.0
    minimum: int = 1
    deadline_s: float | None = None
    seed: int = 0
    study: str = ""
    compress: tuple[Compression, ...] = ()
    outlier: float | None = DEFAULT_OUTLIER_FACTOR
    # Sites that train nothing and report how the final model does on their cases.
    evaluating: tuple[str, ...] = ()


Watch = Callable[[RoundReport], None]


def sampled(plan: Plan, round: int) -> tuple[str, ...]:
    """Return the sites asked to train towards a round, drawn from the study's seed and the round alone."""
    if plan.rule.max_sites == 1:  # the model goes from site to site, in turn
        return (sorted(plan.sites)[(round - 1) % len(plan.sites)],)
    wanted = max(plan.minimum, math.ceil(plan.fraction * len(plan.sites) - 1e-9))
    if wanted >= len(plan.sites):
        return tuple(sorted(plan.sites))
    return tuple(sorted(random.Random(f"{plan.seed}/sampling/{round}").sample(sorted(plan.sites), wanted)))


def coordinate(
    plan: Plan,
    exchange: HubSide,
    weights: Weights,
    *,
    folder: Path | None = None,
    watch: Watch = lambda report: None,
    merged: Callable[[GlobalModel], None] = lambda current: None,
    audit: AuditLog | None = None,
) -> GlobalModel:
    """Return the final model of a study, having led every round of it.

    `weights` is the untrained model. With a `folder` each merged round is kept there, and a study found in it
    goes on from its newest round. `watch` hears of every round; `merged` gets every model, the untrained one
    included: both once the model is on disk and published.

    Raises:
        QuorumError: if too few sites answered a round.
        RuleError: if the rule cannot merge what came.
    """
    audit = audit or AuditLog(None)
    found = newest(folder, plan.study) if folder else None
    # Checkpoints are written in a thread of their own, while the model's chunks already leave.
    with ThreadPoolExecutor(1, thread_name_prefix="medfed-checkpoint") as aside:
        kept = _nothing
        if found is None:
            state: State = {**plan.rule.init(weights), **plan.privacy.init(weights)}
            current = GlobalModel(0, weights, study=plan.study)
            if folder is not None:
                kept = aside.submit(_save, folder, current, state).result
        else:
            current, state = found
        del weights, found  # else the model that it begins with would stay in memory through the whole study
        told = partial(merged, current)
        while current.round < plan.rounds:
            began = time.monotonic()
            sites = sampled(plan, current.round + 1)
            current = _told(plan, current, state, sites)
            size = exchange.publish(current, kept)
            told()
            outcome = conduct(
                exchange,
                plan.rule,
                plan.privacy,
                state,
                current,
                sites,
                min(
                    plan.minimum, len(sites), plan.rule.buffer_size if plan.rule.asynchronous else len(sites)
                ),
                plan.deadline_s,
                audit,
                plan.compress,
                plan.outlier,
            )
            current, state = GlobalModel(current.round + 1, outcome.weights, study=plan.study), outcome.state
            results = outcome.results
            del outcome
            if folder is not None:
                names = [result.site for result in results if result.status == "merged"]
                kept = aside.submit(_keep, folder, current, state, names).result
            heard = {result.site for result in results}
            resting = tuple(
                SiteResult(site, "not sampled") for site in sorted(plan.sites) if site not in heard
            )
            report = RoundReport(current.round, results + resting, time.monotonic() - began, size)
            told = partial(_tell, merged, watch, current, report)
        _close(plan, exchange, current, state, watch, kept, told)
    return replace(current, groups=_broadcast(plan, state))


def _nothing() -> None:
    """Do nothing."""


def _tell(
    merged: Callable[[GlobalModel], None], watch: Watch, current: GlobalModel, report: RoundReport
) -> None:
    merged(current)
    watch(report)


def _told(plan: Plan, current: GlobalModel, state: State, sites: Sequence[str]) -> GlobalModel:
    groups = _broadcast(plan, state)
    everyone = len(sites) == len(plan.sites)
    return GlobalModel(
        current.round, current.weights, None if everyone else tuple(sites), study=plan.study, groups=groups
    )


def _broadcast(plan: Plan, state: State) -> dict[str, Weights]:
    names = (*plan.rule.broadcast, *plan.privacy.broadcast)
    return {name: state[name] for name in names if name in state}


def _close(
    plan: Plan,
    exchange: HubSide,
    current: GlobalModel,
    state: State,
    watch: Watch,
    kept: Callable[[], None],
    told: Callable[[], None],
) -> None:
    """Tell everyone that the study has ended, and hear each site's scores of the final model."""
    began = time.monotonic()
    groups = _broadcast(plan, state)
    size = exchange.publish(
        GlobalModel(current.round, current.weights, (), final=True, study=plan.study, groups=groups), kept
    )
    told()
    results = []
    everyone = sorted({*plan.sites, *plan.evaluating})
    for arrival in exchange.collect(current.round + 1, everyone, plan.deadline_s):
        scalars: Mapping[str, float] = arrival.update.scalars if arrival.update is not None else {}
        reason = str(arrival.error) if arrival.error else ""
        status = "absent" if arrival.error else "reported"
        results.append(
            SiteResult(arrival.site, status, reason, 0, arrival.bytes_up, arrival.seconds, scalars)
        )
    heard = {result.site for result in results}
    results += [SiteResult(site, "absent", "it reported nothing") for site in everyone if site not in heard]
    results.sort(key=lambda result: result.site)
    watch(RoundReport(current.round + 1, tuple(results), time.monotonic() - began, size))


# ---------------------------------------------------------------------------------------------- checkpoints


def newest(folder: Path, study: str = "") -> tuple[GlobalModel, State] | None:
    """Return the newest model and rule state that a run folder holds, or None.

    Raises:
        RunError: if the newest readable one belongs to another study.
    """
    for path in sorted(folder.glob("round-*.safetensors"), reverse=True):
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                metadata = file.metadata()
            tensors = load_file(path)
        except Exception:  # cut short by a power loss: the one before it is whole
            continue
        if study and metadata["study"] != study:
            raise RunError(
                f"this run folder holds a run of study {metadata['study'][:12]}, the study file's digest is {study[:12]}; "
                f"resume with the file that started it, or choose another run folder (--out)"
            )
        weights: dict = {}
        state: dict[str, dict] = {}
        for full, tensor in tensors.items():
            group, _, name = full.partition("/")
            (weights if group == "weights" else state.setdefault(group.removeprefix("state:"), {}))[name] = (
                tensor
            )
        return GlobalModel(int(metadata["round"]), weights, study=study), state
    return None


def _keep(folder: Path, current: GlobalModel, state: State, merged: Sequence[str]) -> None:
    _save(folder, current, state)
    joins.remember(folder, current.round, merged)


def _save(folder: Path, current: GlobalModel, state: State) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"weights/{name}": tensor.contiguous() for name, tensor in current.weights.items()}
    for group, named in state.items():
        tensors |= {f"state:{group}/{name}": tensor.contiguous() for name, tensor in named.items()}
    path = folder / f"round-{current.round:05d}.safetensors"
    aside = path.with_suffix(".writing")
    try:
        with aside.open("wb") as file:
            for piece in wire.safetensors_pieces(
                tensors, {"round": str(current.round), "study": current.study}
            ):
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise RunError(
            f"round {current.round}: its checkpoint could not be written: {getattr(error, 'strerror', None) or error}; "
            f"make room where the run folder is and go on with --resume, from round {current.round - 1}"
        ) from None
    for old in sorted(folder.glob("round-*.safetensors"))[:-KEPT_CHECKPOINTS]:
        old.unlink()

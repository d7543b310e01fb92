"""The leakage audit of one hospital: it attacks its own updates, before they leave, with its own
cases as the reference.

What comes out names no case and stays in the hospital's folder: a text, the figures as JSON, and a picture
that shows patients beside what an attacker would get of them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from medfed.data.datamodule import SiteDataModule, collate
from medfed.errors import PrivacyError
from medfed.models.optimisers.sgd import SGD
from medfed.models.schedules.constant import Constant
from medfed.pipeline.factory import module_of, training_of
from medfed.pipeline.leakage.attacker_view import Item, attacked, with_difference
from medfed.privacy import NoPrivacy, Privacy
from medfed.privacy.attacks.inversion import Prior, first_linear, from_linear, invert, mismatch, recovered
from medfed.privacy.attacks.membership import MIN_CASES, advantage, by_loss, lira
from medfed.registry import kind_of
from medfed.study.study import Study
from medfed.wire.weights import Weights

# A batch of more cases is no easier to take apart, and costs as many times more.
MOST_CASES = 8
# So many of the hospital's other cases make the mean that an attacker is taken to know.
MOST_OTHERS = 64
# Fewer models than this cannot be each other's shadows.
FEWEST_SHADOWS = 8
# Gradient matching is tried with these first steps and weights of smoothness, and what fits the update best
# is taken, as an attacker would: small networks on small images want the first, 3D networks with instance
# norm the second. On the quickstart study's 28^3 patches the first finds nothing and the second starts to.
TRIES = ((0.1, 1e-4), (0.01, 0.1))
# The step of the attacked update's only optimiser step: the update is then the gradient itself.
RATE = 1.0


@dataclass(frozen=True)
class Effort:
    """How hard to try: steps of gradient matching, shadow models at most, and seconds that those may take."""

    steps: int = 300
    shadows: int = 16
    budget_s: float = 300.0
    cases: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class Inverted:
    """What came back of the cases of one update of one step, from 0 to 1, the best and the
    mean over its cases.

    `chance` is what other patients of the hospital, offered as guesses, would have scored.
    """

    privacy: str
    cases: int
    best: float
    mean: float
    chance: float


@dataclass(frozen=True)
class Members:
    """How often an attacker, shown a case that was trained on and one that was not, says which
    is which; 0.5 guesses.
    """

    privacy: str
    models: int
    cases: int
    by_loss: float
    by_ratio: float | None


@dataclass(frozen=True)
class Findings:
    """All that an audit found."""

    study: str
    site: str
    needs: str
    inverted: tuple[Inverted, ...]
    members: tuple[Members, ...]
    notes: tuple[str, ...] = ()
    pictures: Mapping[str, Tensor] = field(default_factory=dict, compare=False)

    @property
    def worst(self) -> float:
        """The most that came back under the study's own privacy, from 0 to 1; what a gate looks at."""
        own = self.inverted[-1].privacy
        attacks = [one.best for one in self.inverted if one.privacy == own]
        attacks += [
            advantage(max(one.by_loss, one.by_ratio or 0.5))
            for one in self.members
            if one.privacy == own and one.cases >= 2 * MIN_CASES
        ]
        return max(attacks)


def attack(
    study: Study, site: str, data: SiteDataModule, effort: Effort, start: Weights | None = None
) -> Findings:
    """Return what a hospital's updates tell, without any protection and with the study's own.

    `start` is the model from which the attacked updates are trained, the study's untrained one if None.
    """
    items = [item for split in ("train", "val", "test") if data.cases(split) for item in _items(data, split)]
    order = torch.randperm(len(items), generator=torch.Generator().manual_seed(effort.seed)).tolist()
    items = [items[k] for k in order]
    wanted = min(effort.cases or study.train.batch, MOST_CASES)
    notes: list[str] = []
    counts = sorted({1, wanted} if study.task.needs != "survival" else {max(2, wanted)})
    if len(items) < counts[-1] + 3:
        raise PrivacyError(
            f"site '{site}': {len(items)} cases; a leakage audit attacks {counts[-1]} and compares them with at least 3 "
            f"others (--cases takes fewer)"
        )
    mechanisms: list[Privacy] = [NoPrivacy()]
    if kind_of(study.privacy) != "none":
        mechanisms.append(study.privacy)
    inverted: list[Inverted] = []
    pictures: dict[str, Tensor] = {}
    for privacy in mechanisms:
        for count in counts:
            found, drawn = _inverted(study, items, count, privacy, effort, start)
            inverted.append(found)
            if count == counts[0]:
                pictures |= drawn
    if study.privacy.trains_privately:
        notes.append(
            "Under dp_sgd the single step that is attacked spends the whole study's epsilon: less noise than any."
        )
    if kind_of(study.privacy) == "client_dp" and not study.privacy.reveals_each_update:
        notes.append(
            "Under client_dp with where: hub, the hub itself sees the unprotected update; others see the noised."
        )
    if kind_of(study.privacy) == "ckks":
        notes.append(
            "Under ckks a hospital that gives the hub its key opens every update: then what is said without protection holds."
        )
    if not study.privacy.reveals_each_update:
        notes.append("Single updates are hidden: the sum with other cases of this hospital was attacked.")
    members = _membership(study, items, mechanisms, effort, notes)
    return Findings(study.name, site, study.task.needs, tuple(inverted), members, tuple(notes), pictures)


def _items(data: SiteDataModule, split: str) -> list[Item]:
    dataset: Any = data.dataset(split, training=True)
    return [dataset[k] for k in range(len(dataset))]


def _source(item: Item) -> str:
    return "image" if "image" in item else "features"


# ---------------------------------------------------------------------------------------------- inversion


def _inverted(
    study: Study, items: Sequence[Item], count: int, privacy: Privacy, effort: Effort, start: Weights | None
) -> tuple[Inverted, dict[str, Tensor]]:
    victims, rest = list(items[:count]), list(items[count : count + MOST_OTHERS])
    train = msgspec.structs.replace(
        study.train, rounds=1, epochs=1, batch=count, accumulate=1, clip=None, precision=32,
        optimiser=SGD(lr=RATE), schedule=Constant(),
    )  # fmt: skip
    single = msgspec.structs.replace(study, train=train, site_overrides={})
    training = replace(training_of(single), local=None, privacy=NoPrivacy())
    planned = privacy.planned(study.train.rounds)

    def make() -> pl.LightningModule:
        return module_of(single)

    first = make()
    begun = dict(start) if start is not None else _weights(first, study)
    others = _parts(rest, study.minimum - 1, count)
    seen = attacked(make, victims, others, training, planned, begun)
    names = [name for name, parameter in first.named_parameters() if parameter.requires_grad]
    gradient = {name: -seen[name].float() / RATE for name in names if name in seen}
    key = _source(victims[0])
    true = torch.stack([item[key].float() for item in victims])
    known = torch.stack([item[key].float() for item in rest])
    prior = Prior(known.mean(0), known.amin(), known.amax())
    if key == "features":
        prior = Prior(prior.mean, known.amin(0), known.amax(0))
    found = _best(first, begun, gradient, victims, key, prior, effort)
    parts = recovered(found, true, prior.mean)
    chance = [
        recovered(known[k : k + count], true, prior.mean) for k in range(0, len(rest) - count + 1, count)
    ]
    name = kind_of(privacy)
    told = Inverted(
        name, count, max(parts), float(np.mean(parts)), float(np.mean([max(c) for c in chance] or [0.0]))
    )
    return told, {"true": true, "mean": prior.mean, name: found}


def _weights(module: pl.LightningModule, study: Study) -> dict[str, Tensor]:
    from medfed.wire.weights import weights_of

    return weights_of(module, study.keep_local, trained_only=study.trained_only)


def _best(
    module: pl.LightningModule,
    start: Weights,
    gradient: Weights,
    victims: Sequence[Item],
    key: str,
    prior: Prior,
    effort: Effort,
) -> Tensor:
    linear = first_linear(module)
    if len(victims) == 1 and linear is not None and all(name in gradient for name in linear):
        return from_linear(gradient, *linear).reshape(1, *prior.mean.shape)
    module = with_difference(lambda: module, start, {name: torch.zeros(()) for name in start})
    module.train()
    for layer in module.modules():
        if isinstance(layer, torch.nn.modules.dropout._DropoutNd):
            layer.eval()
    parameters = {name: value for name, value in module.named_parameters() if name in gradient}
    answers = {name: value for name, value in collate(list(victims)).items() if name != key}

    def of(inputs: Tensor) -> Mapping[str, Tensor]:
        loss = _loss(module, {**answers, key: inputs})
        slopes = torch.autograd.grad(loss, list(parameters.values()), create_graph=True)
        return dict(zip(parameters, slopes, strict=True))

    tries = TRIES if prior.mean.ndim > 1 else TRIES[:1]
    found = [
        invert(
            gradient, of, len(victims), prior, steps=effort.steps, rate=rate, smooth=smooth, seed=effort.seed
        )
        for rate, smooth in tries
    ]
    return min(found, key=lambda one: mismatch(one, gradient, of))


def _parts(items: Sequence[Item], parts: int, least: int) -> list[list[Item]]:
    """Return up to so many disjoint parts of the items, each with at least `least`."""
    parts = min(parts, len(items) // max(least, 1))
    return [list(items[k::parts]) for k in range(parts)]


# ---------------------------------------------------------------------------------------------- membership


def _membership(
    study: Study, items: Sequence[Item], mechanisms: Sequence[Privacy], effort: Effort, notes: list[str]
) -> tuple[Members, ...]:
    if study.task.needs == "survival":
        notes.append("Membership was not tried: a survival loss compares patients and has no value for one.")
        return ()
    half = len(items) // 2
    if half < 2 or effort.shadows < 2:
        notes.append("Membership was not tried.")
        return ()
    begun = _weights(module_of(study), study)
    train = msgspec.structs.replace(study.train, rounds=1, epochs=study.epochs)
    whole = msgspec.structs.replace(study, train=train, site_overrides={})
    training = replace(training_of(whole), local=None, privacy=NoPrivacy())
    found = []
    for privacy in mechanisms:
        generator = np.random.default_rng(effort.seed)
        losses, inside, began = [], [], time.monotonic()
        for _ in range(effort.shadows):
            chosen = np.zeros(len(items), bool)
            chosen[generator.permutation(len(items))[:half]] = True
            mine = [item for item, keep in zip(items, chosen, strict=True) if keep]
            rest = [item for item, keep in zip(items, chosen, strict=True) if not keep]
            stand_ins = _parts(rest, study.minimum - 1, study.train.batch)
            planned = privacy.planned(study.train.rounds)
            seen = attacked(lambda: module_of(whole), mine, stand_ins, training, planned, begun)
            losses.append(_losses(with_difference(lambda: module_of(whole), begun, seen), items))
            inside.append(chosen)
            spent = time.monotonic() - began
            if spent * (len(losses) + 1) / len(losses) > effort.budget_s and len(losses) >= 2:
                break
        if len(losses) < effort.shadows:
            notes.append(
                f"{len(losses)} of {effort.shadows} shadow models were trained in {effort.budget_s:g} s (--minutes)."
            )
        table, flags = np.array(losses), np.array(inside)
        ratio = lira(table, flags) if len(losses) >= FEWEST_SHADOWS else None
        found.append(Members(kind_of(privacy), len(losses), len(items), by_loss(table, flags), ratio))
    return tuple(found)


@torch.no_grad()
def _losses(module: pl.LightningModule, items: Sequence[Item]) -> list[float]:
    module.eval()
    return [float(_loss(module, collate([item]))) for item in items]


def _loss(module: pl.LightningModule, batch: Item) -> Tensor:
    loss = module.training_step(batch, 0)
    assert isinstance(loss, Tensor)
    return loss


# ---------------------------------------------------------------------------------------------- in words


def in_words(findings: Findings) -> str:
    """Return the findings as a page of plain text."""
    what = "row" if findings.needs in ("table", "survival") else "image"
    lines = [f"Leakage audit of study '{findings.study}' at hospital '{findings.site}'", ""]
    lines.append(
        f"How much of a patient's {what} could be computed back from an update of a single training step?"
    )
    free = ", brightness and contrast aside" if what == "image" else ""
    lines.append(f"(100 %: the very same{free}; 0 %: no more than the average of this hospital's patients)")
    for one in findings.inverted:
        lines.append(
            f"  {_protected(one.privacy)}, {one.cases} case{'s' * (one.cases > 1)} in the step: {one.best:.0%} of the one "
            f"that came back best, {one.mean:.0%} on average (guessing with other patients: {one.chance:.0%})"
        )
    if what == "image":
        lines.append(
            "Look at the picture too: a part of a patient that an eye finds in noise is a small share of all voxels."
        )
    if findings.members:
        lines.append("")
        lines.append(
            "Could someone with a patient's data tell from the trained model whether that patient was in training?"
        )
        lines.append("(100 %: always; 50 %: by throwing a coin)")
    for tried in findings.members:
        ratio = (
            ""
            if tried.by_ratio is None
            else f", {tried.by_ratio:.0%} by comparison with models trained without"
        )
        few = (
            ""
            if tried.cases >= 2 * MIN_CASES
            else f"; only {tried.cases} cases, too few to rely on, and not in the gate"
        )
        lines.append(
            f"  {_protected(tried.privacy)}: {tried.by_loss:.0%} right by the model's error alone{ratio} ({tried.models} models"
            f"{few})"
        )
    lines += ["", *findings.notes] if findings.notes else []
    lines += [
        "",
        f"The most that came back under this study's protection: {findings.worst:.2f} of 1.",
        "The step attacked is the worst case: an update of one step, by an attacker who is told the right answers. An "
        "update of many",
        "steps over many cases is harder to take apart. That these attacks found little does not mean that none can.",
    ]
    return "\n".join(lines)


def _protected(privacy: str) -> str:
    return "without protection" if privacy == "none" else f"with {privacy}"


def as_json(findings: Findings) -> bytes:
    """Return the figures without the picture."""
    plain = {key: value for key, value in asdict(_without(findings)).items() if key != "pictures"}
    return msgspec.json.format(msgspec.json.encode({**plain, "worst": findings.worst}), indent=2)


def _without(findings: Findings) -> Findings:
    return Findings(
        findings.study,
        findings.site,
        findings.needs,
        findings.inverted,
        findings.members,
        findings.notes,
    )


def keep(findings: Findings, folder: Path) -> Path:
    """Write text, figures and picture to a folder that only its owner can read; return the picture's path."""
    from medfed.pipeline.leakage.figure import draw

    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    (folder / "leakage.txt").write_text(in_words(findings) + "\n")
    (folder / "leakage.json").write_bytes(as_json(findings))
    path = folder / "leakage.png"
    draw(findings, path)
    for file in folder.iterdir():
        file.chmod(0o600)
    return path

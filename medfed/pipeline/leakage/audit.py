"""`medfed audit leakage`: a hospital attacks its own updates, before they leave, with its own cases.

Each attack is tried without protection and with the study's own. The findings name no case and stay in the
hospital's folder: a text, the figures as JSON, and a figure that shows patients beside what an attacker would
reconstruct of them.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medfed.data.datamodule import SiteDataModule
from medfed.data.splits import SPLITS
from medfed.errors import PrivacyError, RunError
from medfed.files import write_whole
from medfed.pipeline.factory import bears_of, hospital_of, screen_hospital
from medfed.pipeline.leakage.attacker_view import Item
from medfed.pipeline.leakage.figure import draw_figure
from medfed.pipeline.leakage.findings import AttackBudget, Findings, Inversion, describe, to_json
from medfed.pipeline.leakage.invert_updates import attack_update
from medfed.pipeline.leakage.membership import attack_membership
from medfed.pipeline.suppress_warnings import suppress_warnings
from medfed.privacy import NoPrivacy, Privacy
from medfed.registry import kind_of
from medfed.runs.folder import RunFolder
from medfed.study.canonical import study_digest
from medfed.study.reading import read_run_study, read_study
from medfed.study.study import Study

# The cases of a larger batch are not easier to separate, and cost proportionally more.
MAX_CASES = 8
# Other cases that an inverted one is compared with, at least.
MIN_OTHERS = 3


def audit(run: Path, site: str | None, budget: AttackBudget, out: Path | None) -> tuple[Findings, Path]:
    """Attack the updates of one hospital of a run (or of a study file), and write the findings to its folder.

    The attacked updates start from the study's untrained model, which every party knows and whose gradients
    reveal most. Returns the findings and the path of the figure.

    Raises:
        RunError: if there is no such run or hospital, or `site` is needed to choose one of several.
        PrivacyError: if the hospital has too few cases to compare with.
    """
    is_file = run.is_file()
    folder = RunFolder(run)
    if not is_file:
        folder.read_facts()
    study = read_study(run) if is_file else read_run_study(folder.study)
    name = _choose_site(site, sorted(study.sites), run.name)
    target = out or (Path(f"leakage-{name}") if is_file else folder.site(name) / "leakage")
    with suppress_warnings():
        path = study.sites[name]
        if path is None:
            raise RunError(
                f"{run.name}: the study names no data folder for '{name}'; give the site's run folder"
            )
        hospital = hospital_of(study, name, path)
        screen_hospital(hospital, bears_of(study))
        digest = study_digest(study) if is_file else folder.read_facts().digest
        findings = replace(run_attacks(study, name, hospital.data, budget), digest=digest)
        return findings, write_findings(findings, target)


def _choose_site(site: str | None, sites: list[str], run: str) -> str:
    if site is None and len(sites) == 1:
        return sites[0]
    if site not in sites:
        problem = "choose whose updates to attack with --site" if site is None else f"no hospital '{site}'"
        raise RunError(f"{run}: {problem}; there are {', '.join(sites)}")
    return site


def write_findings(findings: Findings, folder: Path) -> Path:
    """Write text, JSON and figure to a folder that only its owner can read; return the figure's path."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    write_whole(folder / "leakage.txt", describe(findings) + "\n", mode=0o600)
    write_whole(folder / "leakage.json", to_json(findings), mode=0o600)
    path = folder / "leakage.png"
    draw_figure(findings, path)
    for file in folder.iterdir():
        file.chmod(0o600)
    return path


def run_attacks(study: Study, site: str, data: SiteDataModule, budget: AttackBudget) -> Findings:
    """Return what a hospital's updates reveal, without any protection and with the study's own.

    Raises:
        PrivacyError: if the hospital has too few cases to compare with.
    """
    items = _shuffled_items(data, budget.seed)
    wanted = min(budget.cases or study.train.batch, MAX_CASES)
    counts = sorted({1, wanted} if study.task.needs != "survival" else {max(2, wanted)})
    if len(items) < counts[-1] + MIN_OTHERS:
        raise PrivacyError(
            f"site '{site}': {len(items)} cases; a leakage audit attacks {counts[-1]} and compares them with "
            f"at least {MIN_OTHERS} others (--cases takes fewer)"
        )
    mechanisms = [NoPrivacy()] if kind_of(study.privacy) == "none" else [NoPrivacy(), study.privacy]
    inverted: list[Inversion] = []
    pictures: dict[str, Tensor] = {}
    for privacy in mechanisms:
        for count in counts:
            inversion, reconstructed = attack_update(study, items, count, privacy, budget)
            inverted.append(inversion)
            if count == counts[0]:
                pictures |= reconstructed
    members, untried = attack_membership(study, items, mechanisms, budget)
    notes = (*_privacy_notes(study.privacy), *_table_notes(study), *untried)
    return Findings(study.name, site, study.task.needs, tuple(inverted), tuple(members), notes, pictures)


def _shuffled_items(data: SiteDataModule, seed: int) -> list[Item]:
    """Return the items of all splits, in an order that the seed decides."""
    items: list[Item] = []
    for split in SPLITS:
        if data.cases(split):
            dataset: Any = data.dataset(split, training=True)
            items += [dataset[number] for number in range(len(dataset))]
    order = torch.randperm(len(items), generator=torch.Generator().manual_seed(seed)).tolist()
    return [items[number] for number in order]


def _table_notes(study: Study) -> list[str]:
    """Return what was assumed of the columns beside the images."""
    if getattr(study.data, "table", None) is None:
        return []
    return [
        "The attacks are on the images; the attacker was given the columns of the table beside them. Without "
        "protection, an update of a single case gives these columns away exactly: the first layer over them "
        "is linear."
    ]


def _privacy_notes(privacy: Privacy) -> list[str]:
    """Return what a reader of the findings should know about the study's privacy mechanism."""
    kind, is_hidden = kind_of(privacy), not privacy.reveals_each_update
    notes = (
        (
            privacy.trains_privately,
            "Under dp_sgd the attacked single step spends the whole study's epsilon: it has less noise than "
            "any other.",
        ),
        (
            kind == "client_dp" and is_hidden,
            "Under client_dp with where: hub, the hub itself sees the unprotected update; others see the "
            "noised one.",
        ),
        (
            kind == "ckks",
            "Under ckks a hospital that gives the hub its key opens every update: then the results without "
            "protection apply.",
        ),
        (is_hidden, "Single updates are hidden: the sum with other cases of this hospital was attacked."),
    )
    return [note for applies, note in notes if applies]

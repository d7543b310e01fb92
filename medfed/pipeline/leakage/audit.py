"""`medfed audit leakage`: from a run folder or a study file to one hospital's findings.

The findings name no case and stay in the hospital's folder: a text, the figures as JSON, and a figure that
shows patients beside what an attacker would reconstruct of them.
"""

from __future__ import annotations

from pathlib import Path

from medfed.errors import RunError
from medfed.files import write_whole
from medfed.pipeline.factory import hospital_of
from medfed.pipeline.leakage.attacks import run_attacks
from medfed.pipeline.leakage.figure import draw_figure
from medfed.pipeline.leakage.findings import AttackBudget, Findings, describe, to_json
from medfed.pipeline.suppress_warnings import suppress_warnings
from medfed.runs.folder import RunFolder
from medfed.study.reading import read_study


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
    study = read_study(run if is_file else folder.study)
    name = _choose_site(site, sorted(study.sites), run.name)
    target = out or (Path(f"leakage-{name}") if is_file else folder.site(name) / "leakage")
    with suppress_warnings():
        path = study.sites[name]
        if path is None:
            raise RunError(
                f"{run.name}: the study names no data folder for '{name}'; give the site's run folder"
            )
        findings = run_attacks(study, name, hospital_of(study, name, path).data, budget)
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

"""`medfed audit leakage`: from a run folder or a study file to one hospital's findings."""

from __future__ import annotations

from pathlib import Path

from medfed.errors import RunError
from medfed.pipeline.factory import hospital_of
from medfed.pipeline.leakage.attacks import Effort, Findings, attack, keep
from medfed.pipeline.suppress_warnings import suppress_warnings
from medfed.runs.folder import RunFolder
from medfed.study.reading import read_study


def audit(run: Path, site: str | None, effort: Effort, out: Path | None) -> tuple[Findings, Path]:
    """Attack the updates of one hospital of a run (or of a study file), and keep what was
    found in its folder.

    The attacked updates start from the study's untrained model, which every party knows and from
    which gradients tell most.

    Raises:
        RunError: if there is no such run or hospital, or it is not said which of several.
        PrivacyError: if the hospital has too few cases to compare with.
    """
    is_file = run.is_file()
    folder = RunFolder(run)
    if not is_file:
        folder.read_facts()
    study = read_study(run if is_file else folder.study)
    name = _chosen(site, sorted(study.sites), run.name)
    where = out or (Path(f"leakage-{name}") if is_file else folder.site(name) / "leakage")
    with suppress_warnings():
        folder_of_data = study.sites[name]
        if folder_of_data is None:
            raise RunError(
                f"{run.name}: the study does not say where the data of '{name}' are; give the site's run folder"
            )
        hospital = hospital_of(study, name, folder_of_data)
        findings = attack(study, name, hospital.data, effort)
        return findings, keep(findings, where)


def _chosen(site: str | None, sites: list[str], run: str) -> str:
    if site is None and len(sites) == 1:
        return sites[0]
    if site not in sites:
        told = "say whose updates with --site" if site is None else f"no hospital '{site}'"
        raise RunError(f"{run}: {told}; there are {', '.join(sites)}")
    return site

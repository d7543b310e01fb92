"""Derive a study's data settings (spacing, patch, normalisation, scaling) from all its hospitals' data.

`plan_study` asks each hospital for its fingerprint (images) or its sums (a table), which hold counts and sums
over patients and nothing about a single one, and fills the study's `data` section from the merged result
before the first round. A hospital with fewer patients than `data.plan.min_patients` sends none. Each
fingerprint is recorded in the audit log with its size and digest, and the merged one is kept in the run
folder, so that a resumed run has the same plan.

Hospitals on separate machines do the same with `medfed fingerprint make`, which writes a file that a person
can read before passing it on, and the coordinator with `medfed fingerprint merge`, which prints the section.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from medfed.data import fingerprint, harmonise
from medfed.data.datamodule import SiteDataModule
from medfed.data.proposal import propose_settings
from medfed.data.settings import Images, PlanSettings, Table
from medfed.data.table import training_sums
from medfed.errors import DataError, StudyError, TooFewPatientsError
from medfed.files import write_whole
from medfed.study.study import Study
from medfed.wire.audit_log import AuditLog


def plan_study(
    study: Study,
    data: Mapping[str, SiteDataModule],
    merged_file: Path,
    audit: AuditLog,
    log: Callable[[str], None],
) -> Study:
    """Return the study with its `data` section filled from its training hospitals.

    A study that asks for no plan is returned unchanged. The merged fingerprint is kept in `merged_file`; if
    it exists it is read, and no hospital is asked.

    Raises:
        DataError: if no hospital has enough patients, or a hospital's data can't be read.
        StudyError: if the plan does not fit the study.
    """
    plan = study.data.plan
    if plan == "given":
        return study
    if not merged_file.exists():
        sent = []
        for site in sorted(data):
            try:
                message = _sums_of(study, plan, data[site])
            except TooFewPatientsError as error:
                log(f"{site}: sends no fingerprint: {error}")
                continue
            except DataError as error:
                raise type(error)(f"site '{site}': {error}") from None
            sha256 = hashlib.sha256(message).hexdigest()
            audit.write("sent", site=site, what="fingerprint", bytes=len(message), sha256=sha256)
            sent.append(message)
        if not sent:
            raise DataError(
                f"no site has the {plan.min_patients} training patients that a fingerprint needs "
                "(data.plan.min_patients); give the settings in the study instead"
            )
        write_whole(merged_file, _merge(study, sent))
    settings = _settings(study, plan, merged_file.read_bytes())
    log(f"planned from the hospitals' fingerprints: {_summary(settings)}")
    return msgspec.structs.replace(study, data=settings)


def check_planned(study: Study) -> None:
    """Refuse a study that still has to be planned if its hospitals are on separate machines.

    Raises:
        StudyError: if the study has no plan yet.
    """
    if study.data.plan != "given":
        raise StudyError(
            "data.plan: hospitals on separate machines give their fingerprints as files, which a person "
            "reads first: `medfed fingerprint make` at each, `medfed fingerprint merge` at the coordinator; "
            "put the section that it prints into the study"
        )


def _sums_of(study: Study, plan: PlanSettings, site: SiteDataModule) -> bytes:
    """Return a hospital's fingerprint (images) or its sums (a table)."""
    if isinstance(study.data, Table):
        sums = training_sums(site.rows, study.data.numbers, min_count=plan.min_patients)
        return msgspec.json.encode(sums)
    return fingerprint.to_json(
        fingerprint.fingerprint(
            site.index,
            grid=plan.intensity_bins,
            classes=site.label_classes if study.task.needs == "segment" else None,
            settings=study.data,
            min_count=plan.min_patients,
        )
    )


def _merge(study: Study, messages: list[bytes]) -> bytes:
    if isinstance(study.data, Table):
        sums = [msgspec.json.decode(message, type=harmonise.TableSums) for message in messages]
        return msgspec.json.encode(harmonise.merge_sums(sums))
    return fingerprint.to_json(fingerprint.merge(map(fingerprint.from_json, messages)))


def _settings(study: Study, plan: PlanSettings, merged: bytes) -> Images | Table:
    """Return the data settings that follow from the merged fingerprint or sums."""
    if isinstance(study.data, Table):
        sums = msgspec.json.decode(merged, type=harmonise.TableSums)
        centre, scale = harmonise.centre_and_scale(sums)
        return msgspec.structs.replace(study.data, centre=centre, scale=scale, plan="given")
    section = propose_settings(fingerprint.from_json(merged), voxels=plan.voxels, normalise=plan.normalise)
    # The fingerprint counts the channels, which the study may name.
    own = {"channels": study.data.channels, "plan": "given"}
    plain = {**msgspec.to_builtins(study.data), **section, **own}
    try:
        return msgspec.convert(plain, Images)
    except msgspec.ValidationError as error:
        raise StudyError(f"data.plan: the fingerprint gives no valid data section: {error}") from None


def _summary(settings: Images | Table) -> str:
    if isinstance(settings, Table):
        return f"means and deviations of {len(settings.centre)} features"
    given = settings.spacing_mm
    spacing = " x ".join(map(str, given)) if isinstance(given, tuple) else given
    patch = "whole volumes" if settings.patch is None else " x ".join(map(str, settings.patch))
    return f"{spacing} mm, patch {patch}, normalise {msgspec.to_builtins(settings.normalise)['kind']}"

"""Derive a study's data settings (spacing, patch, normalisation, scaling) from all its hospitals' data.

`plan_study` asks each hospital for its fingerprint (images) or its sums (a table), which hold counts and sums
over patients and nothing about a single one, and fills the study's `data` section from the merged result
before the first round. A hospital with fewer patients than `data.plan.fewest` sends none. Each fingerprint is
recorded in the audit log with its size and digest, and the merged one is kept in the run folder, so that a
resumed run has the same plan.

Hospitals on separate machines do the same with `medfed fingerprint make`, which writes a file that a person
can read before passing it on, and the coordinator with `medfed fingerprint merge`, which prints the section.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from medfed.data import fingerprint, harmonise
from medfed.data.proposal import propose_settings
from medfed.data.settings import Images, PlanSettings, Table
from medfed.errors import DataError, StudyError, TooFewPatientsError
from medfed.files import write_whole
from medfed.study.study import Study
from medfed.wire.audit_log import AuditLog

if TYPE_CHECKING:
    from medfed.data.datamodule import SiteDataModule


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
    summarise, merge, fill = (
        (_table_sums, _merge_sums, _fill_table)
        if isinstance(study.data, Table)
        else (_fingerprint, _merge_fingerprints, _fill_images)
    )
    if not merged_file.exists():
        sent = []
        for site in sorted(data):
            try:
                message = summarise(study, plan, data[site])
            except TooFewPatientsError as error:
                log(f"{site}: sends no fingerprint: {error}")
                continue
            except DataError as error:
                raise type(error)(f"site '{site}': {error}") from None
            audit.write(
                "sent",
                site=site,
                what="fingerprint",
                bytes=len(message),
                sha256=hashlib.sha256(message).hexdigest(),
            )
            sent.append(message)
        if not sent:
            raise DataError(
                f"no site has the {plan.fewest} training patients that a fingerprint needs "
                "(data.plan.fewest); give the settings in the study instead"
            )
        write_whole(merged_file, merge(sent))
    settings = fill(study, plan, merged_file.read_bytes())
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


def _fingerprint(study: Study, plan: PlanSettings, site: SiteDataModule) -> bytes:
    assert isinstance(study.data, Images)
    labelled = study.task.needs == "segment"
    classes = len(getattr(study.task, "classes", ())) or None
    one = fingerprint.fingerprint(
        site.index,
        grid=plan.grid,
        classes=classes if labelled else None,
        channels=study.data.channels,
        min_count=plan.fewest,
    )
    return fingerprint.to_json(one)


def _merge_fingerprints(given: list[bytes]) -> bytes:
    return fingerprint.to_json(fingerprint.merge(fingerprint.from_json(one) for one in given))


def _fill_images(study: Study, plan: PlanSettings, merged: bytes) -> Images:
    assert isinstance(study.data, Images)
    section = propose_settings(fingerprint.from_json(merged), voxels=plan.voxels, normalise=plan.normalise)
    plain = {**msgspec.to_builtins(study.data), **section, "plan": "given"}
    try:
        return msgspec.convert(plain, Images)
    except msgspec.ValidationError as error:
        raise StudyError(f"data.plan: what the fingerprint gives is no data section: {error}") from None


def _table_sums(study: Study, plan: PlanSettings, site: SiteDataModule) -> bytes:
    assert isinstance(study.data, Table)
    from medfed.data.table import training_sums

    return msgspec.json.encode(training_sums(site.rows, study.data.numbers, min_count=plan.fewest))


def _merge_sums(given: list[bytes]) -> bytes:
    parts = [msgspec.json.decode(one, type=harmonise.TableSums) for one in given]
    return msgspec.json.encode(harmonise.merge_sums(parts))


def _fill_table(study: Study, plan: PlanSettings, merged: bytes) -> Table:
    assert isinstance(study.data, Table)
    sums = msgspec.json.decode(merged, type=harmonise.TableSums)
    centre, scale = harmonise.centre_and_scale(sums)
    return msgspec.structs.replace(study.data, centre=centre, scale=scale, plan="given")


def _summary(settings: Any) -> str:
    if isinstance(settings, Table):
        return f"means and deviations of {len(settings.centre)} features"
    spacing = (
        settings.spacing_mm if settings.spacing_mm == "native" else " x ".join(map(str, settings.spacing_mm))
    )
    patch = "whole volumes" if settings.patch is None else " x ".join(map(str, settings.patch))
    return f"{spacing} mm, patch {patch}, normalise {msgspec.to_builtins(settings.normalise)['kind']}"

"""Derive a study's data settings (spacing, patch, normalisation, scaling) from all its hospitals' data.

`plan_study` asks each hospital for its fingerprint (images) or its sums (a table), which hold counts and sums
over patients and nothing about a single one, and fills the study's `data` section from the merged result
before the first round. Of a table beside images (`data.table.plan`) it asks for the sums of its columns. A
hospital with fewer patients than the plan's `min_patients` sends none. What is sent is recorded in the audit
log with its size and digest, and the merged result is kept in the run folder, so that a resumed run has the
same plan.

Hospitals on separate machines answer with the same sums, as a part of their statistics, before the first
round (`describing.py`); `plan_from` fills the section from them. For images a person can instead read what
leaves: `medfed fingerprint make` writes a file at each hospital, and `medfed fingerprint merge` prints the
section.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import msgspec

from medfed.data import fingerprint, harmonise
from medfed.data.case_table import case_training_sums
from medfed.data.datamodule import SiteDataModule
from medfed.data.describe.blocks import Values
from medfed.data.describe.scope import Scope
from medfed.data.describe.sums import fingerprint_of, table_sums_of
from medfed.data.proposal import propose_settings
from medfed.data.settings import AnyData, Images, PlanSettings, Table
from medfed.data.table import training_sums
from medfed.errors import DataError, StudyError, TooFewPatientsError
from medfed.files import write_whole
from medfed.study.study import Study
from medfed.wire.audit_log import AuditLog


@dataclass(frozen=True)
class PlanFiles:
    """Where a run keeps what its plan was made of, so that a resumed run has the same plan.

    merged: the hospitals' merged fingerprint, or the sums of a study of tables.  beside: the sums of the
    tables beside images.
    """

    merged: Path
    beside: Path


def needs_plan(study: Study) -> bool:
    """Whether a part of a study's data settings is still to be computed from its hospitals' data."""
    return _plan_of(study) != "given" or _plan_beside(study) is not None


def _plan_of(study: Study) -> PlanSettings | Literal["given"]:
    return study.data.plan if isinstance(study.data, Images | Table) else "given"


def plan_study(
    study: Study,
    data: Mapping[str, SiteDataModule],
    files: PlanFiles,
    audit: AuditLog,
    log: Callable[[str], None],
) -> Study:
    """Return the study with its `data` section filled from its training hospitals.

    A study that asks for no plan is returned unchanged. What the hospitals gave is kept, merged, in `files`;
    where it is there already it is read, and no hospital is asked.

    Raises:
        DataError: if no hospital has enough patients, or a hospital's data can't be read.
        StudyError: if the plan does not fit the study.
    """
    plan = _plan_of(study)
    if plan != "given":
        asked = _Asked(plan, "data.plan", "fingerprint", lambda site: _sums_of(study, plan, site))
        if not files.merged.exists():
            write_whole(files.merged, _merge(study, _collect(asked, data, audit, log)))
        settings = _settings(study, plan, files.merged.read_bytes())
        log(f"planned from the hospitals' fingerprints: {summary_of(settings)}")
        study = msgspec.structs.replace(study, data=settings)
    return _with_table_planned(study, data, files.beside, audit, log)


def _plan_beside(study: Study) -> PlanSettings | None:
    """Return the plan that a study asks for its table beside images, or None."""
    table = study.data.table if isinstance(study.data, Images) else None
    return None if table is None or table.plan == "given" else table.plan


def _with_table_planned(
    study: Study,
    data: Mapping[str, SiteDataModule],
    merged_file: Path,
    audit: AuditLog,
    log: Callable[[str], None],
) -> Study:
    """Return the study with means and deviations of the columns beside its images, over all hospitals."""
    plan = _plan_beside(study)
    if plan is None:
        return study
    assert isinstance(study.data, Images)
    assert study.data.table is not None
    table = study.data.table

    def sums_of(site: SiteDataModule) -> bytes:
        cases, least = site.cases("train"), plan.min_patients
        return msgspec.json.encode(case_training_sums(site.index, table, cases, min_count=least))

    if not merged_file.exists():
        asked = _Asked(plan, "data.table.plan", "table sums", sums_of)
        write_whole(merged_file, _merged_sums(_collect(asked, data, audit, log)))
    merged = msgspec.json.decode(merged_file.read_bytes(), type=harmonise.TableSums)
    log(
        "planned from the sums of the hospitals' tables: means and deviations of "
        f"{len(merged.features)} features"
    )
    return _with_columns(study, merged)


def _with_columns(study: Study, merged: harmonise.TableSums) -> Study:
    """Return the study with centre and scale of the columns beside its images."""
    assert isinstance(study.data, Images)
    assert study.data.table is not None
    centre, scale = harmonise.centre_and_scale(merged)
    planned = msgspec.structs.replace(study.data.table, centre=centre, scale=scale, plan="given")
    return msgspec.structs.replace(study, data=msgspec.structs.replace(study.data, table=planned))


def scope_of(study: Study) -> Scope:
    """Return which numbers describe a study's data, at every hospital."""
    plan = _plan_of(study)
    return Scope(
        study.data,
        study.task.needs,
        tuple(getattr(study.task, "classes", ())),
        PlanSettings().intensity_bins if plan == "given" else plan.intensity_bins,
    )


def least_of(study: Study) -> int:
    """Return of how many patients a study's statistics are at least; a hospital's policy may ask for more."""
    plans = [plan for plan in (_plan_of(study), _plan_beside(study)) if isinstance(plan, PlanSettings)]
    return max([study.evaluation.smallest_group, *(plan.min_patients for plan in plans)])


def plan_from(study: Study, values: Values) -> Study:
    """Return the study with its `data` section filled from the sum of its hospitals' statistics.

    A study that asks for no plan is returned unchanged.

    Raises:
        DataError: if no hospital told anything of what is to be planned.
        StudyError: if the plan does not fit the study.
    """
    plan, scope = _plan_of(study), scope_of(study)
    if plan != "given":
        data = study.data
        planned = (
            _table_settings(data, table_sums_of(scope, values))
            if isinstance(data, Table)
            else _image_settings(study, plan, fingerprint_of(scope, values))
        )
        study = msgspec.structs.replace(study, data=planned)
    return study if _plan_beside(study) is None else _with_columns(study, table_sums_of(scope, values))


@dataclass(frozen=True)
class _Asked:
    """What each hospital is asked for: its settings, the study's key, what it is called, what computes it."""

    plan: PlanSettings
    key: str
    what: str
    sums_of: Callable[[SiteDataModule], bytes]


def _collect(
    asked: _Asked, data: Mapping[str, SiteDataModule], audit: AuditLog, log: Callable[[str], None]
) -> list[bytes]:
    """Return what the hospitals give that have enough patients, each written into the audit log.

    Raises:
        DataError: if none has, or a hospital's data can't be read.
    """
    sent = []
    for site in sorted(data):
        try:
            message = asked.sums_of(data[site])
        except TooFewPatientsError as error:
            log(f"{site}: sends no {asked.what}: {error}")
            continue
        except DataError as error:
            raise type(error)(f"site '{site}': {error}") from None
        sha256 = hashlib.sha256(message).hexdigest()
        audit.write("sent", site=site, what=asked.what, bytes=len(message), sha256=sha256)
        sent.append(message)
    if not sent:
        raise DataError(
            f"no site has the {asked.plan.min_patients} training patients that a fingerprint needs "
            f"({asked.key}.min_patients); give the settings in the study instead"
        )
    return sent


def _sums_of(study: Study, plan: PlanSettings, site: SiteDataModule) -> bytes:
    """Return a hospital's fingerprint (images) or its sums (a table)."""
    if isinstance(study.data, Table):
        sums = training_sums(site.rows, study.data.numbers, min_count=plan.min_patients)
        return msgspec.json.encode(sums)
    assert isinstance(study.data, Images)
    return fingerprint.to_json(
        fingerprint.fingerprint(
            replace(site.index, cases=site.cases("train")),
            grid=plan.intensity_bins,
            classes=site.label_classes if study.task.needs == "segment" else None,
            settings=study.data,
            min_count=plan.min_patients,
        )
    )


def _merge(study: Study, messages: list[bytes]) -> bytes:
    if isinstance(study.data, Table):
        return _merged_sums(messages)
    return fingerprint.to_json(fingerprint.merge(map(fingerprint.from_json, messages)))


def _merged_sums(messages: list[bytes]) -> bytes:
    sums = [msgspec.json.decode(message, type=harmonise.TableSums) for message in messages]
    return msgspec.json.encode(harmonise.merge_sums(sums))


def _settings(study: Study, plan: PlanSettings, merged: bytes) -> Images | Table:
    """Return the data settings that follow from the merged fingerprint or sums."""
    if isinstance(study.data, Table):
        return _table_settings(study.data, msgspec.json.decode(merged, type=harmonise.TableSums))
    return _image_settings(study, plan, fingerprint.from_json(merged))


def _table_settings(table: Table, sums: harmonise.TableSums) -> Table:
    centre, scale = harmonise.centre_and_scale(sums)
    return msgspec.structs.replace(table, centre=centre, scale=scale, plan="given")


def _image_settings(study: Study, plan: PlanSettings, merged: fingerprint.Fingerprint) -> Images:
    section = propose_settings(merged, voxels=plan.voxels, normalise=plan.normalise)
    assert isinstance(study.data, Images)
    try:
        planned = msgspec.convert(section, Images)
    except msgspec.ValidationError as error:
        raise StudyError(f"data.plan: the fingerprint gives no valid data section: {error}") from None
    # The fingerprint counts the channels, which the study may name.
    changed = {name: getattr(planned, name) for name in ("spacing_mm", "patch", "normalise")}
    return msgspec.structs.replace(study.data, **changed, plan="given")


def summary_of(settings: AnyData) -> str:
    """Return the planned settings in a few words."""
    if isinstance(settings, Table):
        return f"means and deviations of {len(settings.centre)} features"
    if not isinstance(settings, Images):
        return "nothing: the study's own data module"
    if settings.table is not None and settings.table.centre:
        return f"{_geometry(settings)}; {len(settings.table.centre)} columns beside the images"
    return _geometry(settings)


def _geometry(settings: Images) -> str:
    given = settings.spacing_mm
    spacing = " x ".join(map(str, given)) if isinstance(given, tuple) else given
    patch = "whole volumes" if settings.patch is None else " x ".join(map(str, settings.patch))
    return f"{spacing} mm, patch {patch}, normalise {msgspec.to_builtins(settings.normalise)['kind']}"

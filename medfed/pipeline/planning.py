"""A study's settings from what all its hospitals' data are like:
spacing, patch, normalisation, harmonisation.

`planned` asks each hospital for its fingerprint (images) or its sums (a table), which hold counts and sums
over patients and nothing of one, and fill the study's `data` section from their sum, before the first round.
A hospital with fewer patients than `data.plan.fewest` gives none. Each that is given stands in the audit log
with its bytes and digest, and the sum in the run folder, so that a resumed run plans the same.

Hospitals on machines of their own do the same with `medfed fingerprint make`, which writes a file
that a person can read before it is given away, and the coordinator with `medfed fingerprint merge`,
which prints the section.
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
from medfed.errors import DataError, StudyError
from medfed.study.study import Study
from medfed.wire.audit_log import AuditLog

if TYPE_CHECKING:
    from medfed.data.datamodule import SiteDataModule

Say = Callable[[str], None]


def planned(
    study: Study, data: Mapping[str, SiteDataModule], sum_file: Path, audit: AuditLog, say: Say
) -> Study:
    """Return the study with its `data` section filled from its training hospitals; as it is where it
    asks for no plan.

    Args:
        data: the hospitals that train.
        sum_file: where the sum is kept; read instead of asking, if it is there.

    Raises:
        DataError: if no hospital has enough patients, or one can't be read.
        StudyError: if the plan does not fit the study.
    """
    plan = study.data.plan
    if plan == "given":
        return study
    give, merge, fill = (
        (_rows, _merged_rows, _table) if isinstance(study.data, Table) else (_images, _merged, _volumes)
    )
    if not sum_file.exists():
        given = []
        for site in sorted(data):
            try:
                leaving = give(study, plan, data[site])
            except DataError as error:
                if "withholds" not in str(error):
                    raise type(error)(f"site '{site}': {error}") from None
                say(f"{site}: gives no fingerprint: {error}")
                continue
            audit.write(
                "sent",
                site=site,
                what="fingerprint",
                bytes=len(leaving),
                sha256=hashlib.sha256(leaving).hexdigest(),
            )
            given.append(leaving)
        if not given:
            raise DataError(
                f"no site has the {plan.fewest} training patients that a fingerprint needs "
                "(data.plan.fewest); give the "
                "settings in the study instead"
            )
        sum_file.write_bytes(merge(given))
    settings = fill(study, plan, sum_file.read_bytes())
    say(f"planned from the hospitals' fingerprints: {_told(settings)}")
    return msgspec.structs.replace(study, data=settings)


def check_planned(study: Study) -> None:
    """Refuse a study that is still to be planned, where hospitals are on machines of their own.

    Raises:
        StudyError: with what to do instead.
    """
    if study.data.plan != "given":
        raise StudyError(
            "data.plan: hospitals on machines of their own give their fingerprints as files, which a person "
            "reads first: "
            "`medfed fingerprint make` at each, `medfed fingerprint merge` at the coordinator; put the "
            "section that it "
            "prints into the study"
        )


def _images(study: Study, plan: PlanSettings, site: SiteDataModule) -> bytes:
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


def _merged(given: list[bytes]) -> bytes:
    return fingerprint.to_json(fingerprint.merge(fingerprint.from_json(one) for one in given))


def _volumes(study: Study, plan: PlanSettings, merged: bytes) -> Images:
    assert isinstance(study.data, Images)
    section = propose_settings(fingerprint.from_json(merged), voxels=plan.voxels, normalise=plan.normalise)
    plain = {**msgspec.to_builtins(study.data), **section, "plan": "given"}
    try:
        return msgspec.convert(plain, Images)
    except msgspec.ValidationError as error:
        raise StudyError(f"data.plan: what the fingerprint gives is no data section: {error}") from None


def _rows(study: Study, plan: PlanSettings, site: SiteDataModule) -> bytes:
    assert isinstance(study.data, Table)
    from medfed.data.table import training_sums

    return msgspec.json.encode(training_sums(site.rows, study.data.numbers, min_count=plan.fewest))


def _merged_rows(given: list[bytes]) -> bytes:
    parts = [msgspec.json.decode(one, type=harmonise.TableSums) for one in given]
    return msgspec.json.encode(harmonise.merge_sums(parts))


def _table(study: Study, plan: PlanSettings, merged: bytes) -> Table:
    assert isinstance(study.data, Table)
    sums = msgspec.json.decode(merged, type=harmonise.TableSums)
    centre, scale = harmonise.centre_and_scale(sums)
    return msgspec.structs.replace(study.data, centre=centre, scale=scale, plan="given")


def _told(settings: Any) -> str:
    if isinstance(settings, Table):
        return f"means and deviations of {len(settings.centre)} features"
    spacing = (
        settings.spacing_mm if settings.spacing_mm == "native" else " x ".join(map(str, settings.spacing_mm))
    )
    patch = "whole volumes" if settings.patch is None else " x ".join(map(str, settings.patch))
    return f"{spacing} mm, patch {patch}, normalise {msgspec.to_builtins(settings.normalise)['kind']}"

"""Statistics of a study's data over all its hospitals: what is asked, what is written, what is planned of it.

`federation/description.py` carries them; `deployment/description.py` runs both sides across machines. Here a
study becomes the request, a hospital's data its answer, and the sum Table 1 and the plan.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medfed.data.datamodule import SiteDataModule
from medfed.data.describe.blocks import Block, Values, decode, encode, length_of
from medfed.data.describe.gather import gather
from medfed.data.describe.noised import count_once, noised_blocks
from medfed.data.describe.scope import blocks_of
from medfed.data.describe.table_one import Line, require_described, table_one
from medfed.errors import DECODING_ERRORS, DataError, PrivacyError, RunError, StudyError
from medfed.exchange import MemoryExchange
from medfed.federation.config import HubConfig
from medfed.federation.description import (
    Described,
    Sum,
    answer_statistics,
    collect_statistics,
    description_digest,
    publish_statistics,
)
from medfed.federation.egress import Egress
from medfed.federation.round import SiteConnection
from medfed.files import write_whole
from medfed.pipeline.noised_statistics import (
    Release,
    asked_blocks,
    deviation_of,
    noise_of,
    noised_answer,
    noised_table,
)
from medfed.pipeline.planning import least_of, needs_plan, scope_of
from medfed.privacy import NoPrivacy, Privacy
from medfed.privacy.secure_sum import SecureSum
from medfed.registry import kind_of
from medfed.runs.folder import RunFolder
from medfed.study.canonical import study_digest
from medfed.study.study import Study
from medfed.wire.audit_log import AuditLog
from medfed.wire.templates import render

# The largest digit of a number, with room for the rounding of a sum.
LIMIT = 2.0**33


def needs_description(study: Study) -> bool:
    """Whether a study's hospitals are asked for statistics before its first round."""
    return study.describe is not None or needs_plan(study)


def only_describes(study: Study) -> bool:
    """Whether a study ends with the hospitals' statistics, and nothing is trained."""
    return study.describe is not None and study.describe.only


def protection_of(study: Study) -> Privacy:
    """Return how the hospitals' statistics are protected.

    Raises:
        StudyError: if the study's own mechanism does not protect them, and it names no other.
    """
    given = study.describe.privacy if study.describe is not None else None
    chosen = study.privacy if given is None else given
    if isinstance(chosen, SecureSum):
        return msgspec.structs.replace(chosen, limit=LIMIT, max_examples=1, bits=64)
    if isinstance(chosen, NoPrivacy):
        return chosen
    key = "privacy" if given is None else "describe.privacy"
    raise StudyError(
        f"{key}: '{kind_of(chosen)}' protects training and not the statistics that this study asks of each "
        "hospital beforehand (data.plan, describe); say how these leave: describe: {privacy: {kind: none}}, "
        "with which the hub sees each hospital's, or secure_sum, with which it learns only their sum"
    )


def request_of(study: Study) -> HubConfig:
    """Return what the hub needs to know to collect a study's statistics.

    Raises:
        StudyError: as `protection_of`.
        PrivacyError: if no usable noise gives the epsilon of the study's statistics.
    """
    if (noise := noise_of(study)) is not None:
        deviation_of(study, noise)  # refused before anybody answers
    blocks = asked_blocks(study)
    return HubConfig(
        rounds=1,
        sites=tuple(sorted(study.sites)),
        rule=Sum(check_vector=partial(check_vector, blocks, most=study.sampling.max_examples)),
        privacy=protection_of(study),
        minimum=study.minimum,
        deadline_s=study.sampling.deadline_s,
        study_digest=description_digest(study_digest(study)),
        outlier=None,
        max_examples=1,
    )


def check_vector(blocks: tuple[Block, ...], vector: Tensor, most: int) -> None:
    """Check that one hospital's statistics are whole numbers that can be counts of its patients.

    `most` is the most patients or cases that it may state, as of training examples: whoever states a billion
    decides what all hospitals' data are planned from.

    Raises:
        DataError: naming what is wrong.
    """
    values = decode(blocks, _array(vector))
    if values["hospitals"][0] != 1:
        raise DataError(f"it answers for {values['hospitals'][0]} hospitals, expected itself")
    for what in ("patients", "cases"):
        if (count := max(values.get(what, (0,)))) > most:
            raise DataError(
                f"it states {count} {what} that train, at most {most} are accepted (sampling.max_examples)"
            )


def length_for(study: Study) -> int:
    """Return how many numbers a hospital's statistics are."""
    return length_of(asked_blocks(study))


def answer_of(study: Study, data: SiteDataModule, least: int) -> Tensor:
    """Return a hospital's statistics, float64; counts of fewer than `least` patients are withheld.

    Of a study with noise they are the true counts, none withheld, and must not leave (`answer_to_send`).

    Raises:
        DataError: if its data cannot be read.
    """
    scope = scope_of(study)
    if noise_of(study) is not None:
        return torch.from_numpy(encode(noised_blocks(scope), count_once(data, scope)))
    return torch.from_numpy(encode(blocks_of(scope), gather(data, scope, max(least, least_of(study)))))


def answer_to_send(study: Study, data: SiteDataModule, least: int, release: Release | None) -> Tensor:
    """Return the statistics that may leave a hospital: `answer_of`, with the study's noise if it has any.

    `release` is needed under noise: it keeps the noised answer, and pays for it.

    Raises:
        DataError: if its data cannot be read.
        LedgerError: if the noised answer would carry a patient over the hospital's ceiling.
    """
    count = partial(answer_of, study, data, least)
    if (noise := noise_of(study)) is None:
        return count()
    if release is None:
        raise PrivacyError("describe.noise: there is no ledger to charge; nothing was sent")
    return noised_answer(study, noise, count, release)


def decoded(study: Study, total: Tensor, sites: int) -> dict[str, list[int]]:
    """Return the numbers in the sum of so many hospitals' statistics.

    Raises:
        DataError: if it is no sum of that many hospitals' statistics, or no hospital has enough patients.
    """
    try:
        values = decode(asked_blocks(study), _array(total), sites)
    except DataError as error:
        raise DataError(f"the hospitals' summed statistics: {error}") from None
    require_described(values)
    return values


def _array(vector: Tensor) -> NDArray[np.float64]:
    return vector.detach().double().cpu().numpy()


# ------------------------------------------------------------------------------------------- what is written


class Statistics(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The hospitals' statistics as a run keeps them: each block's numbers that are not 0, by their place."""

    version: int = 1
    digest: str
    total: dict[str, dict[int, int]]
    hospitals: dict[str, dict[str, dict[int, int]]] = {}


@dataclass(frozen=True)
class StudyStatistics:
    """The sum over all hospitals, and single hospitals' where the hub sees them."""

    total: Values
    hospitals: Mapping[str, Values]


def statistics_of(study: Study, described: Described) -> StudyStatistics:
    """Return what the hospitals answered, as whole numbers."""
    blocks, sites = asked_blocks(study), len(study.sites)
    single = {site: decode(blocks, _array(vector)) for site, vector in described.hospitals.items()}
    return StudyStatistics(decoded(study, described.total, sites), single)


def keep_statistics(folder: RunFolder, study: Study, digest: str, statistics: StudyStatistics) -> None:
    """Write the statistics into a run folder, and Table 1 as HTML and CSV.

    `digest` is the study's, as its hospitals agreed to it.
    """
    noise = noise_of(study)
    lines = (
        table_one(scope_of(study), statistics.total, statistics.hospitals)
        if noise is None
        else noised_table(study, noise, statistics.total, statistics.hospitals)
    )
    sites = sorted(statistics.hospitals)
    write_whole(folder.table_one_csv, _csv(lines, sites))
    page = render(
        Path(__file__).with_name("table_one.html.jinja"),
        study=study.name,
        digest=digest,
        sites=sites,
        lines=lines,
        summed=not protection_of(study).reveals_each_update,
        least=least_of(study),
        noise=noise,
    )
    write_whole(folder.table_one, page)
    kept = Statistics(
        digest=digest,
        total=_sparse(statistics.total),
        hospitals={site: _sparse(values) for site, values in statistics.hospitals.items()},
    )
    # Last: a run that is resumed without it asks again.
    write_whole(folder.statistics, msgspec.json.encode(msgspec.to_builtins(kept, str_keys=True)))


def kept_statistics(folder: RunFolder, study: Study, digest: str) -> StudyStatistics | None:
    """Return the statistics that a run folder holds of a study, or None.

    Raises:
        RunError: if the file is damaged, or of another study.
    """
    if not folder.statistics.exists():
        return None
    try:
        kept = msgspec.json.decode(folder.statistics.read_bytes(), type=Statistics)
    except DECODING_ERRORS as error:
        raise RunError(f"{folder.statistics.name}: is damaged: {error}; restore the file") from None
    if kept.digest != digest:
        raise RunError(f"{folder.statistics.name}: is of another study; restore the file")
    blocks = asked_blocks(study)
    single = {site: _whole(blocks, values) for site, values in kept.hospitals.items()}
    return StudyStatistics(_whole(blocks, kept.total), single)


def total_of(study: Study, statistics: StudyStatistics) -> Tensor:
    """Return the sum as the vector that every hospital receives."""
    return torch.from_numpy(encode(asked_blocks(study), statistics.total))


def _sparse(values: Values) -> dict[str, dict[int, int]]:
    return {
        name: {place: one for place, one in enumerate(numbers) if one} for name, numbers in values.items()
    }


def _whole(blocks: tuple[Block, ...], sparse: Mapping[str, Mapping[int, int]]) -> dict[str, list[int]]:
    return {
        block.name: [sparse.get(block.name, {}).get(place, 0) for place in range(block.size)]
        for block in blocks
    }


def _csv(lines: list[Line], sites: list[str]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("variable", "level", "overall", *sites))
    for line in lines:
        cells = (line.variable, line.level, line.overall, *(line.hospitals[site] for site in sites))
        # A spreadsheet runs what begins like a formula; the study's author chose the names.
        writer.writerow([f"'{cell}" if cell[:1] in "=+@\t\r" and cell else cell for cell in cells])
    return text.getvalue()


# ------------------------------------------------------------------------------------------- in one process


def describe_here(
    study: Study,
    data: Mapping[str, SiteDataModule],
    audit: AuditLog,
    least: int = 1,
    releases: Mapping[str, Release] = MappingProxyType({}),
) -> StudyStatistics:
    """Return the statistics of hospitals that are all in this process, over the memory exchange.

    `releases` has each hospital's, where the study asks for noise.

    Raises:
        QuorumError: if too few hospitals sent valid statistics.
        DataError: if a hospital's data cannot be read, or none has enough patients.
        LedgerError: if a noised answer would carry a patient over the ceiling.
    """
    config, length = request_of(study), length_for(study)
    answers: dict[str, Tensor] = {}
    for site in sorted(data):
        try:
            answers[site] = answer_to_send(study, data[site], least, releases.get(site))
        except (DataError, PrivacyError) as error:
            raise type(error)(f"site '{site}': {error}") from None
    exchange = MemoryExchange(config.study_digest, parties=config.sites)

    def answer(site: str) -> None:
        connection = SiteConnection(site, exchange, config.privacy, Egress(frozenset()), audit=audit)
        answer_statistics(connection, lambda: answers[site], length)

    with ThreadPoolExecutor(max(len(answers), 1), thread_name_prefix="medfed-statistics") as pool:
        waiting: list[Any] = [pool.submit(answer, site) for site in answers]
        try:
            for site in set(config.sites) - set(answers):
                exchange.withdraw(site, "its data cannot be used")
            described = collect_statistics(config, exchange, length, audit)
            publish_statistics(exchange, config.study_digest, described.total)
        except BaseException:
            exchange.close()
            raise
        for one in waiting:
            one.result()
    exchange.close()
    return statistics_of(study, described)

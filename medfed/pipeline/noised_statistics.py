"""Statistics under differential privacy (`describe.noise`): how much noise, who pays for it, what is shown.

A hospital draws its noise once. The noised answer is kept before it is charged to the ledger, and charged
before it is sent, to an account of its own: whenever the hospital dies in between, it goes on with the same
numbers and pays once. An answer that is lost is drawn anew and paid for again.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch
from torch import Tensor

from medfed.data.describe.blocks import Block, Values
from medfed.data.describe.noised import LEFT_OUT, noised_blocks, shown, squared_sensitivity
from medfed.data.describe.scope import blocks_of
from medfed.data.describe.table_one import NONE, Line, table_one
from medfed.errors import DECODING_ERRORS, RunError
from medfed.evaluation.inference import SiteCases
from medfed.federation.description import description_digest
from medfed.files import write_whole
from medfed.pipeline.planning import least_of, scope_of
from medfed.privacy._patient_noise import PatientNoise, with_noise
from medfed.privacy.accounting.ledger import DataSet, Ledger, data_set
from medfed.runs.folder import RunFolder
from medfed.study.canonical import study_digest
from medfed.study.study import Study

# A normal deviate is within so many deviations with a probability of 95 %.
DEVIATES_95 = 1.96

# The file of the noised answer, in a site's own folder.
ANSWER = "statistics-answer.json"


def noise_of(study: Study) -> PatientNoise | None:
    """Return the noise that a study asks of its hospitals' statistics, or None."""
    return study.describe.noise if study.describe is not None else None


def asked_blocks(study: Study) -> tuple[Block, ...]:
    """Return the blocks of numbers that a study asks of each hospital."""
    return blocks_of(scope_of(study)) if noise_of(study) is None else noised_blocks(scope_of(study))


def deviation_of(study: Study, noise: PatientNoise) -> float:
    """Return the standard deviation of the noise on each of a hospital's counts.

    Raises:
        PrivacyError: if no usable noise gives the study's epsilon.
    """
    return noise.deviation(squared_sensitivity(scope_of(study)))


def within_95(deviation: float, hospitals: int = 1) -> float:
    """Return how far the noise of so many hospitals moves a count at most, with a probability of 95 %."""
    return float(DEVIATES_95 * deviation * hospitals**0.5)


# -------------------------------------------------------------------------------------------- in the hospital


class _Answer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A noised answer as a hospital keeps it.

    account: the ledger's account that pays for it.  study: the digest of the study's statistics.  data: that
    of the training patients.
    """

    account: str
    study: str
    data: str
    numbers: list[int]


@dataclass(frozen=True)
class Release:
    """Where a hospital keeps its noised answer, and who pays for it.

    study: the digest of the study to which it agreed.  patients: its training patients.  folder: the site's
    own.
    """

    study: str
    patients: DataSet
    ledger: Ledger
    folder: Path

    def kept(self) -> _Answer | None:
        """Return the answer of these patients to this study that was drawn before, or None.

        Raises:
            RunError: if the file is damaged.
        """
        path = self.folder / ANSWER
        if not path.exists():
            return None
        try:
            kept = msgspec.json.decode(path.read_bytes(), type=_Answer)
        except DECODING_ERRORS as error:
            raise RunError(
                f"{ANSWER}: is damaged: {error}; restore the file, or delete it: the statistics are then "
                "noised anew, which is charged to the patients' privacy again"
            ) from None
        same = (kept.study, kept.data) == (description_digest(self.study), self.patients.digest)
        return kept if same else None


def noised_answer(
    study: Study, noise: PatientNoise, counts: Callable[[], Tensor], release: Release
) -> Tensor:
    """Return the hospital's noised counts, the same ones at each call, charged to its ledger once.

    `counts` are the true ones, counted only if there is no answer yet.

    Raises:
        LedgerError: if they would carry a patient over the hospital's ceiling. Nothing is kept or sent then.
    """
    kept = release.kept()
    answer = kept or _drawn(study, noise, counts(), release)
    if not _is_paid(answer, release):
        _close_lost(answer, release)
        account = release.ledger.reserve(answer.study, release.patients, noise.cost(), answer.account)
        if kept is None:
            write_whole(release.folder / ANSWER, msgspec.json.encode(answer), durable=True)
        release.ledger.commit(account, [noise.cost()], round=0)
        release.ledger.close(account)
    return torch.tensor(answer.numbers, dtype=torch.float64)


def _drawn(study: Study, noise: PatientNoise, counts: Tensor, release: Release) -> _Answer:
    flags = next(block.length for block in asked_blocks(study))
    noised = with_noise(counts[flags:], deviation_of(study, noise))
    numbers = [int(one) for one in (*counts[:flags].tolist(), *noised.tolist())]
    return _Answer(
        account=secrets.token_hex(8),
        study=description_digest(release.study),
        data=release.patients.digest,
        numbers=numbers,
    )


def _is_paid(answer: _Answer, release: Release) -> bool:
    return any(one.id == answer.account and one.spent for one in release.ledger.accounts(answer.study))


def _close_lost(answer: _Answer, release: Release) -> None:
    """Release what was reserved for answers that were lost before they were kept, and so never sent."""
    for account in release.ledger.accounts(answer.study):
        if not account.closed and account.id != answer.account:
            release.ledger.close(account.id)


def simulated_releases(
    study: Study, hospitals: Mapping[str, SiteCases], folder: RunFolder
) -> dict[str, Release]:
    """Return the releases of hospitals that are all in this process; each has a ledger in the run folder."""
    if noise_of(study) is None:
        return {}
    return {
        site: Release(
            study_digest(study),
            data_set(hospital.data.patients("train"), hospital.secret),
            Ledger(folder.site(site)),
            folder.site(site),
        )
        for site, hospital in hospitals.items()
    }


# ------------------------------------------------------------------------------------------- what is written


def noised_table(
    study: Study, noise: PatientNoise, total: Values, hospitals: Mapping[str, Values]
) -> list[Line]:
    """Return Table 1 of noised counts, and what the noise is."""
    scope, deviation, least = scope_of(study), deviation_of(study, noise), least_of(study)
    answered = total["hospitals"][0]
    lines = table_one(
        scope,
        shown(scope, total, least, deviation * answered**0.5),
        {site: shown(scope, values, least, deviation) for site, values in hospitals.items()},
        noised=True,
    )
    return [*lines, *_noise_lines(noise, deviation, answered, sorted(hospitals))]


def _noise_lines(noise: PatientNoise, deviation: float, answered: int, sites: list[str]) -> Iterator[Line]:
    """Yield what stands below the table on its noise."""
    own = {site: f"±{within_95(deviation):.0f}" for site in sites}
    yield Line("noise on each count", "95 %", f"±{within_95(deviation, answered):.0f}", own)
    spent = f"epsilon {noise.epsilon:g}, delta {noise.delta:g}"
    yield Line("privacy spent by each patient", "", spent, dict.fromkeys(sites, spent))
    yield Line("left out under noise", "", LEFT_OUT, dict.fromkeys(sites, NONE))

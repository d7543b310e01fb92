"""Which enrolled hospitals may take part in a study: those that it names, and those that join it later."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from medfed.deployment.enrolment.configuration import admit_study
from medfed.deployment.enrolment.participants import participants
from medfed.errors import EnrolmentError, StudyError
from medfed.federation.description import description_digest
from medfed.pipeline.describing import needs_description
from medfed.study.canonical import study_digest
from medfed.study.reading import read_study
from medfed.study.study import Study
from medfed.wire.credentials import read_federation


class Admitted(NamedTuple):
    """A study's digest, and the hospitals that were admitted to it."""

    digest: str
    sites: tuple[str, ...]


def admit(folder: Path, study_file: Path, sites: Sequence[str], overrides: Sequence[str] = ()) -> Admitted:
    """Admit hospitals to a study, by default those that it names; `folder` is the coordinator's.

    Raises:
        StudyError: if the study names none of these and nobody may join it.
        EnrolmentError: if one has no valid certificate.
    """
    read_federation(folder)
    study = read_study(study_file, overrides)
    named = sorted({*study.sites, *study.held_out})
    chosen = sorted({*sites}) or named
    _check_allowed(study, study_file, [site for site in chosen if site not in named])
    _check_enrolled(folder, chosen)
    digest = study_digest(study)
    admit_study(folder, digest, chosen, keep=True)
    if needs_description(study):
        admit_study(folder, description_digest(digest), chosen, keep=True)
    return Admitted(digest, tuple(chosen))


def _check_allowed(study: Study, study_file: Path, joining: Sequence[str]) -> None:
    if joining and not study.sampling.joining:
        raise StudyError(
            f"{study_file.name}: '{joining[0]}' is none of its hospitals, and the study does not let others "
            "join; that would be another study (sampling.joining: true, or the name under sites), which "
            "every hospital approves anew"
        )


def _check_enrolled(folder: Path, sites: Iterable[str]) -> None:
    valid = {one.site for one in participants(folder) if one.status in ("valid", "expires soon")}
    missing = sorted({*sites} - valid)
    if missing:
        raise EnrolmentError(
            f"'{missing[0]}' has no valid certificate of this federation; `medfed enrol sign` answers its "
            "request"
        )

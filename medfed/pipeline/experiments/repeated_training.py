"""What every experiment demands that trains on the same patients more than once: seeds, folds, a search.

Two trainings under differential privacy spend the budget of both, and a mechanism's epsilon is of one; sums
of two trainings tell more than those of one. In a simulation one person has all data, and nothing is
protected from anyone: the same study without its mechanism answers the same question.
"""

from __future__ import annotations

from medfed.errors import StudyError
from medfed.registry import kind_of
from medfed.study.study import Study


def require_no_privacy(study: Study, named: str, remedy: str) -> None:
    """Check that training again would not tell more than a study's privacy counts.

    Args:
        study: the study that would be trained again.
        named: what would train again, the first words of the error.
        remedy: what to do instead.

    Raises:
        StudyError: if the study has a privacy mechanism.
    """
    if kind_of(study.privacy) != "none":
        raise StudyError(
            f"{named}, and each training tells more of the same patients than the privacy of "
            f"'{kind_of(study.privacy)}' counts; {remedy}"
        )

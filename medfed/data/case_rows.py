"""What the table beside a hospital's images says of each case, by the case's token; it never leaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from medfed.data.case import Case
from medfed.data.refusals import MissingRowError, of_case
from medfed.errors import DataError


@dataclass(frozen=True, eq=False, repr=False)
class CaseRows:
    """The rows of cases, before anything is computed from them.

    numbers: (numeric features,) per case, NaN where empty.  words: (words of all categorical features,) per
    case, 0 or 1.  refused: why a case has no row that can be used, naming the case by token.  dropped: the
    cases that `missing: drop` left out.  warnings: what a person should look at before the study trains.
    notes: what was read how; they may be printed, as the warnings may.
    """

    numbers: Mapping[str, Sequence[float]]
    words: Mapping[str, Sequence[float]]
    refused: Mapping[str, DataError] = field(default_factory=lambda: MappingProxyType({}))
    dropped: tuple[Case, ...] = ()
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def check(self, case: Case) -> None:
        """Raise why a case has no row, if it has none.

        Raises:
            DataError: naming the case by token.
        """
        if case.token in self.refused:
            raise self.refused[case.token]
        if case.token not in self.numbers:
            raise of_case(MissingRowError("the table beside the images was read without it"), case.token)

"""What a hospital says of its own data, so that each command reads them as its training does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from medfed.data.layouts import Layout
from medfed.data.own_data import OwnData
from medfed.data.settings import Unreadable
from medfed.study.study import Study


@dataclass(frozen=True, repr=False)
class OwnChoices:
    """What a hospital says of its own data, as its site file does; by default nothing.

    `name` is its name in studies.  `secret` salts tokens and decides splits.  `layout`, `data` and `words`
    are its own layout, its table with its words for columns and channels, and its words for classes.  `bears`
    is how many cases it leaves out, None for what the study says.  `as_read_here` returns a study as this
    hospital reads it.  `cache` is its folder for prepared images, None for the usual one.  `refusals` returns
    why its policy refuses a study with so many cases.  `labelled` are the structures that it draws, by any
    study's names; of none, all that a study has.  `smallest_group` is the fewest patients of what its policy
    lets leave.
    """

    name: str = ""
    secret: bytes | None = None
    layout: Layout | None = None
    data: OwnData = field(default_factory=OwnData)
    words: Mapping[str | int, str] = field(default_factory=dict)
    bears: Unreadable | None = None
    as_read_here: Callable[[Study], Study] = lambda study: study
    cache: str | None = None
    labelled: Sequence[str] = ()
    smallest_group: int = 1
    refusals: Callable[[Study, int], Sequence[str]] = lambda study, cases: ()

"""What a hospital calls its own data, where that differs from the study's words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType


@dataclass(frozen=True, repr=False)
class OwnData:
    """A site's own file and words, from its site file or the study's `site_overrides`.

    file: the table beside its images.  headings: its headings of a table, by the study's columns.
    channels: the study's names of channels, by the site's own.
    """

    file: str | None = None
    headings: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    channels: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

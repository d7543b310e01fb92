"""One case of a hospital: its files, its patient, its split, and the token that stands for it in public."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType


@dataclass(frozen=True, repr=False)
class Case:
    """One imaging visit of one patient. It never leaves the hospital.

    `id` and `patient` are as the hospital wrote them; `token` is the salted name that logs and errors use.
    `image` holds one path per channel: a file, or a folder of DICOM slices.
    """

    id: str
    patient: str
    token: str
    image: tuple[Path, ...]
    label: Path | None = None
    target: int | None = None
    split: str = "train"
    attributes: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    masks: tuple[tuple[str, Path], ...] = ()

    def __repr__(self) -> str:
        # Tracebacks and debug prints show a case; they must not show its paths and its patient.
        return f"Case(token={self.token!r}, split={self.split!r})"

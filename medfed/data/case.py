"""One case of a hospital: its files, its patient, its split, and the token that stands for it in public."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from medfed.errors import ImageError, LabelError


@dataclass(frozen=True, repr=False)
class Echo:
    """One echo of a DICOM file that holds several: `echo_ms` is its EffectiveEchoTime."""

    path: Path
    echo_ms: float


# One channel of an image: a file, a folder that holds it alone, exactly the files of one DICOM series, or one
# echo of a file; no file at all, (), where the folder lacks a channel that it has of other cases.
ImageSource = Path | tuple[Path, ...] | Echo


@dataclass(frozen=True)
class Fault:
    """What in a folder keeps one case from being read: the type of its refusal, and printable words.

    The type says whether it lies in the image or in the label, and under which words the case is counted.
    """

    kind: type[ImageError]
    message: str

    @property
    def of_label(self) -> bool:
        """Whether only the label cannot be read."""
        return issubclass(self.kind, LabelError)


@dataclass(frozen=True, repr=False)
class Case:
    """One imaging visit of one patient. It never leaves the hospital.

    `id` and `patient` are as the hospital wrote them; `token` is the salted name that logs and errors use.
    `image` holds one source per channel: a file, a folder of DICOM slices, or the files of one series.
    `masks` holds one mask file per named structure, where a hospital has its labels so. A case with a `fault`
    is refused when it is read, as one whose file is missing.
    """

    id: str
    patient: str
    token: str
    image: tuple[ImageSource, ...]
    label: Path | None = None
    target: int | None = None
    split: str = "train"
    attributes: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    masks: tuple[tuple[str, Path], ...] = ()
    fault: Fault | None = None

    def __repr__(self) -> str:
        # Tracebacks and debug prints show a case; they must not show its paths and its patient.
        return f"Case(token={self.token!r}, split={self.split!r})"


def paths_of(source: ImageSource) -> tuple[Path, ...]:
    """Return the paths of one channel: a file, a folder, or the files of a series."""
    if isinstance(source, Echo):
        return (source.path,)
    return source if isinstance(source, tuple) else (source,)


def first_path(source: ImageSource) -> Path:
    """Return a path that stands for one channel: its file, its folder, or the first file of its series."""
    return paths_of(source)[0]


def is_there(path: Path) -> bool:
    """Whether there is a file or folder of this path; a text that cannot be a path names none."""
    try:
        return path.exists()
    except (OSError, ValueError):  # too long for a name, or with a zero byte
        return False

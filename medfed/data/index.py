"""What is in a hospital's folder: its cases, who they belong to, and which split each is in.

`index_folder` looks at a folder and says what it took it for. `layouts/` holds a file a layout; to
read another one, add a file there and list it in `LAYOUTS`. An index reads names and tables, never
voxels, and writes nothing into the hospital's folder. It stays in the hospital: what may be printed is a
case's token, not its id.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from medfed.data.splits import DEFAULT_FRACTIONS, SPLITS, assign_splits, case_token
from medfed.errors import DataError


@dataclass(frozen=True, repr=False)
class Case:
    """One imaging visit of one patient. It never leaves the hospital.

    `id` and `patient` are as the hospital wrote them; `token` is the salted name that logs and errors use.
    `image` holds one path a channel (a file, or a folder of DICOM slices); for a series found in a mixed
    tree, its files.
    """

    id: str
    patient: str
    token: str
    image: tuple[Path, ...]
    label: Path | None = None
    target: int | None = None
    split: str = "train"
    attributes: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def __repr__(self) -> str:
        # A case gets into tracebacks and debug prints; its paths and its patient must not.
        return f"Case(token={self.token!r}, split={self.split!r})"


@dataclass(frozen=True, repr=False)
class Index:
    """A hospital's cases, and what the folder was taken for.

    `class_names` names the targets (or, for segmentation layouts that say so, the label values) in order,
    where the layout knows them. `notes` are lines that may be printed: they name tokens, counts and columns
    only.
    """

    folder: Path
    layout: str
    cases: tuple[Case, ...]
    notes: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Index({self.layout!r}, {len(self.cases)} cases)"

    def split(self, name: str) -> tuple[Case, ...]:
        """Return the cases of one split, in the index's order."""
        return tuple(case for case in self.cases if case.split == name)

    @property
    def patients(self) -> int:
        """How many patients the cases belong to."""
        return len({case.patient for case in self.cases})

    def describe(self) -> str:
        """Return one line: what the folder was taken for and what is in it, without a name or a path."""
        counts = Counter(case.split for case in self.cases)
        splits = ", ".join(f"{counts[name]} {name}" for name in SPLITS)
        labels = sum(case.label is not None for case in self.cases)
        targets = sum(case.target is not None for case in self.cases)
        return (
            f"{self.layout}: {len(self.cases)} cases of {self.patients} patients ({splits}), "
            f"{labels} with a label, {targets} with a target"
        )


def index_folder(
    folder: str | Path,
    *,
    site_secret: bytes,
    fractions: Sequence[float] = DEFAULT_FRACTIONS,
) -> Index:
    """Return the index of a hospital's folder, checked.

    Args:
        folder: the folder with `cases.csv`, or in one of the layouts of `layouts/`.
        site_secret: the site's key. It salts the tokens of cases and decides splits where none are given; the
        caller
            keeps it outside this folder, and the same key always gives the same splits.
        fractions: of patients in train, val and test, for layouts or tables that give no split.

    Raises:
        DataError: a folder without cases, a table that lacks a column, a duplicate case, a patient in two
        splits,
            an unknown split, an empty target.
        ImageError: an image or label that is not there.
    """
    from medfed.data.layouts import LAYOUTS

    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(
            "the site's data folder is not a folder; set `data` in the site file to the folder with the cases"
        )
    if len(site_secret) < 16:
        raise DataError(
            f"the site's secret has {len(site_secret)} bytes; at least 16 are needed, "
            "`secrets.token_bytes(32)` makes one"
        )
    for recognise, read in LAYOUTS:
        if recognise(folder):
            found = read(folder, site_secret)
            break
    else:
        raise DataError(
            "the site's data folder holds nothing that medfed knows: expected cases.csv, imagesTr with "
            "labelsTr and dataset.json, sub-*/anat (BIDS), a folder of images beside one of labels, "
            "a folder a class, or DICOM series"
        )
    cases = assign_splits(found.cases, site_secret, fractions)
    if not cases:
        raise DataError(
            f"the site's data folder was taken for {found.layout} and holds no case; add cases, or name "
            "another folder"
        )
    check_cases(cases)
    return Index(folder, found.layout, cases, found.notes, found.class_names)


def check_cases(cases: Sequence[Case]) -> None:
    """Raise where two cases share an id, a patient is in two splits or a file is missing.

    Raises:
        DataError, ImageError: naming the cases by token.
    """
    from medfed.errors import ImageError

    seen: set[str] = set()
    split_of: dict[str, Case] = {}
    for case in cases:
        if case.id in seen:
            raise DataError(f"case {case.token} is listed twice; every case needs an id of its own")
        seen.add(case.id)
        first = split_of.setdefault(case.patient, case)
        if first.split != case.split:
            raise DataError(
                f"one patient is in two splits: case {first.token} in {first.split}, case {case.token} in "
                f"{case.split}; "
                "all of a patient's cases belong into one split, or the score is of patients it has seen"
            )
        for path in case.image:
            if not path.exists():
                raise ImageError(
                    f"case {case.token}: its image is not there; correct the image's path in the table or "
                    "restore the file"
                )
        if case.label is not None and not case.label.exists():
            raise ImageError(
                f"case {case.token}: its label is not there; correct the label's path in the table or "
                "restore the file"
            )


__all__ = ["Case", "Index", "case_token", "check_cases", "index_folder"]

"""The folder layouts that hospitals have: for each, how to recognise it and how to list its cases.

To add one, write `is_<name>(folder) -> bool` and `<name>(folder, site_secret) -> Found`, and put the pair
into `LAYOUTS`, the surest sign first. A layout lists; `index.py` then assigns splits and checks. Messages
name a case by token and a row by number, never a path, a name or a cell: a table without a heading line would
leak its first patient.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType

from medfed.data.index import Case
from medfed.data.own_folder import files_below
from medfed.data.splits import SPLITS, UNASSIGNED, case_token
from medfed.errors import DataError, ImageError


@dataclass(frozen=True)
class Found:
    """What one layout listed, before splits and checks."""

    layout: str
    cases: tuple[Case, ...]
    notes: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()


# Columns of cases.csv that mean something to medfed; every other column is kept as an attribute.
CASE_COLUMNS = ("case", "patient", "image", "label", "target", "split")
NEEDED_COLUMNS = ("case", "image")

# Between the images of one case in a cell: one file a channel, in order.
CHANNEL_SEPARATOR = "|"

NIFTI_ENDINGS = (".nii.gz", ".nii")


def stem(path: Path) -> str:
    """Return a file's name without its (double) ending."""
    for ending in NIFTI_ENDINGS:
        if path.name.lower().endswith(ending):
            return path.name[: -len(ending)]
    return path.stem


def is_nifti(path: Path) -> bool:
    """Whether a file is called as a NIfTI; hidden files (macOS writes `._x.nii.gz`) are not images."""
    return path.name.lower().endswith(NIFTI_ENDINGS) and not path.name.startswith(".") and path.is_file()


def visible(folder: Path) -> list[Path]:
    """Return what is in a folder, sorted by name, without hidden entries."""
    return sorted(
        (path for path in folder.iterdir() if not path.name.startswith(".")), key=lambda path: path.name
    )


# --- cases.csv ----------------------------------------------------------------------------------------------


def is_table(folder: Path) -> bool:
    """Whether there is a cases.csv."""
    return (folder / "cases.csv").is_file()


def table(folder: Path, site_secret: bytes) -> Found:
    """List the rows of cases.csv; paths in it are relative to its folder."""
    where = "cases.csv"
    rows = read_rows(folder / "cases.csv", where)
    columns = next(rows)[1]
    check_columns(columns, NEEDED_COLUMNS, where)
    cases = []
    rows_of: dict[str, int] = {}
    for number, cells in rows:
        row = dict(zip(columns, cells, strict=True))
        name = row["case"]
        if not name:
            raise DataError(f"{where} row {number}: the case has no id; fill the column 'case'")
        token = case_token(site_secret, name)
        at = f"{where} row {number} (case {token})"
        if name in rows_of:
            raise DataError(
                f"{at}: the same case id as row {rows_of[name]}; every case needs an id of its own, "
                "and a patient's several visits share the column 'patient'"
            )
        rows_of[name] = number
        if not row["image"]:
            raise DataError(
                f"{at}: the column 'image' is empty; give the image's path relative to the folder"
            )
        images = tuple(folder / part.strip() for part in row["image"].split(CHANNEL_SEPARATOR))
        for path in images:
            if not path.exists():
                raise ImageError(
                    f"{at}: its image is not there; correct the path in the column 'image' or restore the "
                    "file"
                )
        label = folder / row["label"] if row.get("label") else None
        if label is not None and not label.exists():
            raise ImageError(
                f"{at}: its label is not there; correct the path in the column 'label' or restore the file"
            )
        cases.append(
            Case(
                id=name,
                patient=row.get("patient") or name,
                token=token,
                image=images,
                label=label,
                target=read_target(row["target"], at) if "target" in row else None,
                split=read_split(row.get("split", ""), at),
                attributes=MappingProxyType({k: v for k, v in row.items() if k not in CASE_COLUMNS}),
            )
        )
    notes = (
        ()
        if "patient" in columns
        else ("cases.csv has no column 'patient': each case counts as a patient of its own",)
    )
    return Found("cases.csv", tuple(cases), notes)


def read_rows(path: Path, where: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the heading as row 1, then each row with the number a spreadsheet shows; commas, semicolons or
    tabs.

    Raises:
        DataError: for a file that is no UTF-8 text or a row with another number of cells.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{where} is not UTF-8 text; save it as 'CSV UTF-8'") from None
    if "\0" in text:
        raise DataError(f"{where} holds zero bytes, so it is no text table; save it as 'CSV UTF-8'")
    heading = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=heading.count)
    columns: list[str] = []
    try:
        for number, cells in enumerate(
            csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True), start=1
        ):
            cells = [cell.strip() for cell in cells]
            if not any(cells):
                continue
            if not columns:
                columns = [cell.lower() for cell in cells]
            elif len(cells) != len(columns):
                raise DataError(
                    f"{where} row {number} has {len(cells)} cells, the heading has {len(columns)}; quote "
                    f"cells with a '{delimiter}'"
                )
            yield number, columns if cells and number == 1 else cells
    except csv.Error:
        raise DataError(
            f"{where} cannot be read as a table: a quote is opened and not closed, or a cell is too long"
        ) from None
    if not columns:
        raise DataError(f"{where} is empty; its first line names the columns: {', '.join(CASE_COLUMNS)}")


def check_columns(columns: Sequence[str], needed: Sequence[str], where: str) -> None:
    """Raise where a needed column is missing, suggesting the nearest that is there.

    Raises:
        DataError: naming the column that is missing, and no other cell of the heading unless it is nearly
        that one.
    """
    for column in columns:
        if columns.count(column) > 1:
            raise DataError(
                f"{where} has two columns of the same name, at positions {_positions(columns, column)}; "
                "name each once"
            )
    for column in needed:
        if column not in columns:
            near = get_close_matches(column, columns, n=1, cutoff=0.6)
            hint = (
                f"; is it '{near[0]}'? rename that column to '{column}'"
                if near
                else "; its first line must name the columns"
            )
            raise DataError(f"{where} has no column '{column}'{hint}")


def _positions(columns: Sequence[str], column: str) -> str:
    return " and ".join(str(i + 1) for i, other in enumerate(columns) if other == column)


def read_target(cell: str, at: str, column: str = "target") -> int:
    """Return a class number from a cell.

    Raises:
        DataError: for an empty cell or anything that is no whole number from 0.
    """
    if not cell:
        raise DataError(
            f"{at}: the column '{column}' is empty; give its class, 0 or higher, or leave the case out"
        )
    try:
        number = float(cell)
    except ValueError:
        number = -1
    if number < 0 or number != int(number):
        raise DataError(f"{at}: the column '{column}' is no class number; expected 0, 1, ...")
    return int(number)


def read_split(cell: str, at: str) -> str:
    """Return a split, or UNASSIGNED for an empty cell.

    Raises:
        DataError: for any other word, with the nearest that is allowed.
    """
    word = cell.lower()
    if word in (*SPLITS, UNASSIGNED):
        return word
    synonyms = {
        "validation": "val",
        "valid": "val",
        "dev": "val",
        "training": "train",
        "testing": "test",
        "tr": "train",
        "ts": "test",
    }
    near = synonyms.get(word) or next(iter(get_close_matches(word, SPLITS, n=1, cutoff=0.5)), None)
    hint = f"did you mean '{near}'? " if near else ""
    raise DataError(
        f"{at}: the column 'split' holds an unknown word; {hint}there are {', '.join(SPLITS)}, or empty to "
        "let medfed choose"
    )


# --- Medical Segmentation Decathlon and nnU-Net -------------------------------------------------------------


def is_decathlon(folder: Path) -> bool:
    """Whether there are imagesTr, labelsTr and dataset.json."""
    return (
        (folder / "imagesTr").is_dir()
        and (folder / "labelsTr").is_dir()
        and (folder / "dataset.json").is_file()
    )


def decathlon(folder: Path, site_secret: bytes) -> Found:
    """List imagesTr with labelsTr, for nnU-Net with a file a channel (`_0000`), else a file a case."""
    try:
        described = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
        labels = dict(described["labels"])
        nnunet = "channel_names" in described
        # The Decathlon writes {"1": "anterior"}, nnU-Net {"anterior": 1}.
        numbered = (
            {int(v): str(k) for k, v in labels.items()}
            if nnunet
            else {int(k): str(v) for k, v in labels.items()}
        )
    except (ValueError, KeyError, TypeError):
        raise DataError(
            "dataset.json does not name its labels; expected 'labels': {'0': 'background', ...}"
        ) from None
    channels = len(described["channel_names"]) if nnunet else 1
    cases = []
    for label in visible(folder / "labelsTr"):
        if not is_nifti(label):
            continue
        name = stem(label)
        token = case_token(site_secret, name)
        if nnunet:
            images = tuple(_nifti(folder / "imagesTr", f"{name}_{i:04d}") for i in range(channels))
        else:
            images = (_nifti(folder / "imagesTr", name),)
        for image in images:
            if not image.exists():
                raise ImageError(
                    f"case {token}: labelsTr has its label, imagesTr lacks its image; restore the file or "
                    "remove the label"
                )
        cases.append(Case(id=name, patient=name, token=token, image=images, label=label, split=UNASSIGNED))
    notes = []
    labelled = {path.name for case in cases for path in case.image}
    spare = [path for path in visible(folder / "imagesTr") if is_nifti(path) and path.name not in labelled]
    if spare:
        notes.append(f"{len(spare)} images in imagesTr have no label and are left out")
    if (folder / "imagesTs").is_dir():
        notes.append("imagesTs has no labels and is left out; medfed cuts a test split from imagesTr")
    notes.append("the layout names no patients: each case counts as a patient of its own")
    names = tuple(numbered[i] for i in sorted(numbered))
    return Found(
        "nnU-Net raw" if nnunet else "Medical Segmentation Decathlon", tuple(cases), tuple(notes), names
    )


def _nifti(folder: Path, name: str) -> Path:
    """Return the NIfTI of this exact name, whichever ending it has."""
    found = [folder / f"{name}{ending}" for ending in NIFTI_ENDINGS if (folder / f"{name}{ending}").exists()]
    if len(found) > 1:
        raise DataError(
            "a folder has one image both as .nii and as .nii.gz; keep one, as nothing says that they are "
            "the same"
        )
    return found[0] if found else folder / f"{name}{NIFTI_ENDINGS[0]}"


# --- a folder of images beside one of labels ---------------------------------------------------------------

IMAGE_FOLDERS = frozenset(("image", "images", "imagestr", "img", "imgs"))
LABEL_FOLDERS = frozenset(
    (
        "label",
        "labels",
        "labelstr",
        "mask",
        "masks",
        "seg",
        "segs",
        "segmentation",
        "segmentations",
        "annotations",
    )
)
# What is put behind the name that an image and its label share.
IMAGE_SUFFIXES = ("_0000", "_image", "_img")
LABEL_SUFFIXES = ("_seg", "_segmentation", "_mask", "_label", "-seg", "-mask", "-label")


def is_paired(folder: Path) -> bool:
    """Whether there is one folder of images beside one of labels, by their names, directly or below the splits."""
    parents = _split_folders(folder) or {UNASSIGNED: folder}
    return all(_image_and_label_folder(parent) is not None for parent in parents.values())


def _image_and_label_folder(parent: Path) -> tuple[Path, Path] | None:
    folders = [path for path in visible(parent) if path.is_dir()]
    images = [path for path in folders if path.name.lower() in IMAGE_FOLDERS]
    labels = [path for path in folders if path.name.lower() in LABEL_FOLDERS]
    if len(images) != 1 or len(labels) != 1 or not any(is_nifti(path) for path in visible(images[0])):
        return None
    return images[0], labels[0]


def paired(folder: Path, site_secret: bytes) -> Found:
    """List the images and the label of each, which has its name, perhaps with a suffix such as `_seg`."""
    cases = []
    for split, parent in (_split_folders(folder) or {UNASSIGNED: folder}).items():
        found = _image_and_label_folder(parent)
        assert found is not None
        images, labels = (_by_name(*one) for one in zip(found, (IMAGE_SUFFIXES, LABEL_SUFFIXES), strict=True))
        for name in sorted(labels):
            if name not in images:
                token = case_token(site_secret, name)
                raise ImageError(
                    f"case {token}: there is a label of this name and no image; restore the image or remove the label"
                )
        for name in sorted(images):
            identity = f"{split}/{name}" if split else name
            cases.append(
                Case(
                    id=identity,
                    patient=identity,
                    token=case_token(site_secret, identity),
                    image=(images[name],),
                    label=labels.get(name),
                    split=split,
                )
            )
    note = "the layout names no patients: each case counts as a patient of its own"
    return Found("images beside labels", tuple(cases), (note,))


def _by_name(folder: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    """Return the NIfTI files of a folder by their names without a suffix.

    Raises:
        DataError: if two have one name.
    """
    found: dict[str, Path] = {}
    for path in visible(folder):
        if is_nifti(path):
            name = stem(path)
            name = next((name[: -len(end)] for end in suffixes if name.lower().endswith(end)), name)
            if name in found:
                raise DataError(
                    "a folder holds two files of one name (as .nii and .nii.gz, or with and without a suffix); keep one, "
                    "or list the cases in cases.csv"
                )
            found[name] = path
    return found


# --- a folder a class ---------------------------------------------------------------------------------------


def is_class_folders(folder: Path) -> bool:
    """Whether at least two sub-folders hold NIfTI files, directly or below train, val and test."""
    parents = _split_folders(folder) or {UNASSIGNED: folder}
    return any(
        len(classes := [path for path in visible(parent) if path.is_dir()]) >= 2
        and any(is_nifti(x) for c in classes for x in visible(c))
        for parent in parents.values()
    )


def class_folders(folder: Path, site_secret: bytes) -> Found:
    """List the images of each class's folder; classes count from 0 in the order of their names."""
    parents = _split_folders(folder) or {UNASSIGNED: folder}
    names = sorted({path.name for parent in parents.values() for path in visible(parent) if path.is_dir()})
    cases = []
    for target, name in enumerate(names):
        images = [
            (split, x)
            for split, parent in parents.items()
            if (parent / name).is_dir()
            for x in visible(parent / name)
            if is_nifti(x)
        ]
        if not images:
            raise DataError(
                f"class {target} of {len(names)} (folders in the order of their names) has no image; add "
                "images or remove its folder"
            )
        for split, image in images:
            # The same file name in two classes' folders is two cases.
            identity = f"{split}/{name}/{stem(image)}" if split else f"{name}/{stem(image)}"
            cases.append(
                Case(
                    id=identity,
                    patient=identity,
                    token=case_token(site_secret, identity),
                    image=(image,),
                    target=target,
                    split=split,
                )
            )
    note = "the layout names no patients: each case counts as a patient of its own"
    return Found("a folder a class", tuple(cases), (note,), tuple(names))


def _split_folders(folder: Path) -> dict[str, Path]:
    """Return train, val and test where these are all the sub-folders there are."""
    found = {path.name.lower(): path for path in visible(folder) if path.is_dir()}
    return found if found and set(found) <= set(SPLITS) else {}


# --- a tree of DICOM series ---------------------------------------------------------------------------------

# What is known to hold no image volume of its own; it is left out with a count.
NOT_IMAGES = ("SR", "PR", "KO", "SEG", "RTSTRUCT", "RTPLAN", "RTDOSE", "REG", "DOC", "FID", "RWV", "OT")

# A localizer has a few slices; a volume worth training on has more.
FEWEST_SLICES = 5


@dataclass(frozen=True)
class _Header:
    path: Path
    modality: str
    patient: str
    series: str
    frame: str
    references: tuple[str, ...]
    frames: int


def is_dicom_tree(folder: Path) -> bool:
    """Whether a DICOM file lies anywhere below."""
    return any(_is_dicom(path) for path in _files(folder))


def dicom_tree(folder: Path, site_secret: bytes) -> Found:
    """List the image series of a tree, each with the DICOM SEG (or RTSTRUCT) that references it.

    A label belongs to the series it references (ReferencedSeriesSequence); failing that, to the only series
    in its frame of reference.
    """
    headers = [header for path in _files(folder) if _is_dicom(path) and (header := _header(path)) is not None]
    series: dict[tuple[str, str], list[_Header]] = {}
    labels = [header for header in headers if header.modality in ("SEG", "RTSTRUCT")]
    others = 0
    for header in headers:
        if header.modality not in NOT_IMAGES:
            # Two patients may share a series UID after a careless anonymisation; they are two cases.
            series.setdefault((header.patient, header.series), []).append(header)
        elif header not in labels:
            others += 1
    short = [
        key for key, members in series.items() if sum(member.frames for member in members) < FEWEST_SLICES
    ]
    for key in short:
        del series[key]
    label_of = _match(series, labels, site_secret)
    cases = []
    for (patient, uid), members in sorted(series.items()):
        identity = f"{patient}/{uid}"
        cases.append(
            Case(
                id=identity,
                patient=patient or uid,
                token=case_token(site_secret, identity),
                image=(_series_path(members, headers),),
                label=label_of.get((patient, uid)),
                split=UNASSIGNED,
            )
        )
    notes = []
    if short:
        notes.append(f"{len(short)} series with fewer than {FEWEST_SLICES} slices are left out (localizers)")
    if others:
        notes.append(f"{others} objects that hold no volume are left out (SR, PR, KO, ...)")
    if len(labels) > len(label_of):
        notes.append(f"{len(labels) - len(label_of)} label objects match no series and are left out")
    return Found("a tree of DICOM series", tuple(cases), tuple(notes))


def _match(
    series: dict[tuple[str, str], list[_Header]], labels: list[_Header], site_secret: bytes
) -> dict[tuple[str, str], Path]:
    found: dict[tuple[str, str], Path] = {}
    for label in labels:
        keys = [key for key in series if key[0] == label.patient and key[1] in label.references]
        if not label.references:
            keys = [
                key
                for key, members in series.items()
                if key[0] == label.patient and members[0].frame == label.frame != ""
            ]
        if len(keys) != 1:
            continue
        if keys[0] in found:
            token = case_token(site_secret, "/".join(keys[0]))
            raise DataError(
                f"case {token}: two label objects reference its series; keep the one that is meant, or "
                "list cases in cases.csv"
            )
        found[keys[0]] = label.path
    return found


def _series_path(members: list[_Header], headers: list[_Header]) -> Path:
    """Return the folder that holds this series and no other image, or the one file that is the series."""
    if len(members) == 1:
        return members[0].path
    folders = {member.path.parent for member in members}
    own = {member.path for member in members}
    crowded = any(
        h.path.parent in folders and h.path not in own and h.modality not in NOT_IMAGES for h in headers
    )
    if len(folders) > 1 or crowded:
        raise DataError(
            "a DICOM series shares its folder with another one, or is spread over several folders; "
            "put each series into a folder of its own (dcmsort and most archives' exports do)"
        )
    return folders.pop()


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in files_below(folder) if not path.name.startswith("."))


def _is_dicom(path: Path) -> bool:
    """Whether a file has DICOM's preamble. Without one a file is taken for DICOM by its ending alone."""
    with path.open("rb") as file:
        start = file.read(132)
    return start[128:] == b"DICM" or path.suffix.lower() == ".dcm"


def _header(path: Path) -> _Header | None:
    """Return what matters of one file's header, or None for a file that is no DICOM object or a directory of
    them.
    """
    import warnings

    import pydicom

    tags = [
        "Modality",
        "PatientID",
        "SeriesInstanceUID",
        "FrameOfReferenceUID",
        "ReferencedSeriesSequence",
        "NumberOfFrames",
        "ReferencedFrameOfReferenceSequence",
        "SOPClassUID",
    ]
    try:
        with warnings.catch_warnings():  # pydicom's warnings quote header values
            warnings.simplefilter("ignore")
            ds = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=tags, force=True)
            if "Modality" not in ds or "SeriesInstanceUID" not in ds:
                return None
            return _Header(
                path=path,
                modality=str(ds.Modality),
                patient=str(ds.get("PatientID", "") or ""),
                series=str(ds.SeriesInstanceUID),
                frame=str(ds.get("FrameOfReferenceUID", "") or ""),
                references=tuple(_references(ds)),
                frames=int(ds.get("NumberOfFrames", 1) or 1),
            )
    except Exception:
        return None


def _references(ds: object) -> Iterator[str]:
    """Yield the series that a SEG or an RTSTRUCT references."""
    for item in getattr(ds, "ReferencedSeriesSequence", None) or []:
        yield str(item.SeriesInstanceUID)
    for frame in getattr(ds, "ReferencedFrameOfReferenceSequence", None) or []:
        for study in getattr(frame, "RTReferencedStudySequence", None) or []:
            for item in getattr(study, "RTReferencedSeriesSequence", None) or []:
                yield str(item.SeriesInstanceUID)


# The surest sign first: a table says what it is, a tree of DICOM files is what is left.
LAYOUTS: tuple[tuple[Callable[[Path], bool], Callable[[Path, bytes], Found]], ...] = (
    (is_table, table),
    (is_decathlon, decathlon),
    (is_paired, paired),
    (is_class_folders, class_folders),
    (is_dicom_tree, dicom_tree),
)

"""The Brain Imaging Data Structure: sub-01[/ses-1]/anat/sub-01[_ses-1]_T1w.nii.gz,
with labels below derivatives/.

Source: Gorgolewski et al., The brain imaging data structure, Scientific Data 2016, doi:10.1038/sdata.2016.44;
names of masks and segmentations by its derivatives (version 1.9), and by the widespread `<image>_seg`. Only
`anat` is looked at: a functional or diffusion series is no volume to segment.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from medfed.data.index import Case
from medfed.data.layouts._layout import Found, is_nifti, stem, visible
from medfed.data.splits import UNASSIGNED, case_token
from medfed.errors import DataError

# How the name of a label ends below derivatives/: what is derived is also images (bias-corrected, in
# a template's space).
LABELS = ("dseg", "mask", "seg", "label", "lesion")

# The kinds of anatomical image that may be named in a line; any other word of a file's name could
# be a patient's.
KINDS = frozenset(
    (
        "T1w",
        "T2w",
        "T2starw",
        "T1rho",
        "T1map",
        "T2map",
        "PDw",
        "PDT2",
        "FLAIR",
        "FLASH",
        "inplaneT1",
        "angio",
        "UNIT1",
    )
)


def is_bids(folder: Path) -> bool:
    """Whether subjects' folders hold anatomical images, by their names."""
    return any(_images(folder))


def bids(folder: Path, site_secret: bytes) -> Found:
    """List the anatomical images of each subject and session, with the label that derivatives/ has for each.

    Where there are images of several kinds (T1w, FLAIR), those of the kind that is labelled are listed.

    Raises:
        DataError: if nothing says which kind is meant, or which of two labels is an image's.
    """
    images, labels = _images(folder), _labels(folder)
    label_of = {image: _label(image, images, labels, site_secret) for image in images}
    kinds = Counter(_kind(image) for image in images)
    labelled = Counter(_kind(image) for image in images if label_of[image] is not None)
    if len(labelled or kinds) > 1:
        told = ", ".join(f"{count} {_told(kind)}" for kind, count in sorted((labelled or kinds).items()))
        raise DataError(
            f"the folder holds {'labels of ' if labelled else ''}several kinds of image ({told}), and nothing says which "
            "are meant; list the cases in cases.csv, which can also put several kinds into channels"
        )
    (kind,) = labelled or kinds
    cases = []
    for image in images:
        if _kind(image) == kind:
            identity = stem(image)
            cases.append(
                Case(
                    id=identity,
                    patient=_entities(image)["sub"],
                    token=case_token(site_secret, identity),
                    image=(image,),
                    label=label_of[image],
                    split=UNASSIGNED,
                )
            )
    others = len(images) - len(cases)
    notes = [f"{others} images of another kind than {_told(kind)} are left out"] if others else []
    spare = len(set(labels)) - len({label for label in label_of.values() if label is not None})
    if spare:
        notes.append(f"{spare} labels below derivatives belong to no image and are left out")
    return Found("BIDS", tuple(cases), tuple(notes))


def _images(folder: Path) -> list[Path]:
    return [path for path in _anatomical(folder) if "sub" in _entities(path)]


def _labels(folder: Path) -> list[Path]:
    """Return the masks and segmentations of every pipeline below derivatives/, in order."""
    derived = folder / "derivatives"
    roots = [derived, *(path for path in visible(derived) if path.is_dir())] if derived.is_dir() else []
    return [path for root in roots for path in _anatomical(root) if _kind(path).lower() in LABELS]


def _anatomical(root: Path) -> list[Path]:
    """Return the NIfTI files of sub-*/anat and sub-*/ses-*/anat, in order."""
    subjects = [path for path in visible(root) if path.is_dir() and path.name.startswith("sub-")]
    found = []
    for subject in subjects:
        sessions = [path for path in visible(subject) if path.is_dir() and path.name.startswith("ses-")]
        for place in (subject, *sessions):
            if (place / "anat").is_dir():
                found += [path for path in visible(place / "anat") if is_nifti(path)]
    return found


def _label(image: Path, images: Sequence[Path], labels: Sequence[Path], site_secret: bytes) -> Path | None:
    """Return the label that is named after an image, or else that of a session which has no other image."""
    visit = _visit(image)
    beside = [label for label in labels if _visit(label) == visit]
    found = [label for label in beside if stem(label).startswith(f"{stem(image)}_")]
    if not found and sum(_visit(other) == visit for other in images) == 1:
        found = beside
    if len(found) > 1:
        raise DataError(
            f"case {case_token(site_secret, stem(image))}: derivatives has {len(found)} labels for it; keep the one that "
            "is meant, or list the cases in cases.csv"
        )
    return found[0] if found else None


def _entities(path: Path) -> dict[str, str]:
    """Return what a BIDS name says: sub-01_ses-2_T1w is {sub: 01, ses: 2}."""
    return dict(part.split("-", 1) for part in stem(path).split("_") if "-" in part)


def _visit(path: Path) -> tuple[str, str]:
    entities = _entities(path)
    return entities.get("sub", ""), entities.get("ses", "")


def _told(kind: str) -> str:
    return kind if kind in KINDS else "of no usual kind"


def _kind(path: Path) -> str:
    return stem(path).rpartition("_")[2]

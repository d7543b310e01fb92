"""The Brain Imaging Data Structure: images in sub-01[/ses-1]/anat, labels below derivatives/.

Source: Gorgolewski et al., The brain imaging data structure, Scientific Data 2016, doi:10.1038/sdata.2016.44;
names of masks and segmentations by its derivatives (version 1.9), and by the widespread `<image>_seg`. Only
`anat` is read: a functional or diffusion series is no volume to segment.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from medfed.data.layouts._files import is_image, stem
from medfed.data.layouts._layout import CaseError, CaseListing, Layout, ListedCase
from medfed.data.layouts._survey import Survey
from medfed.errors import DataError

# How a label's name ends below derivatives/, where images lie too (bias-corrected, in a template's space).
LABELS = ("dseg", "mask", "seg", "label", "lesion")

# Contrasts that may be named in a message; any other word of a file's name could be a patient's.
WEIGHTED_IMAGES = frozenset({"T1w", "T2w", "T2starw", "PDw", "PDT2", "FLAIR", "FLASH", "inplaneT1", "angio"})
QUANTITATIVE_MAPS = frozenset({"T1map", "T2map", "T1rho", "UNIT1"})


class BIDS(Layout, tag="bids", frozen=True):
    """The Brain Imaging Data Structure: the anatomical images of each subject and session with their labels.

    If there are several contrasts (T1w, FLAIR), the labelled one is listed.
    """

    title: ClassVar[str] = "BIDS"
    needs: ClassVar[str] = "sub-x/anat/sub-x_T1w (BIDS)"
    order: ClassVar[int] = 40
    rank: ClassVar[int] = 1

    def evidence(self, survey: Survey) -> str | None:
        count = len(_images(survey))
        return f"{count} images in sub-*/anat, named as BIDS does" if count else None

    def read(self, survey: Survey) -> CaseListing:
        images, labels = _images(survey), _labels(survey)
        label_of = {image: _label(image, images, labels) for image in images}
        contrast = _only_contrast(images, [image for image in images if label_of[image] is not None])
        cases = tuple(
            ListedCase(stem(image), _entities(image)["sub"], (image,), label=label_of[image])
            for image in images
            if _contrast(image) == contrast
        )
        others = tuple(image for image in images if _contrast(image) != contrast)
        used = set(label_of.values())
        spare = tuple(label for label in labels if label not in used)
        left_out = {
            f"images of another contrast than {_printable(contrast)}": others,
            "labels below derivatives that belong to no image": spare,
        }
        return CaseListing(self.title, cases, left_out=left_out)


def _only_contrast(images: Sequence[Path], labelled: Sequence[Path]) -> str:
    """Return the contrast of the labelled images, or of all if none is labelled.

    Raises:
        DataError: if there are several.
    """
    counts = Counter(_contrast(image) for image in labelled or images)
    if len(counts) > 1:
        listed = ", ".join(f"{count} {_printable(contrast)}" for contrast, count in sorted(counts.items()))
        raise DataError(
            f"the folder holds {'labels of ' if labelled else ''}several contrasts ({listed}), and nothing "
            "says which one is meant; list the cases in cases.csv, which can also put several contrasts into "
            "channels"
        )
    return next(iter(counts))


def _images(survey: Survey) -> list[Path]:
    return [path for path in _anatomical(survey, ()) if "sub" in _entities(path)]


def _labels(survey: Survey) -> list[Path]:
    """Return the masks and segmentations of every pipeline below derivatives/, in order."""
    pipelines = survey.subfolders("derivatives")
    roots = [("derivatives",), *(("derivatives", pipeline) for pipeline in pipelines)]
    return [path for root in roots for path in _anatomical(survey, root) if _contrast(path).lower() in LABELS]


def _anatomical(survey: Survey, root: tuple[str, ...]) -> list[Path]:
    """Return the images of sub-*/anat and sub-*/ses-*/anat below a folder, in order."""
    return [
        file.path
        for file in survey.files
        if file.parts[: len(root)] == root and is_image(file) and _is_anatomical(file.parts[len(root) :])
    ]


def _is_anatomical(parts: Sequence[str]) -> bool:
    if len(parts) not in (3, 4) or not parts[0].startswith("sub-") or parts[-2] != "anat":
        return False
    return len(parts) == 3 or parts[1].startswith("ses-")


def _label(image: Path, images: Sequence[Path], labels: Sequence[Path]) -> Path | None:
    """Return the label named after an image, or else the label of a session that has no other image.

    Raises:
        CaseError: if there are several.
    """
    visit = _visit(image)
    of_visit = [label for label in labels if _visit(label) == visit]
    matches = [label for label in of_visit if stem(label).startswith(f"{stem(image)}_")]
    if not matches and sum(_visit(other) == visit for other in images) == 1:
        matches = of_visit
    if len(matches) > 1:
        raise CaseError(
            stem(image),
            f"derivatives has {len(matches)} labels for it; keep the right one, or list the cases in "
            "cases.csv",
        )
    return matches[0] if matches else None


def _entities(path: Path) -> dict[str, str]:
    """Return the entities in a BIDS name: sub-01_ses-2_T1w is {sub: 01, ses: 2}."""
    return dict(part.split("-", 1) for part in stem(path).split("_") if "-" in part)


def _visit(path: Path) -> tuple[str, str]:
    entities = _entities(path)
    return entities.get("sub", ""), entities.get("ses", "")


def _printable(contrast: str) -> str:
    return contrast if contrast in WEIGHTED_IMAGES | QUANTITATIVE_MAPS else "of no usual contrast"


def _contrast(path: Path) -> str:
    return stem(path).rpartition("_")[2]

"""A data set that dataset.json lists, with labelled validation images:
imagesTr, labelsTr, imagesVa, labelsVa.

Source: Ji et al., AMOS, NeurIPS 2022, arXiv:2206.08023.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from medfed.data.case import Fault
from medfed.data.layouts._dataset_json import FILE_NAME, described_listing, required_dataset_json
from medfed.data.layouts._files import images_in, stem
from medfed.data.layouts._layout import CaseListing, Layout, ListedCase
from medfed.data.layouts._survey import Survey
from medfed.data.refusals import MissingImageError, MissingLabelError
from medfed.data.splits import UNASSIGNED
from medfed.errors import DataError

# The lists of dataset.json, and the split of each: a test split is cut from the training images.
LISTS = {"training": UNASSIGNED, "validation": "val"}


class AMOS(Layout, tag="amos", frozen=True):
    """imagesTr and imagesVa with their labels, as dataset.json lists them.

    Images of the list `validation` are in the split val; those of `training` get splits as everywhere.
    """

    title: ClassVar[str] = "AMOS"
    needs: ClassVar[str] = (
        "imagesTr/x with labelsTr/x, imagesVa/y with labelsVa/y, and dataset.json that lists them"
    )
    order: ClassVar[int] = 25
    rank: ClassVar[int] = 1

    def evidence(self, survey: Survey) -> str | None:
        folders = ("imagesTr", "labelsTr", "imagesVa", "labelsVa")
        if survey.named(FILE_NAME) is None or not all(images_in(survey, folder) for folder in folders):
            return None
        return "dataset.json, with labels in labelsTr and in labelsVa"

    def read(self, survey: Survey) -> CaseListing:
        path, content = required_dataset_json(survey)
        files = {file.parts: file.path for file in survey.files}
        cases = [
            _case(entry, split, files) for name, split in LISTS.items() for entry in _entries(content, name)
        ]
        return described_listing(self.title, cases, content, (path,))


def _entries(content: Mapping[str, Any], name: str) -> list[tuple[str, str]]:
    """Return image and label of each entry of a list.

    Raises:
        DataError: if the list is not one of images with labels.
    """
    entries = content.get(name)
    pairs = [one for one in entries if isinstance(one, dict)] if isinstance(entries, list) else []
    if not isinstance(entries, list) or [one for one in pairs if {"image", "label"} <= set(one)] != entries:
        raise DataError(
            f"dataset.json does not list its images under '{name}'; expected "
            "[{'image': ..., 'label': ...}, ...]"
        )
    return [(str(one["image"]), str(one["label"])) for one in pairs]


def _case(entry: tuple[str, str], split: str, files: Mapping[tuple[str, ...], Path]) -> ListedCase:
    # Relative paths with a leading './'; PurePosixPath drops it. A path outside the folder is in no survey.
    image, label = (files.get(PurePosixPath(path).parts) for path in entry)
    name = stem(Path(entry[0]))
    kind = MissingImageError if image is None else MissingLabelError if label is None else None
    fault = None
    if kind is not None:
        what = "image" if image is None else "label"
        fault = Fault(
            kind, f"dataset.json lists its {what}, which is not there; restore it, or correct the list"
        )
    return ListedCase(name, name, (() if image is None else image,), label, split=split, fault=fault)

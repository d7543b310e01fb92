"""The folders of the Medical Segmentation Decathlon."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from medfed.data.layouts._dataset_json import FILE_NAME, described_listing, required_dataset_json
from medfed.data.layouts._files import images_in, paths, stem
from medfed.data.layouts._layout import CaseListing, Layout, ListedCase
from medfed.data.layouts._numbered_channels import in_order, is_numbered, several_labels
from medfed.data.layouts._survey import File, Survey

IMAGES, LABELS, UNLABELLED = "imagesTr", "labelsTr", "imagesTs"

# What is left out of these folders, by reason.
NO_LABEL = "images in imagesTr without a label"
NO_TEST_LABELS = "images in imagesTs, which has no labels; medfed cuts a test split from imagesTr"


class Decathlon(Layout, tag="decathlon", frozen=True):
    """imagesTr with labelsTr and dataset.json: one file per case, and its label of the same name."""

    title: ClassVar[str] = "Medical Segmentation Decathlon"
    needs: ClassVar[str] = "imagesTr/x with labelsTr/x and dataset.json"
    order: ClassVar[int] = 20
    rank: ClassVar[int] = 1

    def evidence(self, survey: Survey) -> str | None:
        images, labels = images_in(survey, IMAGES), images_in(survey, LABELS)
        if survey.named(FILE_NAME) is None or not images or not labels or images_in(survey, "labelsVa"):
            return None
        same = len({stem(file.path) for file in images} & {stem(file.path) for file in labels})
        if is_numbered(images, labels) or not same:
            return None
        return f"dataset.json, and {same} labels in labelsTr with an image of the same name in imagesTr"

    def read(self, survey: Survey) -> CaseListing:
        path, content = required_dataset_json(survey)
        images, labels = by_stem(images_in(survey, IMAGES)), by_stem(images_in(survey, LABELS))
        cases = [_case(name, images.get(name, ()), files) for name, files in sorted(labels.items())]
        spare = tuple(path for name, files in images.items() if name not in labels for path in files)
        return described_listing(
            self.title,
            cases,
            content,
            (path,),
            {NO_LABEL: spare, NO_TEST_LABELS: paths(images_in(survey, UNLABELLED))},
        )


def _case(name: str, images: tuple[Path, ...], labels: tuple[Path, ...]) -> ListedCase:
    image, fault = in_order({0: images}, 1)
    return ListedCase(
        id=name, patient=name, image=image, label=labels[0], fault=fault or several_labels(labels)
    )


def by_stem(files: tuple[File, ...]) -> dict[str, tuple[Path, ...]]:
    """Return a folder's files by their names without an ending; several are one case's fault."""
    found: dict[str, tuple[Path, ...]] = {}
    for file in files:
        found[stem(file.path)] = (*found.get(stem(file.path), ()), file.path)
    return found

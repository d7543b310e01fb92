"""nnU-Net's raw data: channels as numbered files in imagesTr, labels in labelsTr.

Source: Isensee et al., nnU-Net, Nature Methods 2021, doi:10.1038/s41592-020-01008-z, and the dataset format
of its version 2.
"""

from __future__ import annotations

from typing import ClassVar

from medfed.data.layouts._dataset_json import (
    FILE_NAME,
    channel_names,
    described_listing,
    read_dataset_json,
)
from medfed.data.layouts._files import images_in, paths
from medfed.data.layouts._layout import CaseListing, Layout, ListedCase
from medfed.data.layouts._numbered_channels import (
    by_channel,
    in_order,
    is_numbered,
    several_labels,
    usual_count,
)
from medfed.data.layouts._survey import Survey
from medfed.data.layouts.decathlon import IMAGES, LABELS, NO_LABEL, NO_TEST_LABELS, UNLABELLED, by_stem


class NnUNetRaw(Layout, tag="nnunet_raw", frozen=True):
    """imagesTr/CASE_0000 beside labelsTr/CASE: one file per channel, with or without dataset.json.

    Without it, nothing names the channels and the labels: a case has the channels that most cases have.
    """

    title: ClassVar[str] = "nnU-Net raw"
    needs: ClassVar[str] = "imagesTr/x_0000 (one per channel) with labelsTr/x"
    order: ClassVar[int] = 30
    rank: ClassVar[int] = 1

    def evidence(self, survey: Survey) -> str | None:
        images, labels = images_in(survey, IMAGES), images_in(survey, LABELS)
        if not images or not labels:
            return None
        if not is_numbered(images, labels):
            return None
        return "imagesTr holds channels numbered _0000, and labelsTr the labels of their cases"

    def read(self, survey: Survey) -> CaseListing:
        described = survey.named(FILE_NAME)
        content = read_dataset_json(described.path) if described is not None else {}
        images, labels = images_in(survey, IMAGES), by_stem(images_in(survey, LABELS))
        channels = by_channel(images)
        labelled = [one for name, one in channels.items() if name in labels]
        count = len(channel_names(content)) or usual_count(labelled)
        cases = []
        for name, files in sorted(labels.items()):
            image, fault = in_order(channels.get(name, {}), count)
            fault = fault or several_labels(files)
            cases.append(ListedCase(id=name, patient=name, image=image, label=files[0], fault=fault))
        spare = tuple(
            path
            for name, one in channels.items()
            if name not in labels
            for files in one.values()
            for path in files
        )
        return described_listing(
            self.title,
            cases,
            content,
            (described.path,) if described is not None else (),
            {NO_LABEL: spare, NO_TEST_LABELS: paths(images_in(survey, UNLABELLED))},
        )

"""What a study says of its start: the bundle's network written out, the digest, and a missing file."""

from __future__ import annotations

import pytest
import torch
from bundles import SEGRESNET, write_bundle, zip_bundle

from medfed.errors import StudyError
from medfed.models.networks.monai_segmenter import MonaiSegmenter
from medfed.study.canonical import public_yaml, study_digest
from medfed.study.reading import parse_study, read_study

STUDY = """
name: spleen
task: {{kind: segment, classes: [background, spleen]}}
network: {network}
data: {{kind: images, patch: [16, 16, 16], spacing_mm: [2, 2, 2]}}
train: {{rounds: 1}}
sites: {{north: north}}
start: {start}
"""
OF_BUNDLE = "{kind: monai_segmenter, name: bundle}"


def written(tmp_path, start: str, network: str = OF_BUNDLE, name: str = "study.yaml"):
    (tmp_path / name).write_text(STUDY.format(start=start, network=network))
    return tmp_path / name


@pytest.fixture
def bundle(tmp_path):
    return write_bundle(tmp_path / "b", {"a": torch.ones(1)})


def test_a_bundle_s_network_is_written_out_for_those_who_approve(tmp_path, bundle):
    study = read_study(written(tmp_path, "{path: b, least: 0.5}"))
    expected = MonaiSegmenter(
        spatial_dims=None,
        name="SegResNet",
        arguments={"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]},
    )
    assert study.network == expected
    offered = parse_study(public_yaml(study))
    assert offered.network == expected
    assert study_digest(offered) == study_digest(study)
    assert "least: 0.5" in public_yaml(study)


def test_folder_zip_and_model_are_one_study_and_settings_of_the_start_make_another(tmp_path, bundle):
    zip_bundle(bundle)
    network = "{kind: segresnet, filters: 8}"
    digests = [
        study_digest(read_study(written(tmp_path, start, network)))
        for start in ("b", "b.zip", "b/models/model.pt", "{path: b, least: 0.5}")
    ]
    assert len(set(digests[:3])) == 1
    assert digests[3] not in digests[:3]


@pytest.mark.parametrize(
    ("start", "network", "message"),
    [
        ("null", OF_BUNDLE, "the network of the bundle that `start` names; give one"),
        ("b/models/model.pt", OF_BUNDLE, r"start is model.pt, which is no MONAI bundle"),
        (
            "b",
            "{kind: monai_segmenter, name: bundle, arguments: {bias: true}}",
            "with `name: bundle` they are",
        ),
        ("b", "{kind: monai_segmenter, name: SegResnet}", "did you mean 'SegResNet'"),
        ("c", OF_BUNDLE, "start: no such file; give a checkpoint or bundle"),
        ("{path: b, least: 0}", OF_BUNDLE, "least"),
        ("{path: b, most: 1}", OF_BUNDLE, "most"),
        ("3", OF_BUNDLE, "start"),
        ('{path: b, part: "a\\e[0m"}', OF_BUNDLE, "start.part"),
        ('{path: b, anew: ["a b"]}', OF_BUNDLE, "start.anew"),
    ],
)
def test_what_cannot_be_meant_is_refused_as_the_study_is_read(tmp_path, bundle, start, network, message):
    with pytest.raises(StudyError, match=rf"^study.yaml.*{message}"):
        read_study(written(tmp_path, start, network))


def test_a_bundle_for_other_axes_is_refused(tmp_path):
    write_bundle(tmp_path / "flat", {"a": torch.ones(1)}, {**SEGRESNET, "spatial_dims": 2})
    with pytest.raises(StudyError, match=r"SegResNet is for images of 2 axes, and data.spatial_dims is 3"):
        read_study(written(tmp_path, "flat"))


def test_a_trained_run_is_read_without_the_file_it_started_from(tmp_path, bundle):
    study = read_study(written(tmp_path, "gone", "{kind: segresnet, filters: 8}"), needs_start=False)
    assert study.start_path == str(tmp_path / "gone")

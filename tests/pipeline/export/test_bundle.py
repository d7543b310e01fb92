"""A bundle computes in MONAI's own command what medfed computes."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hospitals import make_hospital

from medfed.errors import RunError
from medfed.pipeline import predict
from medfed.pipeline.export import export

from .exported_runs import CONFIGS, SEGMENT, run_of

# What MONAI's published schema (meta_schema_20240725.json) and its bundle specification require of
# metadata.json. MONAI fetches the schema from the address in the file; a test asks no network, so its rules
# are stated here once more.
SCHEMA = {
    "type": "object",
    "required": [
        "schema",
        "version",
        "monai_version",
        "pytorch_version",
        "numpy_version",
        "required_packages_version",
        "task",
        "description",
        "authors",
        "copyright",
        "network_data_format",
    ],
    "properties": {
        "version": {"type": "string", "pattern": r"^\d+\.\d+\.\d+$"},
        "changelog": {"type": "object"},
        **{
            name: {"type": "string"}
            for name in (
                "schema",
                "monai_version",
                "pytorch_version",
                "numpy_version",
                "task",
                "description",
                "authors",
                "copyright",
                "data_source",
                "data_type",
                "image_classes",
                "label_classes",
                "pred_classes",
                "intended_use",
            )
        },
        "eval_metrics": {"type": "object"},
        "references": {"type": "array", "items": {"type": "string"}},
        "required_packages_version": {"type": "object"},
        "network_data_format": {
            "type": "object",
            "required": ["inputs", "outputs"],
            "properties": {
                part: {
                    "type": "object",
                    "additionalProperties": {
                        "type": "object",
                        "required": [
                            "type",
                            "format",
                            "num_channels",
                            "spatial_shape",
                            "dtype",
                            "value_range",
                        ],
                        "properties": {
                            "type": {"enum": ["image", "latent", "probabilities", "raw", "series", "tuple"]},
                            "num_channels": {"type": "integer"},
                            "format": {"type": "string"},
                            "dtype": {"type": "string"},
                            "spatial_shape": {"type": "array", "items": {"type": ["string", "integer"]}},
                            "value_range": {"type": "array", "items": {"type": "number"}},
                            "is_patch_data": {"type": "boolean"},
                            "channel_def": {"type": "object"},
                        },
                    },
                }
                for part in ("inputs", "outputs")
            },
        },
    },
}


@pytest.fixture(scope="module")
def bundle(segment):
    return export(segment, segment.path / "bundle")


def monai(*arguments: str) -> str:
    result = subprocess.run(
        [sys.executable, "-m", "monai.bundle", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout + result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("task", ["segment", "classify"])
def test_monais_own_command_verifies_the_bundle(task, request, tmp_path):
    bundle = export(request.getfixturevalue(task), tmp_path / "bundle")
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps(SCHEMA))
    meta = bundle / "configs" / "metadata.json"
    output = monai("verify_metadata", "--meta_file", str(meta), "--filepath", str(schema))
    assert "verified with no error" in output
    output = monai(
        "verify_net_in_out", "network_def", "--meta_file", str(meta), "--bundle_root", str(bundle),
        "--config_file", str(bundle / "configs" / "inference.json"), "--device", "cpu",
    )  # fmt: skip
    assert "verified with no error" in output


@pytest.mark.slow
def test_monais_run_gives_the_masks_that_medfed_predicts(segment, bundle, tmp_path):
    """Two programs, from the hospital's file to the mask on its grid: transforms, windows,
    blending, the way back.
    """
    data = make_hospital(tmp_path / "west", 2)
    images, masks = tmp_path / "images", tmp_path / "masks"
    images.mkdir()
    for path in data.glob("*-image.nii.gz"):
        (images / path.name).symlink_to(path)
    monai(
        "run", "--config_file", str(bundle / "configs" / "inference.json"), "--bundle_root", str(bundle),
        "--dataset_dir", str(images), "--output_dir", str(masks),
    )  # fmt: skip
    ours = predict.predict(segment, data, tmp_path / "ours")
    keys = {row["case"]: row["token"] for row in csv.DictReader((ours / predict.KEY).open())}
    assert len(keys) == 2
    for case, token in keys.items():
        theirs = nibabel.load(masks / f"{case}-image_mask.nii.gz")
        mine = nibabel.load(ours / f"{token}.nii.gz")
        assert np.allclose(theirs.affine, mine.affine, atol=1e-4)
        a, b = (np.asarray(one.dataobj).squeeze() for one in (theirs, mine))
        assert 0 < b.sum() < b.size
        assert (a == b).mean() > 0.999


@pytest.mark.slow
def test_monais_run_gives_the_probabilities_that_medfed_predicts(classify, tmp_path):
    """The patch is shorter than the images along one side, longer along another: cut and filled
    up as in training.
    """
    data = make_hospital(tmp_path / "west", 3)
    images, actual = tmp_path / "images", tmp_path / "found"
    images.mkdir()
    for path in data.glob("*-image.nii.gz"):
        (images / path.name).symlink_to(path)
    bundle = export(classify, tmp_path / "bundle")
    monai(
        "run", "--config_file", str(bundle / "configs" / "inference.json"), "--bundle_root", str(bundle),
        "--dataset_dir", str(images), "--output_dir", str(actual),
    )  # fmt: skip
    theirs = {
        Path(line[0]).name: [float(p) for p in line[1:]]
        for line in csv.reader((actual / "predictions.csv").open())
    }
    ours = predict.predict(classify, data, tmp_path / "ours")
    cases = {row["token"]: row["case"] for row in csv.DictReader((ours / predict.KEY).open())}
    rows = list(csv.DictReader((ours / predict.TABLE).open()))
    assert len(rows) == len(theirs) == 3
    for row in rows:
        mine = [float(row[f"probability of {name}"]) for name in ("healthy", "lesion")]
        assert theirs[f"{cases[row['case']]}-image.nii.gz"] == pytest.approx(mine, abs=1e-3)
    assert len({round(p[1], 4) for p in theirs.values()}) == 3


def test_what_a_bundle_cannot_hold_is_refused(segment, tmp_path):
    with pytest.raises(RunError, match="bundles are of images, and this study's data are a table"):
        export(run_of(tmp_path / "run", CONFIGS / "tabular.yaml"), tmp_path / "out")
    (tmp_path / "whole.yaml").write_text(SEGMENT.replace("[12, 12, 12]", "null"))
    with pytest.raises(RunError, match=r"segmentation in patches, and this study has data\.patch: null"):
        export(run_of(tmp_path / "whole", tmp_path / "whole.yaml"), tmp_path / "out-whole")
    assert not (tmp_path / "out").exists()
    (tmp_path / "z.yaml").write_text(
        SEGMENT.replace("patch:", "normalise: {kind: zscore, foreground: true}, patch:")
    )
    with pytest.raises(RunError, match=r"data\.normalise 'zscore' with these settings has no equal in MONAI"):
        export(run_of(tmp_path / "z", tmp_path / "z.yaml"), tmp_path / "out-z")
    (tmp_path / "pieces.yaml").write_text(SEGMENT.replace("lesion],", "lesion], largest: [lesion],"))
    with pytest.raises(RunError, match=r"task.largest and task.minimum_voxels have no equal"):
        export(run_of(tmp_path / "pieces", tmp_path / "pieces.yaml"), tmp_path / "out-pieces")

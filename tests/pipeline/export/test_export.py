"""Exports compute what the model computes, in onnxruntime, plain torch and MONAI's own bundle command."""

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
import torch
from hospitals import make_hospital

from medfed.errors import RunError
from medfed.pipeline import predict
from medfed.pipeline.create_run import create_run
from medfed.pipeline.export import export, exported_model
from medfed.pipeline.factory import module_of
from medfed.runs.checkpoints import save_checkpoint
from medfed.runs.folder import RunFolder
from medfed.study.reading import read_study
from medfed.wire.weights import weights_of

CONFIGS = Path(__file__).parents[3] / "configs"
SEGMENT = """\
name: tiny
task: {kind: segment, classes: [background, lesion]}
network: {kind: unet, channels: [4, 8], residual_units: 1}
data: {kind: images, spacing_mm: [1.5, 2, 2.5], patch: [12, 12, 12], orientation: PIR}
train: {rounds: 1}
sites: {north: north}
"""
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


def run_of(folder: Path, config: Path) -> RunFolder:
    study = read_study(config)
    found = RunFolder(folder)
    create_run(found, study, {})
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: value + 0.2 * torch.randn(value.shape, generator=generator)
        for name, value in weights_of(module_of(study)).items()
    }
    save_checkpoint(found.checkpoint("federated"), weights, 1)
    return found


@pytest.fixture(scope="module")
def segment(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    (folder / "tiny.yaml").write_text(SEGMENT)
    return run_of(folder / "run", folder / "tiny.yaml")


CLASSIFY = """\
name: tiny-classifier
task: {kind: classify, classes: [healthy, lesion]}
network: {kind: resnet, depth: 10, width: 4, norm: group}
data: {kind: images, spacing_mm: [3, 4, 4], patch: [15, 20, 40], orientation: PIR}
train: {rounds: 1}
sites: {north: north}
"""


@pytest.fixture(scope="module")
def classify(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    (folder / "tiny.yaml").write_text(CLASSIFY)
    return run_of(folder / "run", folder / "tiny.yaml")


@pytest.fixture(scope="module")
def bundle(segment):
    return export(segment, segment.path / "bundle")


def monai(*arguments: str) -> str:
    found = subprocess.run(
        [sys.executable, "-m", "monai.bundle", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    assert found.returncode == 0, found.stderr[-3000:]
    return found.stdout + found.stderr


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
    images, found = tmp_path / "images", tmp_path / "found"
    images.mkdir()
    for path in data.glob("*-image.nii.gz"):
        (images / path.name).symlink_to(path)
    bundle = export(classify, tmp_path / "bundle")
    monai(
        "run", "--config_file", str(bundle / "configs" / "inference.json"), "--bundle_root", str(bundle),
        "--dataset_dir", str(images), "--output_dir", str(found),
    )  # fmt: skip
    theirs = {
        Path(line[0]).name: [float(p) for p in line[1:]]
        for line in csv.reader((found / "predictions.csv").open())
    }
    ours = predict.predict(classify, data, tmp_path / "ours")
    cases = {row["token"]: row["case"] for row in csv.DictReader((ours / predict.KEY).open())}
    rows = list(csv.DictReader((ours / predict.TABLE).open()))
    assert len(rows) == len(theirs) == 3
    for row in rows:
        mine = [float(row[f"probability of {name}"]) for name in ("healthy", "lesion")]
        assert theirs[f"{cases[row['case']]}-image.nii.gz"] == pytest.approx(mine, abs=1e-3)
    assert len({round(p[1], 4) for p in theirs.values()}) == 3


def test_torchscript_computes_without_medfed(segment, tmp_path):
    out = export(segment, tmp_path / "out", format="torchscript")
    exported = exported_model(segment, "federated")
    script = (
        "import sys, torch; m = torch.jit.load(sys.argv[1]); x = torch.load(sys.argv[2], weights_only=True); "
        "torch.save(m(x).detach(), sys.argv[3]); assert 'medfed' not in sys.modules"
    )
    inputs = exported.example(3, seed=9)
    torch.save(inputs, tmp_path / "x.pt")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run(
        [
            sys.executable,
            "-W",
            "ignore",
            "-c",
            script,
            str(out / "model.ts"),
            str(tmp_path / "x.pt"),
            str(tmp_path / "y.pt"),
        ],
        check=True,
        timeout=120,
        cwd=tmp_path,
        env=environment,
    )
    found = torch.load(tmp_path / "y.pt", weights_only=True)
    with torch.inference_mode():
        expected = exported.computed.network(inputs)
    assert torch.allclose(found, expected, atol=1e-4)
    about = json.loads((out / "model.json").read_text())
    assert about["output"] == "logits"
    assert about["largest_difference_from_the_model"] < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["segment", "tabular"])
def test_onnx_computes_the_same_for_any_number_at_once(name, segment, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    done = segment if name == "segment" else run_of(tmp_path / "run", CONFIGS / "tabular.yaml")
    out = export(done, tmp_path / "out", format="onnx")
    session = onnxruntime.InferenceSession(str(out / "model.onnx"), providers=["CPUExecutionProvider"])
    exported = exported_model(done, "federated")
    for batch in (1, 5):
        inputs = exported.example(batch, seed=7)
        (found,) = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})
        with torch.inference_mode():
            logits = exported.computed.network(inputs)
        expected = logits if name == "segment" else logits.softmax(dim=1)
        assert found == pytest.approx(expected.numpy(), abs=1e-4)
    if name == "tabular":
        assert found.sum(axis=1) == pytest.approx(1)


def test_an_export_that_computes_something_else_is_an_error(segment):
    exported = exported_model(segment, "federated")
    with pytest.raises(
        RunError, match=r"its outputs differ from the model's by .* at most 0.0001 is rounding"
    ):
        exported.check(lambda inputs: exported.computed(inputs) * 1.01, "ONNX")
    with pytest.raises(RunError, match="outputs of shape"):
        exported.check(lambda inputs: exported.computed(inputs)[:, :1], "ONNX")


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
    (tmp_path / "pieces.yaml").write_text(SEGMENT.replace("lesion]}", "lesion], largest: [lesion]}"))
    with pytest.raises(RunError, match=r"task.largest and task.minimum_voxels have no equal"):
        export(run_of(tmp_path / "pieces", tmp_path / "pieces.yaml"), tmp_path / "out-pieces")
    with pytest.raises(RunError, match="no format 'keras'; there are bundle, onnx, torchscript"):
        export(segment, tmp_path / "x", format="keras")

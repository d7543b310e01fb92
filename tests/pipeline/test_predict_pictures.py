"""2D models are exported and predict pictures and radiographs, labelled or not, on the image's grid."""

from __future__ import annotations

import csv
from pathlib import Path

import hard_series as hs
import numpy as np
import pytest
import torch
from PIL import Image
from pydicom.uid import DigitalXRayImageStorageForPresentation

from medfed.errors import DataError
from medfed.pipeline import predict
from medfed.pipeline.create_run import create_run
from medfed.pipeline.export import export, exported_model
from medfed.pipeline.factory import module_of
from medfed.runs.checkpoints import save_checkpoint
from medfed.runs.folder import RunFolder
from medfed.study.reading import read_study
from medfed.wire.weights import weights_of

STUDY = """\
name: tiny
task: {{kind: {task}}}
network: {{{network}}}
data: {{kind: images, spatial_dims: 2, spacing_mm: fit, patch: [32, 32], normalise: {{kind: zscore}}}}
train: {{rounds: 1}}
sites: {{north: north}}
"""
SEGMENT = {
    "task": "segment, classes: [background, lesion]",
    "network": "kind: unet, channels: [4, 8], residual_units: 1",
}
MULTILABEL = {"task": "multilabel, classes: [left, right]", "network": "kind: resnet, width: 4, norm: group"}


def run_of(folder: Path, **parts: str) -> RunFolder:
    """Return a run whose federated model has the weights that it was initialised with."""
    folder.mkdir(parents=True)
    (folder / "study.yaml").write_text(STUDY.format(**parts))
    study = read_study(folder / "study.yaml")
    run = RunFolder(folder / "run")
    create_run(run, study, {})
    save_checkpoint(run.checkpoint("federated"), weights_of(module_of(study)), 1)
    return run


def lines_of(out: Path) -> list[dict[str, str]]:
    with (out / "predictions.csv").open() as file:
        return list(csv.DictReader(file))


def write_pictures(folder: Path, count: int = 3) -> None:
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(count):
        Image.fromarray(generator.integers(0, 255, (20, 26)).astype(np.uint8)).save(folder / f"{number}.png")


def test_pictures_without_labels_give_png_masks_on_their_grid(tmp_path: Path) -> None:
    run = run_of(tmp_path / "s", **SEGMENT)
    write_pictures(tmp_path / "pictures")
    lines = lines_of(predict.predict(run.path, tmp_path / "pictures", tmp_path / "out"))
    assert len(lines) == 3
    for line in lines:
        mask = np.asarray(Image.open(tmp_path / "out" / line["file"]))
        assert mask.shape == (20, 26)
        assert int(line["lesion px"]) == int((mask == 1).sum())


def test_anything_beside_the_pictures_is_not_guessed_at(tmp_path: Path) -> None:
    run = run_of(tmp_path / "s", **MULTILABEL)
    write_pictures(tmp_path / "pictures")
    (tmp_path / "pictures" / "more").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "pictures" / "more" / "x.png")
    with pytest.raises(DataError, match="nothing that medfed knows for certain"):
        predict.predict(run.path, tmp_path / "pictures", tmp_path / "out")


@pytest.mark.parametrize("with_size", [True, False])
def test_a_radiograph_is_predicted_with_a_size_or_without(tmp_path: Path, with_size: bool) -> None:
    run = run_of(tmp_path / "s", **SEGMENT)
    ds = hs.make_slice(hs.Series(shape=(1, 20, 26), modality="DX"), 0)
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "RescaleSlope", "RescaleIntercept"):
        delattr(ds, name)
    del ds.PixelSpacing
    if with_size:
        ds.ImagerPixelSpacing = [0.5, 0.25]
    (tmp_path / "dx").mkdir()
    hs.write(ds, tmp_path / "dx" / "a.dcm")
    (line,) = lines_of(predict.predict(run.path, tmp_path / "dx", tmp_path / "out"))
    if with_size:
        import nibabel

        mask = nibabel.load(tmp_path / "out" / line["file"])
        assert mask.shape == (26, 20, 1)
        lesion = (np.asarray(mask.dataobj) == 1).sum()
        assert float(line["lesion mm2"]) == pytest.approx(lesion * 0.5 * 0.25)
        assert "no position in the patient" in line["note"]
    else:
        assert np.asarray(Image.open(tmp_path / "out" / line["file"])).shape == (20, 26)
        assert "lesion px" in line


@pytest.mark.slow
@pytest.mark.parametrize("parts", [SEGMENT, MULTILABEL], ids=["segment", "multilabel"])
def test_torchscript_and_onnx_compute_what_the_model_computes(tmp_path: Path, parts: dict[str, str]) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    run = run_of(tmp_path / "s", **parts)
    exported = exported_model(run, "federated")
    inputs = exported.example(3, seed=7)
    assert inputs.shape == (3, 1, 32, 32)
    with torch.inference_mode():
        logits = exported.computed.network(inputs)
    expected = logits.sigmoid() if parts is MULTILABEL else logits
    export(run, tmp_path / "onnx", format="onnx")
    session = onnxruntime.InferenceSession(
        str(tmp_path / "onnx" / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    (outputs,) = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})
    np.testing.assert_allclose(outputs, expected.numpy(), atol=1e-4)
    export(run, tmp_path / "ts", format="torchscript")
    (path,) = (tmp_path / "ts").rglob("*.ts")
    with torch.inference_mode():
        np.testing.assert_allclose(torch.jit.load(str(path))(inputs).numpy(), expected.numpy(), atol=1e-4)

"""A bundle's model.pt and train.json: MONAI's own network with the trained weights, that trains on."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys

import monai.networks.nets
import pytest
import torch
from bundles import write_bundle
from hospitals import make_hospital

from medfed.evaluation.rows import FEDERATED
from medfed.pipeline import predict
from medfed.pipeline import train as run
from medfed.pipeline.evaluate import evaluate
from medfed.pipeline.export import export
from medfed.pipeline.factory import module_of
from medfed.runs.folder import RunFolder
from medfed.runs.progress import Progress
from medfed.runs.rounds import RoundReport
from medfed.study.reading import read_study
from medfed.wire.weights import weights_of

from .exported_runs import SEGMENT, run_of

torch.set_num_threads(2)

STUDY = """\
name: adapted
seed: 1
task: {{kind: {task}, classes: [background, lesion]}}
network: {network}
data: {{kind: images, spacing_mm: [2, 2, 2], patch: [{side}, {side}, {side}]}}
train: {{rounds: 2, steps: 1, batch: 2, optimiser: {{kind: adamw, lr: 0.01}}, {train}}}
sampling: {{minimum: 2}}
evaluation: {{draws: 10, smallest_group: 1, local_models: false, pooled_model: false, robustness: false}}
sites: {{north: ../north, south: ../south}}
start: {start}
"""

NETWORKS = {
    "swinunetr": "{kind: swinunetr, features: 12, depths: [1, 1, 1, 1], window: 2, norm: group}",
    "unetr": "{kind: unetr, features: 4, hidden: 24, mlp: 24, heads: 2}",
    "vit": "{kind: vit, token: 8, hidden: 24, mlp: 24, layers: 2, heads: 2}",
}


def built_by_monai(bundle) -> torch.nn.Module:
    """Return the network of a bundle's train.json, built by MONAI alone, with the bundle's weights."""
    definition = json.loads((bundle / "configs" / "train.json").read_text())["network_def"]
    network = getattr(monai.networks.nets, definition.pop("_target_"))(**definition)
    network.load_state_dict(torch.load(bundle / "models" / "model.pt", weights_only=True))
    return network.eval()


def test_model_pt_is_the_trained_network_by_monai_s_own_class(segment, tmp_path):
    bundle = export(segment, tmp_path / "bundle")
    network = built_by_monai(bundle)
    saved = torch.load(segment.checkpoint(FEDERATED), weights_only=True)["state_dict"]
    state = network.state_dict()
    assert {f"network.{name}" for name in state} == set(saved)
    assert all(torch.equal(saved[f"network.{name}"], tensor) for name, tensor in state.items())


def test_an_exported_bundle_is_the_start_of_the_next_study(segment, tmp_path):
    """Every number of the first study's model is in the second's, by a network that only the bundle names."""
    export(segment, tmp_path / "bundle")
    of_bundle = SEGMENT.replace(
        "{kind: unet, channels: [4, 8], residual_units: 1}", "{kind: monai_segmenter, name: bundle}"
    )
    (tmp_path / "next.yaml").write_text(of_bundle + "start: bundle\n")
    started = weights_of(module_of(read_study(tmp_path / "next.yaml")))
    saved = torch.load(segment.checkpoint(FEDERATED), weights_only=True)["state_dict"]
    assert set(started) == set(saved)
    assert all(torch.equal(started[name], tensor) for name, tensor in saved.items())


def test_a_network_that_monai_alone_cannot_build_has_no_train_json(tmp_path):
    (tmp_path / "study.yaml").write_text(
        SEGMENT.replace(
            "{kind: unet, channels: [4, 8], residual_units: 1}", "{kind: attention_unet, channels: [4, 8]}"
        )
    )
    bundle = export(run_of(tmp_path / "run", tmp_path / "study.yaml"), tmp_path / "bundle")
    assert not (bundle / "configs" / "train.json").exists()
    assert not (bundle / "models" / "model.pt").exists()
    assert "There is no train.json" in (bundle / "docs" / "README.md").read_text()


@pytest.mark.slow
def test_monai_s_own_command_trains_on_from_the_exported_weights(segment, tmp_path):
    pytest.importorskip("ignite", reason="train.json is run by MONAI's trainer, which needs pytorch-ignite")
    bundle = export(segment, tmp_path / "bundle")
    hospital = make_hospital(tmp_path / "west", 2)
    for kind in ("image", "label"):
        (tmp_path / "data" / f"{kind}s").mkdir(parents=True)
        for path in hospital.glob(f"*-{kind}.nii.gz"):
            (tmp_path / "data" / f"{kind}s" / path.name.replace(f"-{kind}", "")).symlink_to(path)
    result = subprocess.run(
        [
            *(sys.executable, "-m", "monai.bundle", "run", "--config_file"),
            *(str(bundle / "configs" / "train.json"), "--bundle_root", str(bundle)),
            *("--dataset_dir", str(tmp_path / "data"), "--epochs", "1"),
        ],
        capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    before = torch.load(bundle / "models" / "model.pt", weights_only=True)
    after = torch.load(bundle / "models" / "model_trained.pt", weights_only=True, map_location="cpu")
    assert set(before) == set(after)
    # One epoch of AdamW at 0.0001 moves a weight by at most about that, and does move it.
    moved = max(float((after[name] - before[name]).abs().max()) for name in before)
    assert 0 < moved < 0.001


class Stops(Progress):
    """Ends the run after its first round, as a power cut would."""

    def round(self, report: RoundReport) -> None:
        if report.round == 1:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapted")
    for site in ("north", "south", "west"):
        make_hospital(folder / site, 6)
    make_hospital(folder / "few", 1)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_an_adapted_transformer_trains_resumes_measures_predicts_and_is_exported_merged(hospitals, name):
    place = hospitals / name
    place.mkdir()
    task, side = ("classify" if name == "vit" else "segment"), (32 if name == "swinunetr" else 16)
    filled = {"task": task, "network": NETWORKS[name], "side": side}
    (place / "whole.yaml").write_text(STUDY.format(train="epochs: 1", start="null", **filled))
    torch.manual_seed(4)
    given = {
        key: torch.randn_like(tensor) * 0.1
        for key, tensor in weights_of(module_of(read_study(place / "whole.yaml"))).items()
    }
    torch.save({key.removeprefix("network."): tensor for key, tensor in given.items()}, place / "given.pt")
    (place / "study.yaml").write_text(STUDY.format(train="lora: {rank: 2}", start="given.pt", **filled))
    study = read_study(place / "study.yaml")
    done = run.train(study, out=place / "run")
    final = torch.load(done.checkpoint(FEDERATED), weights_only=True)["state_dict"]
    if name == "vit":  # the quickest; what resumes is the same code
        with pytest.raises(KeyboardInterrupt):
            run.train(study, out=place / "stopped", progress=Stops())
        resumed = run.train(study, out=place / "stopped", resume=True)
        again = torch.load(resumed.checkpoint(FEDERATED), weights_only=True)["state_dict"]
        assert all(torch.equal(tensor, again[key]) for key, tensor in final.items())
    frozen = [key for key in final if key.endswith("original")]
    assert frozen
    assert all(
        torch.equal(final[key], given[key.replace("parametrizations.weight.original", "weight")])
        for key in frozen
    )
    assert any(float(final[key].abs().max()) > 0 for key in final if key.endswith("weight.0.b"))
    # The file it started from is needed no more.
    (place / "given.pt").rename(place / "moved.pt")
    if name != "swinunetr":  # the slowest
        assert evaluate(done.path, hospitals / "west", name="west").report.exists()
    predicted = predict.predict(done, hospitals / "few", place / "predicted")
    assert len(list(csv.DictReader((predicted / predict.TABLE).open()))) == 1
    bundle = export(done, place / "bundle")
    if task == "segment":
        module = predict.load_model(
            read_study(done.study, needs_start=False), RunFolder(done.path), FEDERATED
        )
        image = torch.randn(1, 1, side, side, side)
        with torch.no_grad():
            assert torch.allclose(built_by_monai(bundle)(image), module.network(image), atol=1e-4)


@pytest.mark.slow
def test_a_bundle_goes_in_is_federated_and_comes_out(hospitals, tmp_path):
    """Its network is the bundle's, its last layer is new for other classes; what comes out says whence."""
    network = monai.networks.nets.SegResNet(
        spatial_dims=3, in_channels=1, out_channels=5, init_filters=8, blocks_down=(1, 1), blocks_up=(1,)
    )
    write_bundle(hospitals / "study" / "spleen", network.state_dict())
    path = hospitals / "study" / "study.yaml"
    path.write_text(
        STUDY.format(
            task="segment", network="{kind: monai_segmenter, name: bundle}", side=16,
            train="epochs: 1", start="{path: spleen, least: 0.9}",
        )
    )  # fmt: skip
    done = run.train(path, out=tmp_path / "run")
    facts = done.read_facts()
    assert facts.start.licence == "Apache-2.0"
    assert 0.9 < facts.start.share < 1
    lines = {line["tensor"]: line for line in csv.DictReader(done.start.open())}
    assert lines["conv_final.2.conv.weight"]["why"] == "has shape (5, 8, 1, 1, 1)"
    assert lines["convInit.conv.weight"]["what"] == "loaded"
    began = json.loads(done.audit.read_text().splitlines()[0])
    assert facts.start.sha256 in json.dumps(began)
    assert "Training started from spleen, bundle Spleen 0.2.0" in done.report.read_text()
    bundle = export(done, tmp_path / "bundle")
    assert built_by_monai(bundle)(torch.zeros(1, 1, 16, 16, 16)).shape == (1, 2, 16, 16, 16)
    assert (
        "licence Apache-2.0" in json.loads((bundle / "configs" / "metadata.json").read_text())["description"]
    )

"""A study of boosted trees whole: under a secure sum the trees are those of all cases in one place."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from medfed.evaluation.rows import read_rows
from medfed.pipeline import predict
from medfed.pipeline import train as run
from medfed.pipeline.export import export, exported_model
from medfed.runs.checkpoints import load_checkpoint
from medfed.wire.weights import digest

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "sample_data" / "tabular" / "university.csv"


@pytest.mark.slow
@pytest.mark.parametrize("study", ["boosted_trees", "survival"])
def test_trees_from_the_tables_to_the_report(tmp_path, study):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    short = ["network={kind: boosted_trees, trees: 3, depth: 2}", "train.rounds=10", "evaluation.draws=100"]
    if study == "survival":
        short += ["train.epochs=1", "rule={kind: boosted_trees}", "privacy={kind: secure_sum}"]
        short += ["sampling.minimum=3", "data.standardise=none", "evaluation.pooled_model=false"]
    done = run.train(ROOT / "configs" / f"{study}.yaml", out=tmp_path / "run", overrides=short)
    federated = load_checkpoint(done.checkpoint("federated"))
    assert federated["network.cursor"].tolist() == [4, 3, 0]
    metric = "c_index" if study == "survival" else "auroc"
    measured = [
        row
        for row in read_rows(done.rows)
        if (row.site, row.metric, row.model, row.group) == ("university", metric, "federated", None)
        and row.split == "test"
        and row.against is None
    ]
    assert [row.value > 0.6 for row in measured] == [True]
    assert "boosted_trees" in done.report.read_text()
    if study == "survival":  # pooled risk sets are others than each hospital's own
        return
    assert digest(load_checkpoint(done.checkpoint("pooled"))) == digest(federated)
    inputs = exported_model(done, "federated").example(5, seed=7)
    inputs[:, ::3] = torch.nan
    with torch.inference_mode():
        expected = exported_model(done, "federated").computed.network(inputs).softmax(dim=1)
    export(done, tmp_path / "script", format="torchscript")
    script = torch.jit.load(str(tmp_path / "script" / "model.ts"))  # type: ignore[no-untyped-call]
    assert torch.equal(script(inputs), expected)
    export(done, tmp_path / "onnx", format="onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "onnx" / "model.onnx"))
    (outputs,) = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})
    assert outputs == pytest.approx(expected.numpy(), abs=1e-6)
    out = predict.predict(done, TABLE, tmp_path / "out", name="university")
    with (out / predict.TABLE).open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 160

"""An ONNX file computes what the model computes, for any number of cases at once."""

from __future__ import annotations

import pytest
import torch

from medfed.pipeline.export import export, exported_model

from .exported_runs import CONFIGS, run_of


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
        (outputs,) = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})
        with torch.inference_mode():
            logits = exported.computed.network(inputs)
        expected = logits if name == "segment" else logits.softmax(dim=1)
        assert outputs == pytest.approx(expected.numpy(), abs=1e-4)
    if name == "tabular":
        assert outputs.sum(axis=1) == pytest.approx(1)

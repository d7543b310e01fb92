"""A TorchScript file computes what the model computes, without medfed."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from medfed.pipeline.export import export, exported_model


@pytest.mark.slow
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
    saved = torch.load(tmp_path / "y.pt", weights_only=True)
    with torch.inference_mode():
        expected = exported.computed.network(inputs)
    assert torch.allclose(saved, expected, atol=1e-4)
    about = json.loads((out / "model.json").read_text())
    assert about["output"] == "logits"
    assert about["largest_difference_from_the_model"] < 1e-4

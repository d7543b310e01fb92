"""An export is checked against the model before it is written."""

from __future__ import annotations

import pytest

from medfed.errors import RunError
from medfed.pipeline.export import export, exported_model


def test_an_export_that_computes_something_else_is_an_error(segment):
    exported = exported_model(segment, "federated")
    with pytest.raises(
        RunError, match=r"its outputs differ from the model's by .* at most 0.0001 is rounding"
    ):
        exported.check(lambda inputs: exported.computed(inputs) * 1.01, "ONNX")
    with pytest.raises(RunError, match="outputs of shape"):
        exported.check(lambda inputs: exported.computed(inputs)[:, :1], "ONNX")


def test_an_unknown_format_is_refused(segment, tmp_path):
    with pytest.raises(RunError, match="no format 'keras'; there are bundle, onnx, torchscript"):
        export(segment, tmp_path / "x", format="keras")

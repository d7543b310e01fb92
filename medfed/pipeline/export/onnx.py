"""ONNX: one file for onnxruntime, TensorRT and hospital viewers. Needs `pip install medfed[export]`."""

from __future__ import annotations

import io
import logging
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch

from medfed.errors import RunError
from medfed.files import write_whole
from medfed.pipeline.export._exported_model import ExportedModel

FILE = "model.onnx"


def write(exported: ExportedModel, folder: Path) -> None:
    """Write the network and a description of inputs and outputs, checked in onnxruntime against the module.

    Raises:
        RunError: if ONNX is not installed, cannot express the network, or computes something else.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401 - torch's exporter writes with it
    except ImportError as error:
        raise RunError(f"export to ONNX needs {error.name}; pip install 'medfed[export]'") from None
    path = folder / FILE
    _convert(exported, path)
    onnx.checker.check_model(str(path))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(*inputs: torch.Tensor) -> torch.Tensor:
        names = [one.name for one in session.get_inputs()]
        (outputs,) = session.run(None, {k: v.numpy() for k, v in zip(names, inputs, strict=True)})
        return torch.from_numpy(outputs)

    write_whole(folder / "model.json", exported.describe(exported.check(run, "ONNX")))


def _convert(exported: ExportedModel, path: Path) -> None:
    output = io.StringIO()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    options: dict[str, Any] = {
        "dynamo": True,
        "external_data": False,
        "input_names": list(exported.input_names),
        "output_names": [exported.output.replace(" ", "_")],
        # The batch size is free. A batch of two is traced, because torch takes a size of one for a constant.
        # `Computed` takes its inputs as one variable argument.
        "dynamic_shapes": ((({0: torch.export.Dim("batch", min=1)},) * len(exported.input_names)),),
    }
    with warnings.catch_warnings(), redirect_stdout(output), redirect_stderr(output):
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(exported.computed, exported.inputs(2), str(path), **options)
        except Exception as error:  # noqa: BLE001 - the exporter's errors have no common class
            raise RunError(
                f"export to ONNX: {type(error).__name__}: {str(error).splitlines()[0][:200]}; the network "
                "has something ONNX cannot express; export to torchscript instead"
            ) from None

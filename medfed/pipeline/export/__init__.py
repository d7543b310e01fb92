"""Export a run's model to other formats: MONAI Bundle, ONNX, TorchScript. Each format has one file here.

Every export is loaded from its file and compared with the trained module; if it computes something else, it
is deleted and an error is raised. A segmentation exports the logits of one window, because windows are
blended before the softmax; a classifier its probabilities; a survival model the logarithm of the risk; a task
with metrics of its own the outputs of the network. To add
a format, write a file with a function `write(exported, folder)` and list it in `FORMATS`.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from medfed.errors import RunError
from medfed.evaluation.rows import FEDERATED
from medfed.files import private_folder
from medfed.pipeline.create_run import check_empty
from medfed.pipeline.export import bundle, onnx, torchscript
from medfed.pipeline.export._exported_model import ExportedModel, exported_model
from medfed.runs.folder import RunFolder

FORMATS = {"bundle": bundle.write, "onnx": onnx.write, "torchscript": torchscript.write}


def export(
    run: str | Path | RunFolder, out: str | Path, *, format: str = "bundle", model: str = FEDERATED
) -> Path:
    """Write a run's model into `out` in one of `FORMATS`, and return `out`.

    Raises:
        RunError: if this is not a run folder, it has no such model, the format does not support the task, or
            the exported file computes something else than the model.
    """
    if format not in FORMATS:
        raise RunError(f"export: no format '{format}'; there are {', '.join(sorted(FORMATS))}")
    out = Path(out)
    check_empty(out, "give another folder for the export")
    exported = exported_model(run, model)
    private_folder(out)
    try:
        FORMATS[format](exported, out)
    except BaseException:
        shutil.rmtree(out)  # an incomplete folder would look like an export
        raise
    return out


__all__ = ["FORMATS", "ExportedModel", "export", "exported_model"]

"""A run's model in the formats that others run: a MONAI Bundle, ONNX, TorchScript. One file a format.

Every export is run again from its file and compared with the module that was trained; one that computes
something else is an error and not a file. What is exported of a segmentation are the logits of one window,
since windows are blended before the softmax; of a classifier its probabilities; of a survival model the
logarithm of the risk. To add a format, write a file with a function `write(subject, folder) -> list of files`
and list it in `FORMATS`.
"""

from __future__ import annotations

from pathlib import Path

from medfed.errors import RunError
from medfed.evaluation.rows import FEDERATED
from medfed.pipeline.export import bundle, onnx, torchscript
from medfed.pipeline.export._subject import Subject, subject_of
from medfed.runs.folder import RunFolder

FORMATS = {"bundle": bundle.write, "onnx": onnx.write, "torchscript": torchscript.write}


def export(
    run: str | Path | RunFolder, out: str | Path, *, format: str = "bundle", model: str = FEDERATED
) -> Path:
    """Write a run's model into `out` in one of `FORMATS`, and return `out`.

    Raises:
        RunError: if this is no run folder, it has no such model, the format doesn't serve the task, or what was
            written computes something else than the model.
    """
    if format not in FORMATS:
        raise RunError(f"export: no format '{format}'; there are {', '.join(sorted(FORMATS))}")
    out = Path(out)
    if out.exists() and any(out.iterdir()):
        raise RunError(f"{out}: is not empty; give another folder for the export")
    subject = subject_of(run if isinstance(run, RunFolder) else RunFolder(Path(run)), model)
    out.mkdir(parents=True, exist_ok=True)
    try:
        FORMATS[format](subject, out)
    except RunError:
        if not any(out.iterdir()):
            out.rmdir()  # an empty folder would look like an export
        raise
    return out


__all__ = ["FORMATS", "Subject", "export", "subject_of"]

"""`medfed demo`: sample hospitals made on this machine, one study over them, and its report."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from types import ModuleType

from medfed.errors import RunError
from medfed.files import private_folder, write_whole
from medfed.pipeline.train import train
from medfed.runs.folder import RunFolder
from medfed.runs.progress import Progress

# The committed script that makes the sample hospitals, and the study over them; a wheel installs both there.
SCRIPT, STUDY = "make.py", "quickstart.yaml"
_SHARED = "share/medfed"

# Patients with and without lesions in each hospital: enough for a split, few enough for a first look.
DISEASED, HEALTHY = 7, 3

# Fewer rounds than the quickstart's, for the same reason.
OVERRIDES = ("train.rounds=6", "evaluation.local_models=false", "evaluation.draws=200")


def demo(
    folder: str | Path, *, overrides: tuple[str, ...] = OVERRIDES, progress: Progress | None = None
) -> RunFolder:
    """Make the sample hospitals below a folder, train one model over them, and return the run.

    Raises:
        RunError: if the folder already holds something.
    """
    folder, progress = Path(folder), progress or Progress()
    if folder.exists() and any(folder.iterdir()):
        raise RunError(f"{folder}: this folder is not empty; give another one: medfed demo FOLDER")
    progress.log("making five synthetic hospitals; nobody was ever a patient of them")
    make_hospitals(folder / "sample_data")
    private_folder(folder / "configs")
    study = folder / "configs" / STUDY
    write_whole(study, shared_file(f"configs/{STUDY}").read_text(encoding="utf-8"))
    return train(study, out=folder / "run", overrides=overrides, progress=progress)


def make_hospitals(folder: Path) -> None:
    """Write small versions of the sample hospitals below a folder, by the script that the project ships."""
    script = _script()
    for hospital in script.HOSPITALS:
        script.make_hospital(replace(hospital, diseased=DISEASED, healthy=HEALTHY), folder / hospital.name)


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("medfed_sample_data", shared_file(f"sample_data/{SCRIPT}"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


def shared_file(path: str) -> Path:
    """Return a file of the project outside the package: of the checkout, or as a wheel installed it.

    Raises:
        RunError: if neither has it.
    """
    checkout = Path(__file__).parents[2] / path
    if checkout.is_file():
        return checkout
    name = path.rpartition("/")[2]
    try:
        files = distribution("medfed").files or []
    except PackageNotFoundError:
        files = []
    for file in files:
        if file.as_posix().endswith(f"{_SHARED}/{name}"):
            return Path(str(file.locate()))
    raise RunError(f"this installation of medfed lacks {_SHARED}/{name}; install the wheel again")

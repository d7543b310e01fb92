"""From a Cox model's risks to each patient's chance of survival: the baseline hazard at a few times.

Breslow's estimate (discussion of Cox, JRSS B 1972) over the training patients of the study's hospitals. Only
its value at three times is kept, the quartiles of the observed event times to two digits: numbers over all
patients, which a hospital that evaluates the model later needs and which name nobody.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike

from medfed.data.datamodule import SiteDataModule
from medfed.evaluation.inference import batches
from medfed.evaluation.survival import baseline_hazard
from medfed.files import write_whole

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule

FILE = "baselines.json"
QUARTILES = (0.25, 0.5, 0.75)

# Time -> cumulative baseline hazard until then.
Baseline = dict[float, float]


def baseline_of(module: LightningModule, sites: Iterable[SiteDataModule]) -> Baseline:
    """Return the baseline of a model over these hospitals' training patients; empty
    where nothing ever happened.
    """
    module.eval()
    risks, times, events = [], [], []
    for site in sites:
        for batch in batches(site, site.cases("train")):
            with torch.inference_mode():
                risks.append(float(module.predict_step(batch, 0)["risk"][0]))
            time, event = (float(value) for value in batch["target"][0])
            times.append(time)
            events.append(event)
    at = horizons(times, events)
    if not at:
        return {}
    return dict(zip(at, baseline_hazard(risks, times, events, at), strict=True))


def horizons(times: ArrayLike, events: ArrayLike) -> list[float]:
    """Return the quartiles of the event times to two digits, each once."""
    time, event = np.asarray(times, float), np.asarray(events).astype(bool)
    if not event.any():
        return []
    return sorted({float(f"{value:.2g}") for value in np.quantile(time[event], QUARTILES)})


def write(run: Path, found: Mapping[str, Baseline]) -> None:
    """Write each model's baseline into a run folder."""
    plain = {model: {f"{at:g}": value for at, value in one.items()} for model, one in found.items()}
    write_whole(run / FILE, json.dumps(plain, indent=2).encode())


def read(run: Path) -> dict[str, Baseline]:
    """Return each model's baseline, or nothing where the run wrote none."""
    if not (run / FILE).is_file():
        return {}
    found = json.loads((run / FILE).read_text())
    return {model: {float(at): value for at, value in one.items()} for model, one in found.items()}

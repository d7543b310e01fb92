"""The baseline hazard that turns a Cox model's risks into probabilities of survival.

Breslow's estimate (discussion of Cox, JRSS B 1972) over the training patients of the study's hospitals. Only
its values at three times are kept, the quartiles of the observed event times to two digits. These are numbers
over all patients that identify nobody, and a hospital that evaluates the model later needs them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from numpy.typing import ArrayLike
from pytorch_lightning import LightningModule

from medfed.data.datamodule import SiteDataModule
from medfed.evaluation.inference import batches
from medfed.evaluation.survival import baseline_hazard
from medfed.files import write_whole
from medfed.runs.folder import RunFolder

QUARTILES = (0.25, 0.5, 0.75)

# Time -> cumulative baseline hazard until then.
Baseline = dict[float, float]


def baseline_of(module: LightningModule, sites: Iterable[SiteDataModule]) -> Baseline:
    """Return a model's baseline over these hospitals' training patients; empty if there was no event."""
    module.eval()
    risks, times, events = [], [], []
    for site in sites:
        for batch in batches(site, site.cases("train")):
            with torch.inference_mode():
                risks.append(float(module.predict_step(batch, 0)["risk"][0]))
            time, event = (float(value) for value in batch["target"][0])
            times.append(time)
            events.append(event)
    at_times = horizons(times, events)
    if not at_times:
        return {}
    return dict(zip(at_times, baseline_hazard(risks, times, events, at_times), strict=True))


def horizons(times: ArrayLike, events: ArrayLike) -> list[float]:
    """Return the quartiles of the event times, rounded to two digits, without duplicates."""
    time, event = np.asarray(times, float), np.asarray(events).astype(bool)
    if not event.any():
        return []
    return sorted({float(f"{value:.2g}") for value in np.quantile(time[event], QUARTILES)})


def write_baseline_file(folder: RunFolder, baselines: Mapping[str, Baseline]) -> None:
    """Write each model's baseline into a run folder."""
    plain = {
        model: {f"{time:g}": hazard for time, hazard in baseline.items()}
        for model, baseline in baselines.items()
    }
    write_whole(folder.baselines, json.dumps(plain, indent=2))


def read_baselines(folder: RunFolder) -> dict[str, Baseline]:
    """Return each model's baseline, or none if the run wrote no file."""
    if not folder.baselines.is_file():
        return {}
    plain = json.loads(folder.baselines.read_text(encoding="utf-8"))
    return {
        model: {float(time): hazard for time, hazard in baseline.items()} for model, baseline in plain.items()
    }

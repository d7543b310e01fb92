"""The baseline hazard that turns a Cox model's risks into probabilities of survival.

Breslow's estimate (discussion of Cox, JRSS B 1972) over the training patients of the study's hospitals. Only
its values at up to three times are kept, near the quartiles of the observed event times, to two digits. Each
time is the mean of a smallest group of events there, as a quartile is one patient's time, and no fewer events
are before it, after it, or between it and another. A hospital that evaluates the model later needs them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from math import ceil

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from pytorch_lightning import LightningModule

from medfed.data.datamodule import SiteDataModule
from medfed.evaluation.disclosure import is_too_few
from medfed.evaluation.inference import batches
from medfed.evaluation.survival import baseline_hazard
from medfed.files import write_whole
from medfed.runs.folder import RunFolder

# The median first: it is kept where there are too few events for all three.
QUARTILES = (0.5, 0.25, 0.75)

# Time -> cumulative baseline hazard until then.
Baseline = dict[float, float]


def baseline_of(module: LightningModule, sites: Iterable[SiteDataModule], min_patients: int = 1) -> Baseline:
    """Return a model's baseline over these hospitals' training patients; empty if too few had an event."""
    module.eval()
    risks, times, events = [], [], []
    for site in sites:
        for batch in batches(site, site.cases("train")):
            with torch.inference_mode():
                risks.append(float(module.predict_step(batch, 0)["risk"][0]))
            time, event = (float(value) for value in batch["target"][0])
            times.append(time)
            events.append(event)
    at_times = horizons(times, events, min_patients)
    if not at_times:
        return {}
    return dict(zip(at_times, baseline_hazard(risks, times, events, at_times), strict=True))


def horizons(times: ArrayLike, events: ArrayLike, min_patients: int = 1) -> list[float]:
    """Return times near the quartiles of the event times, rounded to two digits, without duplicates."""
    time, event = np.asarray(times, float), np.asarray(events).astype(bool)
    happened = np.sort(time[event])
    kept: list[float] = []
    for share in QUARTILES if len(happened) else ():
        at = float(f"{_near(happened, share, min_patients):.2g}")
        between = np.diff([0, *np.searchsorted(happened, sorted({*kept, at}), "right"), len(happened)])
        if at not in kept and not any(is_too_few(int(part), min_patients) for part in between):
            kept.append(at)
    return sorted(kept)


def _near(ordered: NDArray[np.float64], share: float, patients: int) -> float:
    """Return a quantile, as the mean of so many values around it."""
    number = min(patients, len(ordered))
    if number <= 1:
        return float(np.quantile(ordered, share))
    start = ceil(share * (len(ordered) - 1) - number / 2)
    start = min(max(start, 0), len(ordered) - number)
    return float(ordered[start : start + number].mean())


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

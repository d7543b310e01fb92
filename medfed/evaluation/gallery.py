"""A run's best, median and worst cases and its failures as pictures, in a file that stays
where the images are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from medfed.evaluation.gallery_page import Shown, write_local_pages
from medfed.evaluation.inference import Hospital, batches

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule


def write_gallery(
    run: Path, task: Any, module_at: Callable[[str], LightningModule], hospitals: Mapping[str, Hospital]
) -> Path:
    """Write `cases.html` into a run folder for these hospitals' test cases, and return its path.

    `module_at` gives the model at a hospital, which has layers of its own where the study keeps some local.
    Only the cases that are shown are predicted again, one in memory at a time.
    """

    def shown(site: str, token: str) -> Shown:
        data = hospitals[site].data
        case = data.case(token)
        (batch,) = batches(data, [case])
        module = module_at(site).eval()
        with torch.inference_mode():
            found = module.predict_step(batch, 0)
        restored = data.restored(found["probabilities"][0].cpu().numpy(), case, nearest=False)
        image, label = data.original(case)
        reference = np.zeros(image.shape, np.uint8) if label is None else label.array[0].astype(np.int32)
        predicted = task.labels(torch.as_tensor(restored)[None])[0, 0].numpy()
        return Shown(image.array[0], predicted, reference, image.affine_ras)

    structures = dict(list(enumerate(task.classes))[1:])
    return write_local_pages(run, shown, structures, sites=sorted(hospitals))

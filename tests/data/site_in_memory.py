"""A site whose images and labels are known to the test."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import numpy as np

from medfed.data.case import Case
from medfed.data.fingerprint import Fingerprint, fingerprint
from medfed.data.index import Index
from medfed.data.volume import Info, Volume


class Site:
    """Cases in memory, whose images and labels are known to the test."""

    def __init__(
        self, seed: int, cases: int, centre: float, *, spacing=(1.0, 1.0, 3.0), gain: float = 1.0
    ) -> None:
        generator = np.random.default_rng(seed)
        self.volumes: dict[str, tuple[Volume, Volume]] = {}
        listed = []
        for number in range(cases):
            shape = (14, 12, int(generator.integers(8, 12)))
            image = np.rint(generator.normal(centre, 60, shape)).astype(np.float32) * np.float32(gain)
            label = (generator.random(shape) < 0.4).astype(np.uint8) * (1 + number % 2)
            affine = np.diag([*spacing, 1.0])
            case = Case(
                id=f"{seed}/{number}", patient=f"{seed}/{number}", token=f"{seed:06d}{number:06d}", image=()
            )
            listed.append(case)
            self.volumes[case.id] = (Volume(image[None], affine, Info("CT")), Volume(label[None], affine))
        self.index = Index(Path(), "memory", tuple(listed))

    def fingerprint(self, **options) -> Fingerprint:
        options = {"grid": "hu", "classes": 3, "min_count": 10} | options
        with mock.patch("medfed.data.fingerprint.read_case", lambda case, *_: self.volumes[case.id]):
            return fingerprint(self.index, **options)

    @property
    def foreground(self) -> np.ndarray:
        return np.concatenate([image.array[0][label.array[0] > 0] for image, label in self.volumes.values()])

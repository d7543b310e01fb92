"""The settings of a federation: what the hub needs to know of a study, and what a site needs.

A study file is turned into these records by `pipeline.factory`; your own script can create them directly.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from medfed.aggregation import Rule
from medfed.errors import StudyError
from medfed.federation.egress import Egress
from medfed.federation.model_selection import ModelSelection
from medfed.local_training import LocalMethod
from medfed.privacy import NoPrivacy, Privacy
from medfed.wire.compression import Compression
from medfed.wire.update import DEFAULT_OUTLIER_FACTOR, MAX_EXAMPLES


@dataclass(frozen=True)
class HubConfig:
    """What a hub needs to know of a study.

    sites: the names of the sites that train.  fraction: the share of them that is asked to train in a round.
    minimum: the fewest valid updates that make a round.  deadline_s: how long the hub waits for updates; None
    waits for every site.  study: the study's digest.  outlier: an update this many times as long as the
    round's others is refused; None refuses none.  evaluating: sites that train nothing and report the final
    model's scores on their cases.  max_examples: the most examples that a site may state, if not None.
    classes: the names of the model's outputs, in order, which each site's callback compares with its own.
    selection: which merged model the study ends with, and when it ends early; None is the last of all rounds.

    Raises:
        StudyError: if models are to be selected by scores that the hub could not compare.
    """

    rounds: int
    sites: tuple[str, ...]
    rule: Rule
    privacy: Privacy = field(default_factory=NoPrivacy)
    fraction: float = 1.0
    minimum: int = 1
    deadline_s: float | None = None
    seed: int = 0
    study: str = ""
    compress: tuple[Compression, ...] = ()
    outlier: float | None = DEFAULT_OUTLIER_FACTOR
    evaluating: tuple[str, ...] = ()
    max_examples: int | None = MAX_EXAMPLES
    classes: tuple[str, ...] = ()
    selection: ModelSelection | None = None

    def __post_init__(self) -> None:
        for problem in selection_problems(self):
            raise StudyError(f"HubConfig.selection: {problem}")

    def quorum(self, asked: int) -> int:
        """Return the fewest valid updates that make a round for which so many sites were asked."""
        rule = self.rule
        return min(self.minimum, asked, rule.buffer_size if rule.asynchronous else asked)


def selection_problems(config: HubConfig) -> Iterator[str]:
    """Yield why a hub could not select a model by its sites' scores."""
    if config.selection is None:
        return
    score = config.selection.score
    if config.rule.asynchronous:
        yield "an asynchronous rule merges scores of several models; take another rule, or leave it out"
    if config.rule.max_sites == 1 or config.fraction < 1:
        yield (
            "each round has other sites, whose scores cannot be compared; ask every site in every round "
            "(fraction 1, and no rule that goes from site to site)"
        )
    if score not in config.privacy.filter_scalars({score: 0.0}):
        yield (
            f"it needs each site's '{score}', which the privacy mechanism does not let a site send; set its "
            "`scores` to send them, or leave selection out"
        )


@dataclass(frozen=True)
class SiteConfig:
    """How a site trains: the settings of its Trainer and of its federated callback.

    epochs: those of the whole run.  local_epochs: those between two merges.  batch: how many patients a step
    of private training holds on average.  clip: the largest norm of a gradient.  accumulate: the batches per
    optimiser step.  keep_local: the layers that stay in the hospital.  trained_only: whether only parameters
    that train are exchanged.  optimiser_state: whether the optimiser keeps its moments at a merge.
    required_scalars: what the rule needs from each site beside its weights.  parties: the sites that train in
    the study, with which alone this one agrees on keys.
    """

    epochs: int
    local_epochs: int = 1
    batch: int = 1
    precision: Literal[32, "16-mixed", "bf16-mixed"] = 32
    clip: float | None = None
    accumulate: int = 1
    keep_local: tuple[str, ...] = ()
    trained_only: bool = False
    optimiser_state: Literal["keep", "reset"] = "keep"
    local: LocalMethod | None = None
    privacy: Privacy = field(default_factory=NoPrivacy)
    egress: Egress | None = None
    compress: tuple[Compression, ...] = ()
    seed: int = 0
    accelerator: str = "auto"
    devices: int | str = 1
    required_scalars: tuple[str, ...] = ()
    parties: tuple[str, ...] = ()

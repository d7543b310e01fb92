"""The settings of a federation: what the hub needs to know of a study, a site, and a callback of your own.

A study file is turned into these records by `pipeline.factory`; your own script can create them directly.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from medfed.aggregation import Rule
from medfed.errors import StudyError
from medfed.federation.egress import UNDECLARED_OK, Egress
from medfed.federation.model_selection import ModelSelection
from medfed.local_training import LocalMethod
from medfed.privacy import NoPrivacy, Privacy
from medfed.study.averaging import Average, averages, averaging_problems
from medfed.study.joining import joining_refusals
from medfed.wire.audit_log import AuditLog
from medfed.wire.compression import Compression
from medfed.wire.update import DEFAULT_OUTLIER_FACTOR, MAX_EXAMPLES, GlobalModel


@dataclass(frozen=True)
class HubConfig:
    """What a hub needs to know of a study.

    sites: the names of the sites that train.  fraction: the share of them that is asked to train in a round.
    minimum: the fewest valid updates that make a round.  deadline_s: how long the hub waits for updates; None
    waits for every site.  outlier: an update this many times as long as the round's others is refused; None
    refuses none.  evaluating: sites that train nothing and report the final model's scores on their cases.
    max_examples: the most examples that a site may state, if not None.  classes: the names of the model's
    outputs, in order, which each site's callback compares with its own.  selection: which merged
    model the study ends with, and when it ends early; None is the last of all rounds.  joins: the first round
    of each of `sites` that joins later than in the first.  joining: whether the exchange may bring further
    sites while the study runs (`SupportsJoining`).  return_s: how long the hub waits, once too few sites are
    left for a round, until one that stopped has been started again; 0 ends the run.  average: the study ends
    with the mean of the models of so many last rounds; 1 is the last model.  structures: those of which the
    hub chooses the connected components to remove (`postprocessing.py`); none if it chooses nothing.
    on_all_from: the first round in which sites train on their validation cases, too, and so state more
    examples; None: they never do.

    Raises:
        StudyError: if models are to be selected by scores that the hub could not compare, sites join that
            cannot, or models are to be averaged that cannot.
    """

    rounds: int
    sites: tuple[str, ...]
    rule: Rule
    privacy: Privacy = field(default_factory=NoPrivacy)
    fraction: float = 1.0
    minimum: int = 1
    deadline_s: float | None = None
    seed: int = 0
    study_digest: str = ""
    compress: tuple[Compression, ...] = ()
    outlier: float | None = DEFAULT_OUTLIER_FACTOR
    evaluating: tuple[str, ...] = ()
    max_examples: int | None = MAX_EXAMPLES
    classes: tuple[str, ...] = ()
    selection: ModelSelection | None = None
    joins: Mapping[str, int] = field(default_factory=dict)
    joining: bool = False
    return_s: float = 0.0
    average: Average = 1
    structures: tuple[str, ...] = ()
    on_all_from: int | None = None

    def __post_init__(self) -> None:
        for problem in selection_problems(self):
            raise StudyError(f"HubConfig.selection: {problem}")
        for problem in joining_problems(self):
            raise StudyError(f"HubConfig.joins: {problem}")
        for problem in averaging_problems(self.average, self.rounds, self.rule, self.privacy):
            raise StudyError(f"HubConfig.average: {problem}")
        if averages(self.average) and self.selection is not None:
            raise StudyError(
                "HubConfig.average: a selection ends with one round's model; leave one of the two out"
            )

        if self.structures and self.keeps_best:
            raise StudyError(
                "HubConfig.structures: components are chosen by the last merged model, and the selection may "
                "keep an earlier one; leave one of the two out"
            )

    @property
    def keeps_best(self) -> bool:
        """Whether the study ends with the best round's model."""
        return self.selection is not None and self.selection.keep == "best"

    @property
    def scores_last(self) -> bool:
        """Whether every site scores the last merged model before the final one is published."""
        return self.keeps_best or bool(self.structures)

    @property
    def changes_sites(self) -> bool:
        """Whether not all sites take part from the first round on."""
        return self.joining or bool(self.joins)

    def sites_in(self, round: int) -> tuple[str, ...]:
        """Return the sites that are in the study when a round is trained."""
        return tuple(site for site in self.sites if self.joins.get(site, 1) <= round)

    def joined_by(self, new: Collection[str], round: int) -> HubConfig:
        """Return the settings with further sites, which train from this round on."""
        joins = {**self.joins, **dict.fromkeys(new, round)}
        return replace(self, sites=tuple(sorted({*self.sites, *new})), joins=joins)

    def quorum(self, asked: int) -> int:
        """Return the fewest valid updates that make a round for which so many sites were asked."""
        rule = self.rule
        return min(self.minimum, asked, rule.buffer_size if rule.asynchronous else asked)


def selection_problems(config: HubConfig) -> Iterator[str]:
    """Yield why a hub could not select a model by its sites' scores."""
    if config.selection is None:
        return
    score = config.selection.score
    if config.changes_sites:
        yield "sites that join make each round's mean score one of other sites; leave one of the two out"
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


def joining_problems(config: HubConfig) -> Iterator[str]:
    """Yield why sites could not join a study after its first round."""
    for site, round in sorted(config.joins.items()):
        if site not in config.sites:
            yield f"'{site}' is none of the sites, which are {', '.join(sorted(config.sites))}"
        elif not 1 <= round <= config.rounds and not config.joining:
            yield f"'{site}' is to join in round {round}, expected 1 to {config.rounds}"
    if config.sites and not config.sites_in(1):
        yield "no site is left that trains in the first round"
    if config.changes_sites:
        yield from joining_refusals(config.privacy, config.rule)


@dataclass(frozen=True)
class SiteConfig:
    """How a site trains: the settings of its Trainer and of its federated callback.

    epochs: those of the whole run.  local_epochs: those between two merges.  batch: how many patients a step
    of private training holds on average.  clip: the largest norm of a gradient.  accumulate: the batches per
    optimiser step.  keep_local: the layers that stay in the hospital.  trained_only: whether only parameters
    that train are exchanged.  optimiser_state: whether the optimiser keeps its moments at a merge.
    required_scalars: what the rule needs from each site beside its weights.  parties: the sites that train in
    the study, with which alone this one agrees on keys.  grows_alone: the rule by which a site's own model
    grows where there is no hub, for a network of trees.  on_all_from: the first round in which validation
    cases train, too; None: they never do.
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
    grows_alone: Rule | None = None
    on_all_from: int | None = None


@dataclass(frozen=True)
class CallbackOptions:
    """Options that a study sets on its callback and that a script of your own rarely needs.

    trained_only: whether parameters that don't train (`requires_grad` is False) are left out of the exchange;
        every site must have begun with the same ones.
    egress: what may leave besides the model's tensors; by default the local method's groups, what medfed
        itself reports of training, and the metrics that the module names in its attribute `scores`.
    audit: the log of what is received and sent.
    accountant: called with the round before an update is sent; records what the round costs under
        differential privacy and returns the scalars that report it (`PrivateTraining.commit_round`).
    on_final_model: called with the final model; returns what this site reports of it besides its scores.
    on_last_model: called once the module holds the last merged model, where the hub chooses something by what
        the sites measure of it; returns that.
    required_scalars: what the study's rule needs besides the weights: `train/loss_before`, the training loss
        of the received model, and `train/class_loss`, its mean over the classes and each class's.
    scalars: numbers that go with each update, such as how many cases the site left out.
    parties: the sites that train in the study to which this one agreed, with which alone it agrees on keys;
        needed by privacy mechanisms with keys, except in a simulation, whose exchange knows them.
    close_at_end: whether the scores of the final model are sent when fit ends; if not, call `close` later.
    examples_in: returns the examples of this site's update of a round, where rounds differ.
    """

    trained_only: bool = False
    egress: Egress | None = None
    audit: AuditLog | None = None
    accountant: Callable[[int], dict[str, float]] | None = None
    on_final_model: Callable[[GlobalModel], Mapping[str, float]] | None = None
    on_last_model: Callable[[], Mapping[str, float]] | None = None
    required_scalars: Collection[str] = ()
    scalars: Mapping[str, float] = field(default_factory=dict)
    parties: tuple[str, ...] = ()
    close_at_end: bool = True
    examples_in: Callable[[int], int] | None = None


def default_egress(method: LocalMethod, privacy: Privacy, options: CallbackOptions) -> Egress:
    """Return what may leave where no study says so: what the parts declare, and what medfed measures."""
    names = UNDECLARED_OK.union(method.reports, privacy.scalars, options.required_scalars, options.scalars)
    return Egress(names, groups=method.sends)


# Why a site drops out whose Trainer ended well before the study.
REACHED_MAX_EPOCHS = (
    "its Trainer reached max_epochs before the study's last round; if another fit follows, give "
    "FederatedCallback(options=CallbackOptions(close_at_end=False)) and call its close() after the last"
)

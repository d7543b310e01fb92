"""The records of a study file: every key, its type, its limits and its default.

A study file describes a study completely; flags only say which study, where to write and how much to print.
`reading` makes these records from YAML, `validation` checks what their parts demand of each other, and
`canonical` computes the digest by which hospitals approve a study.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from msgspec import Meta

from medfed.aggregation.fedavg import FedAvg
from medfed.data.layouts import Layout, layout_of
from medfed.data.settings import AnyData, AnyLayout
from medfed.data.splits import Fold
from medfed.exchange.memory import Memory
from medfed.models.optimisers.adamw import AdamW
from medfed.models.pretrained import Start
from medfed.models.schedules.constant import Constant
from medfed.privacy import NoPrivacy
from medfed.privacy._patient_noise import PatientNoise
from medfed.registry import union
from medfed.study.averaging import Average
from medfed.study.plugins import MAX_PLUGINS, Plugin, PluginName
from medfed.study.search import Search
from medfed.wire.update import DEFAULT_OUTLIER_FACTOR, MAX_EXAMPLES

if TYPE_CHECKING:
    from medfed.aggregation import Rule as AnyRule
    from medfed.exchange import Exchange
    from medfed.local_training import LocalMethod as AnyLocal
    from medfed.models.networks import Network as AnyNetwork
    from medfed.models.optimisers import Optimiser as AnyOptimiser
    from medfed.models.schedules import Schedule as AnySchedule
    from medfed.models.tasks import Task as AnyTask
    from medfed.privacy import Privacy as AnyPrivacy
    from medfed.runs.trackers import Tracker
    from medfed.wire.compression import Compression as AnyCompression

    AnyExchange = Exchange  # the site file's records use it, too
    AnyTracker = Tracker
else:
    AnyTask, AnyNetwork, AnyRule = union("tasks"), union("networks"), union("aggregation")
    AnyLocal, AnyExchange, AnyPrivacy = union("local_training"), union("exchange"), union("privacy")
    AnyOptimiser, AnySchedule = union("optimisers"), union("schedules")
    AnyCompression, AnyTracker = union("compression"), union("trackers")

Count = Annotated[int, Meta(ge=1)]
Share = Annotated[float, Meta(gt=0, le=1)]
# A site's name becomes the name of a folder, a NATS subject and a certificate: no path, no dot.
SiteName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$")]


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class Lora(_Section, frozen=True, kw_only=True):
    """Low-rank adapters of linear and convolutional layers, trained and exchanged with norms and last layer.

    rank: r, the rank of an adapter's two matrices B and A.  alpha: the factor of their product, divided by r.
    matrices: `b` trains B alone and leaves A as it was drawn from the seed, equal at every hospital: then the
    mean of the hospitals' B is the mean of their layers (FFA-LoRA).  `ab` trains both, and what is merged is
    not the mean of the layers.  also: what trains whole beside the adapters: `norm` (all norms), `head` (the
    last layer), or a part of the network.
    """

    rank: Count = 4
    alpha: Annotated[float, Meta(gt=0)] = 8.0
    matrices: Literal["b", "ab"] = "b"
    also: tuple[str, ...] = ("norm", "head")


class Train(_Section, frozen=True, kw_only=True):
    """How each site trains, and how often the sites' weights are merged.

    rounds: the number of merges.  epochs: E, the epochs that each site trains between two merges.  steps:
    training steps per epoch, equal at every site; a site with fewer batches repeats its cases, and null is
    one pass over them.  batch: cases (or patches) per step.  accumulate: steps over which a gradient is
    summed.  clip: the largest gradient norm; null does not clip.  keep_local: what stays in the hospital:
    `norm` is FedBN, `head` FedPer.  optimiser_state: `keep` the optimiser's moments at a merge (the default:
    one site alone then trains as without federation), or `reset` them, which costs no memory between a site's
    turns.  only: parts of the network, such as [output], that are trained and exchanged; `norm` is all norms
    and `head` the last layer; the rest stays as it was initialised (see `start`).  lora: train and exchange
    adapters of the layers, and what `only` names.  keep: which round's model the study ends with: the `last`
    one's, or the `best` one's by the mean, over the sites, of the task's first score on validation cases.
    patience: the study ends after so many rounds in a row without a better one by that mean; null never ends
    it early.  average: the study ends with the mean of the models of so many last rounds, each merged over
    the sites; 1 is the last round's model.  {kind: ema, decay: 0.9} is a moving average of all rounds'
    models.  last_rounds_on_all: in so many last rounds each site trains on its training and validation
    patients together, in as many steps; from then on there are no validation scores. 0 keeps validation
    patients out of training.
    """

    rounds: Count
    epochs: Count = 1
    steps: Count | None = None
    batch: Count = 2
    accumulate: Count = 1
    optimiser: AnyOptimiser = AdamW()
    schedule: AnySchedule = Constant()
    precision: Literal[32, "16-mixed", "bf16-mixed"] = 32
    clip: Annotated[float, Meta(gt=0)] | None = None
    keep_local: tuple[str, ...] = ()
    optimiser_state: Literal["keep", "reset"] = "keep"
    only: tuple[str, ...] = ()
    lora: Lora | None = None
    local: AnyLocal | None = None
    keep: Literal["last", "best"] = "last"
    patience: Count | None = None
    average: Average = 1
    last_rounds_on_all: Annotated[int, Meta(ge=0)] = 0


class Sampling(_Section, frozen=True, kw_only=True):
    """Which sites train in a round, and whose update counts.

    fraction: the share of sites asked in each round, drawn from the study's seed.  minimum: fewer answers
    than this end the study; null is half of the sites, rounded up.  deadline_s: seconds until a round
    continues without the sites that are late; null is no limit.  outlier: an update this many times as long
    as the others of its round is refused, and the round continues; null leaves it to the rule.  max_examples:
    the most training examples that one site may state, by which merges weight it; an update that states more
    is refused.  joining: across hospitals, whether one that the study does not name may join while it runs.
    The coordinator admits it (`medfed enrol study`), it approves the study as all others do, begins with the
    newest model, and the report says from which round on it trained.
    """

    fraction: Share = 1.0
    minimum: Count | None = None
    deadline_s: Annotated[float, Meta(gt=0)] | None = None
    outlier: Annotated[float, Meta(ge=10)] | None = DEFAULT_OUTLIER_FACTOR
    max_examples: Count = MAX_EXAMPLES
    joining: bool = False


class Evaluation(_Section, frozen=True, kw_only=True):
    """What is measured at the end.

    temperature: report a classifier's probabilities after temperature scaling, fitted on its validation
    patients; predictions and guaranteed thresholds are without it.  robustness: also measure the federated
    model on perturbed test cases: shifted, noisy, with dropped slices.  local_models: also train each
    site's own model on its own cases for as many epochs, and compare.  pooled_model: also train one model
    on the cases of all sites in one place, where one person has them all (a simulation), and compare.
    draws: bootstrap draws per interval.  tolerance_mm: the tolerance of the surface Dice; in pixels for
    images without a size in mm, whose metrics end in px instead of mm (`nsd_voxel_2px`) and are not
    averaged with the others.  smallest_group: results of fewer patients than this are withheld.  guarantee:
    the share of patients in whom a model is to succeed, such as 0.9: each hospital's threshold that keeps
    it is chosen on its validation patients.  confidence: of this. seeds: train the federation with so many
    seeds in a simulation and show how far its results spread.

    `local_models`, `pooled_model`, `robustness` and `seeds` may be changed when a run is resumed: they are no
    part of the study's digest, as no other party sees what they compute.
    """

    local_models: bool = True
    pooled_model: bool = True
    robustness: bool = True
    temperature: bool = False
    draws: Count = 1000
    tolerance_mm: Annotated[float, Meta(gt=0)] = 2.0
    smallest_group: Count = 5
    seeds: Count = 1
    guarantee: Annotated[float, Meta(gt=0, lt=1)] | None = None
    confidence: Annotated[float, Meta(gt=0, lt=1)] = 0.95


class Describe(_Section, frozen=True, kw_only=True):
    """Statistics of all hospitals' training data, computed before the first round: Table 1, and the plan.

    only: the study ends with them, and nothing is trained; `medfed describe` sets it.  privacy: `none`, with
    which the hub sees each hospital's statistics, or `secure_sum`, with which it learns only their sum; null
    takes the study's own mechanism, which must then be one of these.  noise: differential privacy of single
    patients, such as {epsilon: 1.0, delta: 0.00001}: each hospital adds noise to its counts, charges its
    privacy ledger, and leaves out what one patient could change without a bound, so that no `data.plan`
    follows.

    A study with `data.plan` is described before it trains, with or without this section.
    """

    only: bool = False
    privacy: AnyPrivacy | None = None
    noise: PatientNoise | None = None


class SiteOverride(_Section, frozen=True, kw_only=True):
    """What one hospital does differently, because it has fewer cases, less memory or less time.

    epochs: its own E.  batch: its own batch.  All hospitals merge equally often; the rule `fednova` corrects
    for different numbers of steps.  columns: its own headings for the study's columns of a table, such as
    {age: Alter, patient: MRN}, in a simulation; a hospital of its own writes them in its site file.
    table: likewise its own file of the table beside its images, relative to its folder.
    classes: likewise its own words for the study's classes, such as {Leber: liver}.  channels: likewise for
    the study's channels, such as {flair_tra: flair}.  layout: likewise how the cases lie in its folder.
    """

    epochs: Count | None = None
    batch: Count | None = None
    classes: dict[str | int, str] = {}
    columns: dict[str, str] = {}
    channels: dict[str, str] = {}
    table: str | None = None
    layout: AnyLayout | str | None = None


class Simulation(_Section, frozen=True, kw_only=True):
    """How `medfed train` trains all hospitals on this machine; of no effect across hospitals.

    engine: `threads` trains one hospital at a time on all cores, in one process; `processes` trains in worker
    processes, each with hospitals of its own; `ray` likewise in workers on a Ray cluster, on this machine or
    many (the extra `ray`).  workers: how many of them.  threads: the threads with which each computes; null
    is this machine's cores divided by the workers (with engine `threads`, all; with `ray`, one).
    address: the Ray cluster: `auto` is the one whose node this machine is, `local` begins one on this machine
    for this run, and host:port is that of a cluster's head, whose node this machine must be, too.
    gpus: `share` divides the cluster's GPUs among the workers, `none` trains on processors.

    It is no part of the study's digest, and may be changed when a run is resumed. With equal `threads`
    neither the engine nor the number of workers changes a bit of the result; another number of threads may,
    as sums of large tensors are split among them: give `threads` where bits are to repeat.
    """

    engine: Literal["threads", "processes", "ray"] = "threads"
    workers: Count = 1
    threads: Count | None = None
    address: str = "auto"
    gpus: Literal["share", "none"] = "share"


class Study(_Section, frozen=True, kw_only=True):
    """A complete study.

    sites: the hospitals that train, each with its folder (or CSV file).  held_out: hospitals that take no
    part in training and on which the final models are compared. Across hospitals (`medfed hub`) a list of
    names is enough: each site file says where the site's data are, and held-out hospitals take part to
    measure the final model.  compress: the methods that shrink an update on its way to the hub, in order,
    such as [{kind: top_k, share: 0.01}, {kind: int8}]; rounding errors are added to the next round's
    update.  describe: statistics of the hospitals' data (Table 1) before the first round, or instead of all
    rounds.  site_overrides: what single hospitals do differently.  start: the file with the initial
    weights: another run's checkpoints/federated.ckpt, a .pt or .safetensors file, or a MONAI Bundle; or
    {path: ..., least: 0.9} where not all of the network is in it.  plugins: the folders of packages with
    kinds of one's own, relative to the file, such as [../parts]; their code runs here. Across hospitals only
    the digest of each is sent, and each site file says where the site's own copy is.
    trackers: where the hub's record of each round goes beside the run folder, such as [{kind: csv}, {kind:
    mlflow, url: https://mlflow.example.org}]; it is not sent to the sites, which name their own.
    search: which settings `medfed train --search` looks for in a simulation, and its budget; it is not sent
    to the sites either.  simulation: how `medfed train` spreads the hospitals over this machine's cores.
    """

    name: SiteName
    task: AnyTask
    network: AnyNetwork
    data: AnyData
    train: Train
    sites: dict[SiteName, str | None] = {}
    held_out: dict[SiteName, str | None] = {}
    site_overrides: dict[SiteName, SiteOverride] = {}
    seed: Annotated[int, Meta(ge=0)] = 0
    rule: AnyRule = FedAvg()
    sampling: Sampling = Sampling()
    privacy: AnyPrivacy = NoPrivacy()
    compress: tuple[AnyCompression, ...] = ()
    exchange: AnyExchange = Memory()
    evaluation: Evaluation = Evaluation()
    describe: Describe | None = None
    start: str | Start | None = None
    plugins: Annotated[dict[PluginName, Plugin], Meta(max_length=MAX_PLUGINS)] = {}
    trackers: tuple[AnyTracker, ...] = ()
    search: Search | None = None
    simulation: Simulation = Simulation()

    @property
    def trained_only(self) -> bool:
        """Whether only trained parameters are exchanged."""
        return bool(self.train.only) or self.train.lora is not None

    @property
    def on_all_from(self) -> int | None:
        """The first round in which sites train on their validation patients, too; None if none does."""
        return first_on_all(self.train.rounds, self.train.last_rounds_on_all)

    @property
    def given_start(self) -> Start | None:
        """What the study starts from, with its settings, or None."""
        return Start(path=self.start) if isinstance(self.start, str) else self.start

    @property
    def start_path(self) -> str | None:
        """Where the study's start is, or its SHA-256 in a study that came from a hub; None without one."""
        return None if (start := self.given_start) is None else start.path

    def starting_from(self, path: str) -> Study:
        """Return the study with another path of its start, whose other settings stay."""
        if not isinstance(self.start, Start):
            return msgspec.structs.replace(self, start=path)
        return msgspec.structs.replace(self, start=msgspec.structs.replace(self.start, path=path))

    @property
    def keep_local(self) -> tuple[str, ...]:
        """The layers that stay in the hospital, including those that the local method keeps.

        `head` is the network's last layer, by its path in the LightningModule.
        """
        personal = self.train.local.keep_local() if self.train.local is not None else ()
        return tuple(self._layer_path(layer) for layer in (*self.train.keep_local, *personal))

    @property
    def local(self) -> AnyLocal | None:
        """The local method, with its `head` as the path of the network's last layer."""
        method = self.train.local
        head = getattr(method, "head", None)
        if method is None or head is None:
            return method
        return msgspec.structs.replace(method, head=self._layer_path(head))

    @property
    def network_head(self) -> str:
        """The path of the network's last layer, '' if it names none."""
        # With a table beside the images, the last layer is that of the wrapper (`_image_and_table.py`).
        return "head" if getattr(self.data, "table", None) is not None else self.network.head

    def _layer_path(self, layer: str) -> str:
        head = self.network_head
        return f"network.{head}" if layer == "head" and head else layer

    def at(self, site: str) -> Study:
        """Return the study as one hospital trains it: with its own epochs and batch, if it has any."""
        override = self.site_overrides.get(site)
        if override is None:
            return self
        own = {"epochs": override.epochs, "batch": override.batch}
        changes = {key: value for key, value in own.items() if value is not None}
        return msgspec.structs.replace(self, train=msgspec.structs.replace(self.train, **changes))

    def columns_at(self, site: str) -> dict[str, str]:
        """Return one hospital's own headings, by the study's columns."""
        return self.site_overrides[site].columns if site in self.site_overrides else {}

    def channels_at(self, site: str) -> dict[str, str]:
        """Return the study's names of channels, by one hospital's own words."""
        return self.site_overrides[site].channels if site in self.site_overrides else {}

    def table_at(self, site: str) -> str | None:
        """Return one hospital's own file of the table beside its images, or None."""
        return self.site_overrides[site].table if site in self.site_overrides else None

    def layout_at(self, site: str) -> Layout | None:
        """Return one hospital's own layout, or None."""
        layout = self.site_overrides[site].layout if site in self.site_overrides else None
        return None if layout is None else layout_of(layout)

    def data_at(self, site: str) -> AnyData:
        """Return one hospital's data settings: a fold is of those that train, the others test everyone."""
        return self.data if self.trains(site) else msgspec.structs.replace(self.data, fold=None)

    def in_fold(self, fold: Fold | None) -> Study:
        """Return the study with this fold of a cross-validation, or without any."""
        return msgspec.structs.replace(self, data=msgspec.structs.replace(self.data, fold=fold))

    def trains(self, site: str) -> bool:
        """Return whether a hospital of this name trains: one that is named, or one that may join."""
        return site in self.sites or (self.sampling.joining and site not in self.held_out)

    @property
    def minimum(self) -> int:
        """How many sites must answer a round."""
        return self.sampling.minimum or (len(self.sites) + 1) // 2

    @property
    def epochs(self) -> int:
        """How many epochs a site trains over all rounds."""
        return self.train.rounds * self.train.epochs


def first_on_all(rounds: int, last: int) -> int | None:
    """Return the first of the `last` of so many rounds (`train.last_rounds_on_all`), None if none."""
    return rounds - last + 1 if last else None

"""DP-SGD per patient: Poisson samples of patients, one clipped gradient per patient, noise.

`PrivateTraining` is a Lightning callback; with it and `PrivateData` any LightningModule with automatic
optimisation trains by DP-SGD inside the one long `Trainer.fit` of the federated callback. A gradient is taken
for each patient over all of the patient's items in the step (with `augmentations`, the mean over several
copies), clipped as a whole, summed, noised, and divided by the expected number of patients. What Lightning,
the optimiser and local methods do afterwards is post-processing and costs nothing more.

The ways to per-patient gradients were measured (patches of 28^3 and 40 x 56 x 40, four patients, one core).
Opacus' hooks take 2.5 times a plain step for 3D convolutions, whose inputs they unfold, and fail on MONAI's
in-place activations; `torch.func` takes 1.1 times a plain step; one backward pass per patient takes twice as
long as a plain step. So `at_once` patients go through `torch.func.vmap` together; a network or loss that vmap
cannot batch is run patient by patient, and a log line says so. Both give the gradient of the patient's own
loss, so a loss may combine the items of one patient freely. Opacus' accountants count the cost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from medfed.data.dataset import item_seed
from medfed.errors import PrivacyError
from medfed.federation.patient_gradients import (
    Gradients,
    alike,
    clipped_sum,
    many_gradients,
    mean_over_copies,
    single_gradient,
    trained,
)
from medfed.privacy import _noise as noise
from medfed.privacy.accounting.accountant import MechanismSteps, noise_for
from medfed.privacy.accounting.ledger import BudgetTracker
from medfed.privacy.dp_sgd import DPSGD

PATIENTS = "patients"

# The precisions in which weights and their gradients have 32 bits or more.
_PRECISIONS = ("32-true", "64-true", "bf16-mixed")

# Layers that mix the patients of a batch, or keep statistics of them in a buffer.
_MIXING = (nn.modules.batchnorm._BatchNorm, nn.SyncBatchNorm)


# --------------------------------------------------------------------------------------------- sampling


class PoissonPatientSampler(Sampler[list[int]]):
    """Draws each patient into each step independently with the same probability; an empty step counts too.

    The draws come from the operating system: from the study's seed anyone could compute who was in a step,
    and sampling would hide nobody.
    """

    def __init__(self, patients: int, expected: int) -> None:
        self.patients = patients
        self.rate = min(1.0, expected / patients)
        self.steps = max(1, round(1 / self.rate))

    def __iter__(self) -> Iterator[list[int]]:
        for _ in range(self.steps):
            yield noise.poisson_sample(self.patients, self.rate)

    def __len__(self) -> int:
        return self.steps


class _ByPatient(Dataset[Any]):
    """A dataset of patients: item p is a list of batches of all of patient p's items, one per copy.

    The copies differ in what the dataset draws at random: patches and augmentation.
    """

    def __init__(
        self, dataset: Any, items: Sequence[Sequence[int]], collate: Callable[[list[Any]], Any], copies: int
    ) -> None:
        self._dataset, self._items, self._collate, self._copies = dataset, items, collate, copies
        self._seed = 0

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, patient: int) -> list[Any]:
        return [self._copy(patient, number) for number in range(self._copies)]

    def _copy(self, patient: int, number: int) -> Any:
        if hasattr(self._dataset, "set_random_state"):
            self._dataset.set_random_state(item_seed(self._seed, number))
        return self._collate([self._dataset[item] for item in self._items[patient]])

    def set_random_state(self, seed: int) -> None:
        self._seed = seed


class PrivateData(pl.LightningDataModule):
    """A site's data whose training batches are drawn by patient; validation is unchanged.

    Args:
        data: the site's data; its training DataLoader gives dataset, collate function and workers.
        items: for each patient, the indices of their training items.
        expected: the average number of patients in a step.
        copies: how many augmented copies of a patient are in a step.
    """

    def __init__(self, data: Any, items: Sequence[Sequence[int]], expected: int, copies: int = 1) -> None:
        super().__init__()
        if not items or not all(items):
            raise PrivacyError("private training needs patients, each with at least one training item")
        if len({item for mine in items for item in mine}) < sum(len(mine) for mine in items):
            raise PrivacyError(
                "private training: an item belongs to two patients; each item must belong to one patient"
            )
        self._data, self._items, self.copies = data, [list(mine) for mine in items], copies
        self.sampler = PoissonPatientSampler(len(items), expected)
        self.federated_examples = getattr(data, "federated_examples", None)

    def train_dataloader(self) -> DataLoader[Any]:
        """Return a loader of batches `{"patients": [[one batch per copy] per sampled patient]}`."""
        loader = self._data.train_dataloader()
        dataset = _ByPatient(loader.dataset, self._items, loader.collate_fn, self.copies)
        # Not the study's seed: an augmentation must not reveal who else was in the step.
        dataset.set_random_state(noise.seed())
        return DataLoader(
            dataset, batch_sampler=self.sampler, num_workers=loader.num_workers, collate_fn=_as_patients
        )

    def val_dataloader(self) -> Any:
        return self._data.val_dataloader()


def _as_patients(batches: list[Any]) -> dict[str, list[Any]]:
    return {PATIENTS: batches}


# ---------------------------------------------------------------------------------------------- the callback


class PrivateTraining(pl.Callback):
    """Turns a Trainer's steps into DP-SGD, counts them, and stays within the study's target epsilon.

    Use it together with `CallbackOptions(accountant=private.commit_round)` and `PrivateData`, and give the
    FederatedCallback no seed. `log` is called with what a person should know about the training.

    Raises:
        PrivacyError: when fit starts, if the module, its layers or the Trainer's settings cannot be combined
            with it; or if the site's ledger has no room for the steps to come.
    """

    def __init__(
        self,
        site: str,
        privacy: DPSGD,
        data: PrivateData,
        spending: BudgetTracker,
        *,
        log: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.site = site
        self.noise_multiplier = 0.0
        self._log = log
        self._privacy = privacy
        self._sampler = data.sampler
        self._spending = spending
        self._vectorised = privacy.at_once > 1
        self._sum: list[Tensor] | None = None
        self._checked_buffers = False

    # -- Lightning's hooks

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._refuse(trainer, pl_module)
        # Lightning has no hook between a step's forward and its backward pass, and a module around the module
        # would have to repeat all its hooks and hide its names; so these methods are replaced for this fit.
        pl_module.__dict__.update(
            training_step=partial(self._step, pl_module), backward=partial(self._write, pl_module)
        )
        self._checked_buffers = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if getattr(trainer.train_dataloader, "batch_sampler", None) is not self._sampler:
            raise PrivacyError(
                f"site '{self.site}': the training batches are not drawn by patient; give the Trainer the "
                "PrivateData that this callback was created with"
            )
        assert trainer.max_epochs is not None
        steps = (trainer.max_epochs - trainer.current_epoch) * len(self._sampler)
        if steps < 1:
            return
        plan, privacy = MechanismSteps(0.0, self._sampler.rate, steps), self._privacy
        # Inside a round: steps from before a restart, which the next update releases with those to come.
        pending = self._spending.pending
        try:
            self.noise_multiplier = noise_for(
                privacy.epsilon, privacy.delta, plan, privacy.accountant, (*self._spending.settled, *pending)
            )
            self._spending.begin(self._charge(steps + sum(charge.steps for charge in pending)))
        except PrivacyError as error:
            raise PrivacyError(f"site '{self.site}': {error}") from None

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Dropout and augmentation are secret too: seeded by the study, they would change for all other
        # patients when one is removed, and the clip would no longer bound what a patient changes.
        drawn = noise.seed()
        torch.manual_seed(drawn)
        dataset = getattr(trainer.train_dataloader, "dataset", None)
        if dataset is not None and hasattr(dataset, "set_random_state"):
            dataset.set_random_state(noise.seed())

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._leave(pl_module)
        self._spending.end()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        self._leave(pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Return the privacy parameters for a checkpoint; the ledger holds what was spent.

        `pending` are the steps of the round that the checkpoint is inside of, which are not spent yet.
        """
        return {
            "epsilon": self.epsilon,
            "delta": self._privacy.delta,
            "noise_multiplier": self.noise_multiplier,
            "sample_rate": self._sampler.rate,
            "steps": sum(charge.steps for charge in self._spending.settled),
            "accountant": self._privacy.accountant,
            "pending": [astuple(charge) for charge in self._spending.pending],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._spending.resume_pending([MechanismSteps(*charge) for charge in state_dict.get("pending", ())])

    # -- spending

    @property
    def epsilon(self) -> float:
        """The epsilon of everything that has left this site in this run."""
        return self._spending.epsilon

    def commit_round(self, round: int) -> dict[str, float]:
        """Write the steps since the last update to the ledger, and return the spending as scalars."""
        return self._spending.commit_round(round)

    def _charge(self, steps: int) -> MechanismSteps:
        return MechanismSteps(self.noise_multiplier, self._sampler.rate, steps)

    # -- one step

    def _step(self, module: pl.LightningModule, batch: Any, *_: Any) -> Tensor:
        """Store the sum of the patients' clipped gradients, and return the mean of their losses."""
        patients = batch[PATIENTS]
        buffers = None if self._checked_buffers or not patients else _buffers(module)
        self._sum, loss = self._clipped_sum(module, patients)
        if buffers is not None:
            self._refuse_learning_buffers(buffers, _buffers(module))
        module.log("train/loss", loss, on_step=False, on_epoch=True, batch_size=max(len(patients), 1))
        return loss

    def _clipped_sum(self, module: pl.LightningModule, patients: Sequence[Any]) -> Gradients:
        parameters = list(trained(module).values())
        # float64: a patient made for it moves the rounding of a float32 sum by more than the clip.
        total = [torch.zeros_like(parameter, dtype=torch.float64) for parameter in parameters]
        losses = []
        for gradients, loss in self._gradients(module, patients):
            for place, gradient in zip(total, clipped_sum(gradients, self._privacy.clip), strict=True):
                place += gradient
            losses.append(loss.detach().float().reshape(-1))
        mean = torch.cat(losses).mean() if losses else parameters[0].new_zeros(())
        return total, mean

    def _gradients(self, module: pl.LightningModule, patients: Sequence[Any]) -> Iterator[Gradients]:
        """Yield gradients (patients, *parameter's shape) of one or several patients, and their losses."""
        for some in alike(patients, self._privacy.at_once):
            together = self._together(module, some) if self._vectorised else None
            if together is not None:
                yield together
                continue
            for patient in some:
                yield mean_over_copies(lambda copy: single_gradient(module, copy[0]), [patient])

    def _together(self, module: pl.LightningModule, patients: Sequence[Any]) -> Gradients | None:
        """Return gradients and losses of patients of the same shapes, or None if vmap can't batch them."""
        try:
            return mean_over_copies(partial(many_gradients, module), patients)
        except (RuntimeError, NotImplementedError, TypeError, AttributeError, KeyError) as error:
            # An error in the network itself is raised again patient by patient.
            self._vectorised = False
            self._log(
                f"{self.site}: patients go through the network one after another: torch.func can't batch "
                f"it ({type(error).__name__})"
            )
            return None

    @torch.no_grad()
    def _write(self, module: pl.LightningModule, *_: Any, **__: Any) -> None:
        """Give every parameter its private gradient: (sum + noise) / expected patients."""
        assert self._sum is not None
        clip, patients = self._privacy.clip, self._sampler.patients
        expected = self._sampler.rate * patients
        for parameter, total in zip(trained(module).values(), self._sum, strict=True):
            noisy = noise.add_gaussian(total, self.noise_multiplier * clip, clip, patients)
            parameter.grad = (noisy / expected).to(parameter.dtype)
        self._sum = None
        self._spending.add(self._charge(1))

    # -- unsupported settings

    def _refuse(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        who = f"site '{self.site}': dp_sgd"
        if not module.automatic_optimization:
            raise PrivacyError(
                f"{who}: {type(module).__name__} uses manual optimisation (automatic_optimization is False), "
                "so its gradients can't be clipped and noised before they are used; switch to automatic "
                "optimisation"
            )
        if trainer.world_size > 1:
            raise PrivacyError(f"{who}: {trainer.world_size} processes train; use one device")
        if trainer.accumulate_grad_batches > 1:
            raise PrivacyError(
                f"{who}: accumulate_grad_batches is {trainer.accumulate_grad_batches}; use 1 and a larger "
                "batch"
            )
        if getattr(trainer.precision_plugin, "scaler", None) is not None or trainer.precision == "16-mixed":
            raise PrivacyError(
                f"{who}: precision is {trainer.precision}, which scales gradients; use 32 or bf16-mixed"
            )
        if self._privacy.delta * self._sampler.patients >= 1:
            raise PrivacyError(
                f"{who}: delta is {self._privacy.delta:g} for {self._sampler.patients} training patients; it "
                f"must be well below {1 / self._sampler.patients:.1e}, one over their number, since a larger "
                "delta allows publishing one patient's data"
            )
        _check_precision(trainer, module, who)
        check_layers(module, who)

    def _refuse_learning_buffers(self, before: dict[str, Tensor], after: dict[str, Tensor]) -> None:
        self._checked_buffers = True
        if changed := sorted(name for name in before if not torch.equal(before[name], after[name])):
            raise PrivacyError(
                f"site '{self.site}': dp_sgd: training changes {', '.join(changed[:3])} without a gradient, "
                "so it gets no noise and could reveal patients; use a network without such a layer"
            )

    def _leave(self, module: pl.LightningModule) -> None:
        for verb in ("training_step", "backward"):
            module.__dict__.pop(verb, None)


def _check_precision(trainer: pl.Trainer, module: nn.Module, who: str) -> None:
    """Check that weights, and so their gradients, have 32 or 64 bits.

    Raises:
        PrivacyError: naming the precision, or the first weight with fewer bits.
    """
    if trainer.precision not in _PRECISIONS:
        raise PrivacyError(
            f"{who}: precision is {trainer.precision}, in whose few bits one patient can move the sum of all "
            "by more than the clip; use 32 or bf16-mixed"
        )
    for name, parameter in trained(module).items():
        if parameter.dtype not in (torch.float32, torch.float64):
            raise PrivacyError(f"{who}: '{name}' is {parameter.dtype}, expected 32 or 64 bits: call .float()")


def check_layers(module: nn.Module, who: str = "dp_sgd") -> None:
    """Check that no layer mixes patients or keeps statistics of them.

    Raises:
        PrivacyError: naming each such layer.
    """
    bad = [
        f"{name} ({type(child).__name__})"
        for name, child in module.named_modules()
        if isinstance(child, _MIXING)
        or (isinstance(child, nn.modules.instancenorm._InstanceNorm) and child.track_running_stats)
    ]
    if bad:
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise PrivacyError(
            f"{who}: these layers mix patients or keep statistics of them: {', '.join(bad[:5])}{more}; build "
            "the network with group norm (networks: norm: group; medfed replaces batch norm by itself)"
        )


def _buffers(module: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.detach().clone() for name, buffer in module.named_buffers()}

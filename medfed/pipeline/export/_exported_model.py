"""What is exported: a trained network with its study, and the comparison that an export must pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch
from torch import Tensor, nn

from medfed.data.settings import Images, Table
from medfed.errors import RunError
from medfed.models.ensemble import Ensemble
from medfed.models.networks._adapters import merge_adapters
from medfed.pipeline.create_run import open_run
from medfed.pipeline.predict import load_model
from medfed.registry import kind_of
from medfed.runs.facts import RunFacts
from medfed.runs.folder import RunFolder
from medfed.runs.provenance import merges_of, trained_names
from medfed.runs.rounds import read_rounds
from medfed.study.study import Study

# Maximum difference between an export's and the module's outputs, relative to the largest output: other
# kernels add in another order, and nothing else may differ.
TOLERANCE = 1e-4
# A classifier of whole images without a patch is traced on a cube of this side.
SIDE = 32


# What an export computes, by what the task predicts.
OUTPUTS = {
    "segment": "logits",
    "classify": "probabilities",
    "multilabel": "probabilities",
    "table": "probabilities",
    "survival": "log risk",
    "other": "network output",
}


class Computed(nn.Module):
    """What an export computes: the network's outputs, for a classifier as probabilities."""

    def __init__(self, network: nn.Module, probabilities: bool, *, each: bool = False) -> None:
        """With `each`, every output has a probability of its own (several findings per image)."""
        super().__init__()
        self.network = network
        self.probabilities = probabilities
        self.each = each

    def forward(self, *inputs: Tensor) -> Tensor:
        outputs: Tensor = self.network(*inputs)
        if not self.probabilities:
            return outputs
        if self.each:
            return outputs.sigmoid()
        if outputs.shape[1] == 1:
            return torch.cat([(-outputs).sigmoid(), outputs.sigmoid()], dim=1)
        return outputs.softmax(dim=1)


@dataclass(frozen=True)
class ExportedModel:
    """A model to export, with its study and the run's facts.

    shape: of one image or row.  columns: what each number of the second input is, if the network also takes
    columns of a table beside the image.  trained: the hospitals with a merged
    update, and from which round on those that came later.
    """

    study: Study
    facts: RunFacts
    model: str
    computed: Computed
    shape: tuple[int, ...]
    columns: tuple[str, ...] = ()
    trained: tuple[str, ...] = ()

    @property
    def trained_by(self) -> str:
        """Who trained the model, as the run's merges say; of a hospital's own model, that hospital."""
        kind, _, site = self.model.partition(":")
        if kind == "local":
            return f"at one hospital, {site}"
        if self.facts.own:
            return "over the hospitals whose updates its hub merged, which the hub's run folder names"
        number = len(self.trained)
        over = f"over {number} hospital{'' if number == 1 else 's'} ({', '.join(self.trained)})"
        return f"on the pooled cases of {len(self.facts.sites)} hospitals" if kind == "pooled" else over

    @property
    def classes(self) -> tuple[str, ...]:
        """The task's classes; none for survival."""
        return tuple(getattr(self.study.task, "classes", ()))

    @property
    def output(self) -> str:
        """What the model's output is."""
        return OUTPUTS[self.study.task.predicts]

    @property
    def _removed(self) -> Mapping[str, float | str]:
        """Which components the run removes of masks."""
        rules = getattr(self.study.task, "postprocess", {})
        return {} if isinstance(rules, str) else rules

    def example(self, batch: int, seed: int = 0) -> Tensor:
        """Return random inputs (batch, ...) of the right shape."""
        return torch.randn((batch, *self.shape), generator=torch.Generator().manual_seed(seed))

    def inputs(self, batch: int, seed: int = 0) -> tuple[Tensor, ...]:
        """Return random inputs of the network: (batch, ...), and (batch, columns) if it takes a table, "
        "too."""
        image = self.example(batch, seed)
        if not self.columns:
            return (image,)
        generator = torch.Generator().manual_seed(seed + 1)
        return image, torch.randn((batch, len(self.columns)), generator=generator)

    @property
    def input_names(self) -> tuple[str, ...]:
        """The names of the inputs in the exported file."""
        return ("input", "tabular") if self.columns else ("input",)

    def check(self, run: Callable[..., Tensor], what: str) -> float:
        """Return the maximum difference between an export's outputs and the module's, for one and two inputs.

        Raises:
            RunError: if the difference is more than rounding, or the shapes differ.
        """
        worst = 0.0
        for batch, seed in ((1, 1), (2, 2)):
            inputs = self.inputs(batch, seed)
            with torch.inference_mode():
                expected = self.computed(*inputs)
            outputs = run(*inputs)
            if outputs.shape != expected.shape:
                raise RunError(
                    f"export to {what}: outputs of shape {tuple(outputs.shape)}, not {tuple(expected.shape)}"
                )
            scale = max(float(expected.abs().max()), 1.0)
            worst = max(worst, float((outputs.detach() - expected).abs().max()) / scale)
        if not worst <= TOLERANCE:
            raise RunError(
                f"export to {what}: its outputs differ from the model's by {worst:.2g} of the largest one, "
                f"at most {TOLERANCE:g} is rounding; the network has something that {what} computes "
                "differently"
            )
        return worst

    def describe(self, difference: float) -> bytes:
        """Return a description of the exported file as JSON."""
        about = {
            "study": self.study.name,
            "digest": self.facts.digest,
            "model": self.model,
            "trained": self.trained_by,
            "input": ["batch", *self.shape],
            **({"tabular": self.columns} if self.columns else {}),
            "output": self.output,
            "classes": self.classes,
            # Who uses the file mirrors, if the measured model did: the file holds the network alone.
            **({"mirror": mirror} if (mirror := getattr(self.study.task, "mirror", ())) else {}),
            # Likewise it removes the components that the measured masks are without.
            **({"postprocess": dict(rules)} if (rules := self._removed) else {}),
            "data": msgspec.to_builtins(self.study.data),
            "largest_difference_from_the_model": difference,
            "intended_use": "research; not a medical device",
        }
        return msgspec.json.format(msgspec.json.encode(about), indent=2)


def exported_model(run: str | Path | RunFolder, model: str) -> ExportedModel:
    """Return a run's model, ready to be exported.

    Raises:
        RunError: if this is not a run folder, or it has no such model.
    """
    folder, facts, study = open_run(run)
    module = load_model(study, folder, model)
    if isinstance(module, Ensemble):
        raise RunError(
            f"export: '{model}' is the mean of {len(module.members)} models, the folds of a "
            "cross-validation, and an exported model is one network; export one fold's run, or predict "
            "with medfed predict"
        )
    network = module.network
    assert isinstance(network, nn.Module)
    merge_adapters(network)
    data = study.data
    if isinstance(data, Table):
        shape: tuple[int, ...] = (data.inputs,)
    elif not isinstance(data, Images):
        raise RunError(
            f"export: the study's data are of its own data module '{kind_of(data)}', and medfed does not "
            "know what its network takes; export the network of the run's checkpoint yourself"
        )
    else:
        shape = (data.inputs, *(data.patch or (SIDE,) * data.spatial_dims))
    predicts = study.task.predicts
    computed = Computed(network, OUTPUTS[predicts] == "probabilities", each=predicts == "multilabel").eval()
    beside = getattr(data, "table", None)
    columns = beside.input_names if beside is not None else ()
    trained = tuple(trained_names(merges_of(folder), read_rounds(folder.rounds)))
    return ExportedModel(study, facts, model, computed, shape, columns, trained)

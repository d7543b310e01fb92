"""Every network made private: a batch of patients gives the gradients of each one alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from medfed import registry as kinds
from medfed.federation.patient_gradients import many_gradients, single_gradient, trained
from medfed.federation.private_training import check_layers
from medfed.models.networks import Network, replace_batch_norms
from medfed.models.networks._adapters import prepare_training
from medfed.models.tasks import Training
from medfed.study.study import Lora
from medfed.testing._networks import FEATURES, INPUTS, OUTPUTS, installed, small, smallest

torch.set_num_threads(1)

TASKS = {"segment": "segment", "classify": "classify", "table": "tabular"}
OPTIMISER, SCHEDULE = kinds.kinds("optimisers")["adamw"](), kinds.kinds("schedules")["constant"]()


# Networks that grow from sums have no gradients; a study of one refuses dp_sgd.
@pytest.fixture(params=sorted(name for name in installed() if not small(name).grows_from_sums))
def network(request: pytest.FixtureRequest) -> Network:
    return small(request.param)


def module_and_batches(network: Network, patients: int = 3) -> tuple[Any, list[dict[str, Any]]]:
    size = smallest(network)
    needs = next(kind for kind in network.serves if kind in TASKS)
    torch.manual_seed(0)
    inside = FEATURES if size is None else INPUTS
    classes = tuple(f"class{number}" for number in range(OUTPUTS))
    task = kinds.kinds("tasks")[TASKS[needs]](classes=classes)
    built: nn.Module = replace_batch_norms(network.build(inside, OUTPUTS, size), "group")
    module = task.module(built, Training(OPTIMISER, SCHEDULE, epochs=1, patch=size))
    # Without dropout: its masks differ from call to call, as they should.
    module.eval()
    generator = torch.Generator().manual_seed(1)
    batches = []
    for _ in range(patients):
        batch: dict[str, Any] = {"case": ["a", "b"]}
        if size is None:
            batch["features"] = torch.randn((2, FEATURES), generator=generator)
        else:
            batch["image"] = torch.randn((2, INPUTS, *size), generator=generator)
        if needs == "segment":
            batch["label"] = torch.randint(0, OUTPUTS, (2, 1, *size), generator=generator)
        else:
            batch["target"] = torch.randint(0, OUTPUTS, (2,), generator=generator)
        batches.append(batch)
    return module, batches


def flat(gradients: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([gradient.double().reshape(-1) for gradient in gradients])


@pytest.mark.slow
def test_patients_at_once_have_the_gradients_of_each_alone(network: Network) -> None:
    module, batches = module_and_batches(network)
    check_layers(module)
    gradients, losses = many_gradients(module, batches)
    for number, batch in enumerate(batches):
        alone, loss = single_gradient(module, batch)
        # And by the way anyone would take: a backward pass of this patient's loss by itself.
        module.zero_grad()
        module.loss(batch).backward()
        parameters = trained(module).values()
        plain = flat([torch.zeros_like(p) if p.grad is None else p.grad for p in parameters])
        assert float(plain.norm()) > 0
        # Of the whole gradient's length: a bias before a norm has none but rounding.
        assert float((flat([one[0] for one in alone]) - plain).norm() / plain.norm()) < 1e-5
        assert float((flat([many[number] for many in gradients]) - plain).norm() / plain.norm()) < 1e-3
        torch.testing.assert_close(losses[number], loss, rtol=1e-4, atol=1e-5)


PARTS = {
    "norms": (None, ("norm",)),
    "norms and head": (None, ("norm", "head")),
    "adapters and norms": (Lora(rank=1, also=("norm",)), ()),
    "adapters, norms and head": (Lora(rank=1), ()),
}


@pytest.mark.parametrize("part", PARTS)
def test_patients_at_once_have_the_gradients_of_each_alone_in_every_part(part: str) -> None:
    module, batches = module_and_batches(small("unet"))
    lora, only = PARTS[part]
    prepare_training(module.network, None, lora, only, small("unet").head)
    names = trained(module)
    assert 0 < sum(p.numel() for p in names.values()) < sum(p.numel() for p in module.parameters())
    for parameter in names.values():  # B starts at zero
        torch.nn.init.normal_(parameter, std=0.1)
    gradients, _ = many_gradients(module, batches)
    for number, batch in enumerate(batches):
        alone = flat([one[0] for one in single_gradient(module, batch)[0]])
        assert float(alone.norm()) > 0
        together = flat([many[number] for many in gradients])
        assert float((together - alone).norm() / alone.norm()) < 1e-3


def test_no_patient_reaches_another(network: Network) -> None:
    # The same patients in another company have the same outputs: nothing in the network mixes a batch.
    module, batches = module_and_batches(network, patients=2)
    module.train()
    for child in module.modules():
        if isinstance(child, nn.Dropout | nn.Dropout2d | nn.Dropout3d):
            child.eval()
        if hasattr(child, "drop_connect_rate"):
            child.drop_connect_rate = 0.0
    key = "features" if "features" in batches[0] else "image"
    with torch.no_grad():
        alone = module.network(batches[0][key])
        together = module.network(torch.cat([batches[0][key], batches[1][key]]))
    torch.testing.assert_close(together[:2], alone, rtol=1e-4, atol=1e-4)

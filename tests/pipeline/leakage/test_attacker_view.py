"""The update that an attacker sees: by hand the gradient of one step, or a sum among stand-ins."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch

from medfed.data.samplers import collate
from medfed.errors import PrivacyError
from medfed.pipeline.factory import module_of
from medfed.pipeline.leakage.attacker_view import _stand_ins, loss_of, module_after, visible_update
from medfed.pipeline.suppress_warnings import suppress_warnings
from medfed.privacy import NoPrivacy
from medfed.privacy.distributed_dp import DistributedDP
from medfed.privacy.secure_sum import SecureSum
from medfed.study.reading import parse_study
from medfed.wire.weights import weights_of

RATE = 0.5
STUDY = parse_study(
    f"""\
name: rows
task: {{kind: tabular, classes: [healthy, ill]}}
network: {{kind: fully_connected, hidden: [16]}}
data: {{kind: table, target: ill, features: [a, b], standardise: none, missing: drop}}
train: {{rounds: 1, epochs: 1, batch: 4, optimiser: {{kind: sgd, lr: {RATE}, momentum: 0}}}}
sampling: {{minimum: 3}}
sites: {{north: n.csv, south: s.csv, west: w.csv}}
"""
)


def items(count: int, first: int = 0) -> list[dict[str, object]]:
    generator = torch.Generator().manual_seed(first)
    return [
        {
            "features": torch.randn(2, generator=generator),
            "target": torch.tensor(number % 2),
            "case": f"c{first + number}",
        }
        for number in range(count)
    ]


def gradient(victims) -> dict[str, torch.Tensor]:
    """Return the gradient of the mean loss over all items, by autograd."""
    module = module_of(STUDY)
    loss = torch.stack([loss_of(module, collate([one])) for one in victims]).mean()
    names = [name for name, _ in module.named_parameters()]
    return dict(zip(names, torch.autograd.grad(loss, list(module.parameters())), strict=True))


def test_without_protection_it_is_the_gradient_times_the_rate() -> None:
    victims, start = items(4), weights_of(module_of(STUDY))
    with suppress_warnings():
        seen = visible_update(STUDY, victims, [], NoPrivacy(), start)
    for name, slope in gradient(victims).items():
        torch.testing.assert_close(seen[name].float(), -RATE * slope, rtol=1e-4, atol=1e-6)


def test_under_a_secure_sum_it_is_the_mean_over_the_stand_ins_too() -> None:
    victims, rest, start = items(4), items(8, first=4), weights_of(module_of(STUDY))
    with suppress_warnings():
        seen = visible_update(STUDY, victims, rest, SecureSum(), start)
    parts = [gradient(part) for part in (victims, rest[0::2], rest[1::2])]
    for name in parts[0]:
        mean = torch.stack([part[name] for part in parts]).mean(0)
        torch.testing.assert_close(seen[name].float(), -RATE * mean, rtol=1e-4, atol=1e-6)


def test_too_few_cases_for_stand_ins_are_refused() -> None:
    with pytest.raises(
        PrivacyError, match=r"^an attacker sees only the sites' sum, and too few cases stand in"
    ):
        visible_update(STUDY, items(4), items(3), SecureSum(), {})


def test_stand_ins_are_disjoint_parts_of_at_least_a_batch() -> None:
    parts = _stand_ins(list(range(9)), 2, 4)  # type: ignore[arg-type]
    assert parts == [[0, 2, 4, 6, 8], [1, 3, 5, 7]]
    assert _stand_ins(list(range(7)), 2, 4) == [list(range(7))]  # type: ignore[arg-type]
    assert _stand_ins(list(range(3)), 2, 4) == []  # type: ignore[arg-type]


def test_a_module_after_an_update_is_the_start_plus_the_difference() -> None:
    start = weights_of(module_of(STUDY))
    name = next(iter(start))
    after = weights_of(module_after(STUDY, start, {name: torch.ones_like(start[name])}))
    torch.testing.assert_close(after[name], start[name] + 1)
    assert all(torch.equal(after[other], start[other]) for other in start if other != name)


def test_a_training_step_without_a_loss_is_refused() -> None:
    class Odd(pl.LightningModule):
        def training_step(self, batch, index):
            return batch

    assert loss_of(Odd(), {"loss": torch.tensor(2.0)}) == 2  # type: ignore[dict-item]
    with pytest.raises(
        PrivacyError, match=r"^Odd: training_step returned NoneType; a leakage audit needs the"
    ):
        loss_of(Odd(), None)  # type: ignore[arg-type]


def test_fewer_parts_than_the_mechanism_sums_are_refused() -> None:
    privacy = DistributedDP(epsilon=8, accountant="rdp").planned(2)
    with pytest.raises(PrivacyError, match=r"a sum of at least 3 sites only, and the cases make 2 parts"):
        visible_update(STUDY, items(4), items(4), privacy, {})

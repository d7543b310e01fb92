"""The contract of a local method names what naive ones break."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from contract import CHECKS_OF_EVERY_KIND, broken

from medfed.local_training import LocalMethod
from medfed.testing import check_local_method

torch.set_num_threads(1)


class Decay(LocalMethod, frozen=True, tag="decay"):
    """Weight decay as a term of the loss."""

    strength: float = 1e-3

    def loss(self, module, module_loss, state):
        return module_loss() + self.strength * sum(p.square().sum() for p in module.parameters())


BATCHES: list[int] = []


class Remembering(LocalMethod, frozen=True, tag="remembering"):
    """Shrinks the step with each batch that this process has seen, and keeps the count outside the state."""

    def loss(self, module, module_loss, state):
        BATCHES.append(1)
        return module_loss() / len(BATCHES)


class Ascending(LocalMethod, frozen=True, tag="ascending"):
    """Follows the gradient upwards."""

    def gradient(self, module, state):
        for parameter in module.parameters():
            parameter.grad.neg_()


class Claiming(LocalMethod, frozen=True, tag="claiming"):
    """Declares a group that it does not send, and a rule that does not know it."""

    sends: ClassVar[tuple[str, ...]] = ("control",)
    rules: ClassVar[tuple[str, ...]] = ("fedavg",)


class Impatient(LocalMethod, frozen=True, tag="impatient"):
    """Expects an optimiser step after every batch."""

    def step(self, step, state):
        assert "waits" not in state, "the batch before was not stepped on"
        return {"waits": {"it": torch.ones(())}}

    def gradient(self, module, state):
        state.pop("waits")


class Particular(LocalMethod, frozen=True, tag="particular"):
    """Knows the layers of one module by name."""

    def loss(self, module, module_loss, state):
        return module_loss() + 0 * module.body[0].weight.sum()


ORDER, RESUMES = "the_order_of_sites_changes_no_bit", "a_failed_run_resumes_to_the_same_bits"
WRONG = {
    Remembering: {ORDER, RESUMES},
    Ascending: {"one_site_alone_learns"},
    Claiming: {"what_leaves_is_what_it_declares", "its_rules_and_it_name_each_other"},
    Impatient: {"it_works_with_an_accumulated_gradient"},
    Particular: {"it_works_under_every_network"},
}


@pytest.mark.slow
def test_a_right_one_passes() -> None:
    check_local_method(Decay())


def test_each_check_is_broken_by_one_of_them() -> None:
    assert set().union(*WRONG.values(), CHECKS_OF_EVERY_KIND) == set(check_local_method.checks)


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind is Remembering)) for kind in WRONG]
)
def test_a_wrong_one_is_named(kind: type[LocalMethod]) -> None:
    others = set(check_local_method.checks) - WRONG[kind]
    assert broken(check_local_method, kind(), skip=others) == WRONG[kind]

"""What every privacy mechanism keeps: names, shapes and dtypes; what it says of itself; and
nothing beside the update.

The mechanisms are those of the registry, so a new file is tested without an edit here. A kind whose
settings have no default gives some in `example`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import torch
from simulated import simulated
from torch import Tensor

from medfed import registry as kinds
from medfed.aggregation import State
from medfed.aggregation.fedavg import FedAvg
from medfed.exchange import MemoryExchange
from medfed.federation.checkpoints import load_latest_checkpoint
from medfed.federation.round import SiteConnection, receive, send_update
from medfed.privacy import GROUP, NoPrivacy, Privacy
from medfed.privacy.accounting.accountant import MechanismSteps
from medfed.wire.update import GlobalModel, Update, check_update
from medfed.wire.weights import Difference, Weights, digest

KINDS = kinds.kinds("privacy")
SITES = ("alfa", "bravo", "charlie", "delta")
SCALARS = {"train/steps": 6.0, "train/loss": 0.7, "val/dice": 0.5, "privacy/epsilon": 1.5}
ROUNDS = 5


@pytest.fixture(params=sorted(KINDS))
def privacy(request: pytest.FixtureRequest) -> Privacy:
    if request.param == "ckks":
        pytest.importorskip("tenseal")
    record = KINDS[request.param]
    return msgspec.convert({"kind": request.param, **record.example}, record).planned(ROUNDS)  # type: ignore[attr-defined]


def model(seed: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {
        "net.0.weight": torch.randn(4, 3, 2, generator=g),
        "net.0.bias": torch.randn(4, generator=g),
        "temperature": torch.randn((), generator=g),
        "nothing": torch.zeros(0, 3),
        "double.weight": torch.randn(3, generator=g).double(),
        "half.weight": torch.randn(3, generator=g).half(),
    }


def updates(weights: Mapping[str, Tensor]) -> list[Update]:
    made = []
    for number, site in enumerate(SITES):
        moved = model(100 + number)
        local = {name: (t + 0.01 * moved[name]).to(t.dtype) for name, t in weights.items()}
        made.append(Update(site, 1, Difference(local, weights), 10 + number, SCALARS))
    return made


SEEN: list[list[Update]] = []


class Sees(FedAvg, tag="sees", frozen=True):
    """FedAvg that keeps what it was given to merge."""

    def merge(self, updates: Iterable[Update], state: State, weights: Weights) -> tuple[dict, State]:
        given = list(updates)
        SEEN.append(given)
        return super().merge(given, state, weights)


def conducted(
    privacy: Privacy, weights: Weights, folder: Path | None = None
) -> tuple[GlobalModel, list[Update]]:
    """Return what a round of four sites comes to, and what the rule was given, over a real exchange."""
    SEEN.clear()

    def site(update: Update) -> Callable[[MemoryExchange], None]:
        def work(exchange: MemoryExchange) -> None:
            channel = SiteConnection(update.site, exchange, privacy)
            received = receive(channel, 0)
            allowed = {name: value for name, value in SCALARS.items() if name in privacy.scalars}
            sent = replace(update, round=1, scalars={**allowed, "train/loss": 0.7, "train/steps": 6.0})
            send_update(channel, sent, received.weights)
            received = receive(channel, 1)
            closing = Update(update.site, 2, {}, 0, {"val/dice": 0.5})
            send_update(channel, closing, received.weights)

        return work

    final = simulated(
        {update.site: site(update) for update in updates(weights)},
        weights,
        rule=Sees(),
        rounds=1,
        privacy=privacy,
        minimum=len(SITES),
        folder=folder,
    )
    return final, SEEN[0]


def form(tensors: Mapping[str, Tensor]) -> dict[str, tuple]:
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}


def test_the_merged_model_has_the_models_names_shapes_and_dtypes_and_is_finite(privacy: Privacy) -> None:
    weights = model(0)
    final, given = conducted(privacy, weights)
    assert form(final.weights) == form(weights)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in final.weights.values())
    assert given
    for update in given:
        check_update(update, weights)


def test_without_noise_the_merged_model_is_that_of_no_privacy(privacy: Privacy) -> None:
    if privacy.round_cost() is not None:
        pytest.skip("it clips and adds noise to an update")
    weights = model(0)
    plain, _ = conducted(NoPrivacy(), weights)
    found, _ = conducted(privacy, weights)
    for name, tensor in plain.weights.items():
        torch.testing.assert_close(found.weights[name], tensor, rtol=1e-3, atol=1e-5)


def test_inputs_are_left_as_they_were(privacy: Privacy) -> None:
    weights = model(0)
    before = digest(weights)
    conducted(privacy, weights)
    assert digest(weights) == before


def test_it_says_truly_whether_the_rule_sees_each_update(privacy: Privacy) -> None:
    _, given = conducted(privacy, model(0))
    if privacy.reveals_each_update:
        assert sorted(update.site for update in given) == sorted(SITES)
    else:
        # The rule gets one update, or several that cannot be told apart.
        assert len({digest(dict(update.delta.items())) for update in given}) == 1


def test_its_state_is_its_own_and_goes_through_the_hubs_checkpoint(privacy: Privacy, tmp_path: Path) -> None:
    state = privacy.init(model(0))
    assert all(name.startswith(GROUP) for name in state)
    conducted(privacy, model(0), tmp_path)
    checkpoint = load_latest_checkpoint(tmp_path)
    assert checkpoint is not None
    assert {name for name in checkpoint[1] if name.startswith(GROUP)} == set(state)


def test_scalars_are_never_made_up_and_loss_stays_where_privacy_is_counted(privacy: Privacy) -> None:
    allowed = privacy.filter_scalars(SCALARS)
    assert all(allowed[name] == SCALARS[name] for name in allowed)
    assert set(allowed) <= set(SCALARS)
    if privacy.round_cost() is not None or privacy.trains_privately:
        assert "train/loss" not in allowed
        assert "privacy/epsilon" in privacy.scalars
        assert allowed["privacy/epsilon"] == 1.5


def test_what_a_round_costs_is_a_charge(privacy: Privacy) -> None:
    charge = privacy.round_cost()
    assert charge is None or (isinstance(charge, MechanismSteps) and charge.noise_multiplier > 0)


def test_noise_is_drawn_anew_each_time(privacy: Privacy) -> None:
    if privacy.round_cost() is None:
        pytest.skip("it adds no noise to an update")
    weights = model(0)

    def once() -> str:
        torch.manual_seed(0)
        return digest(conducted(privacy, weights)[0].weights)

    assert once() != once()


def test_planning_again_changes_nothing(privacy: Privacy) -> None:
    assert privacy.planned(ROUNDS) == privacy


def test_notes_are_sentences(privacy: Privacy) -> None:
    assert all(isinstance(note, str) and len(note) > 10 for note in privacy.notes())


def test_it_is_a_frozen_record_that_a_study_file_can_hold(privacy: Privacy) -> None:
    assert msgspec.convert(msgspec.to_builtins(privacy), type(privacy)) == privacy
    with pytest.raises(AttributeError, match="immutable"):
        privacy.anything = 1  # type: ignore[attr-defined]


def test_its_docstring_says_what_it_does_and_against_whom(privacy: Privacy) -> None:
    words = inspect.getdoc(type(privacy)) or ""
    first = words.splitlines()[0]
    assert first.endswith(".")
    assert "hub" in words

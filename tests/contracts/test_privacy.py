"""What every privacy mechanism keeps: names, shapes and dtypes; what it says of itself; and nothing beside the update.

The mechanisms are those the folder holds, so a new file is held to this without an edit here. A kind whose settings
have no default gives some in `example`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping

import msgspec
import pytest
import torch
from torch import Tensor

from medfed import kinds
from medfed.accounting import Charge
from medfed.privacy import GROUP, Privacy
from medfed.update import Update, check
from medfed.weights import Difference, digest

KINDS = kinds.kinds("privacy")
SITES = ("alfa", "bravo", "charlie", "delta")
SCALARS = {"train/steps": 6.0, "train/loss": 0.7, "val/dice": 0.5, "privacy/epsilon": 1.5}
ROUNDS = 5


@pytest.fixture(params=sorted(KINDS))
def privacy(request: pytest.FixtureRequest) -> Privacy:
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
        made.append(Update(site, 3, Difference(local, weights), 10 + number, SCALARS))
    return made


def protected(privacy: Privacy, weights: Mapping[str, Tensor]) -> list[Update]:
    return [privacy.protect(check(update, weights), weights) for update in updates(weights)]


def form(tensors: Mapping[str, Tensor]) -> dict[str, tuple]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def test_what_is_merged_has_the_models_names_and_shapes_and_is_finite(privacy: Privacy) -> None:
    weights = model(0)
    revealed = privacy.reveal(protected(privacy, weights), weights)
    released, _ = privacy.release(revealed, privacy.init(weights), weights)
    assert released
    for update in released:
        assert form(update.delta) == form(weights)
        check(update, weights)
        assert update.round == 3


def test_the_model_that_is_merged_keeps_its_dtypes(privacy: Privacy) -> None:
    from medfed.rules.fedavg import FedAvg

    weights = model(0)
    revealed = privacy.reveal(protected(privacy, weights), weights)
    released, _ = privacy.release(revealed, privacy.init(weights), weights)
    merged, _ = FedAvg().merge(released, {}, weights)
    assert {n: t.dtype for n, t in merged.items()} == {n: t.dtype for n, t in weights.items()}


def test_inputs_are_left_as_they_were(privacy: Privacy) -> None:
    weights = model(0)
    before = digest(weights)
    some = updates(weights)
    held = [digest(dict(update.delta.items())) for update in some]
    revealed = privacy.reveal([privacy.protect(update, weights) for update in some], weights)
    privacy.release(revealed, privacy.init(weights), weights)
    assert digest(weights) == before
    assert [digest(dict(update.delta.items())) for update in some] == held


def test_it_says_truly_whether_the_hub_sees_each_update(privacy: Privacy) -> None:
    weights = model(0)
    revealed = privacy.reveal(protected(privacy, weights), weights)
    released, _ = privacy.release(revealed, privacy.init(weights), weights)
    if privacy.reveals_each_update:
        assert sorted(update.site for update in released) == sorted(SITES)
    else:
        # The rule gets one update, or none that could be told apart from it.
        assert len(released) == 1 or len({digest(dict(u.delta.items())) for u in released}) == 1


def test_its_state_is_its_own_and_goes_through_a_file(privacy: Privacy) -> None:
    from safetensors.torch import load, save

    weights = model(0)
    state = privacy.init(weights)
    assert all(name.startswith(GROUP) for name in state)
    read = {group: load(save(dict(tensors))) for group, tensors in state.items()}
    _, after = privacy.release(privacy.reveal(protected(privacy, weights), weights), read, weights)
    assert set(after) == set(state)


def test_scalars_are_never_made_up_and_what_is_public_stays(privacy: Privacy) -> None:
    told = privacy.tell(SCALARS)
    assert set(told) <= set(SCALARS)
    assert all(told[name] == SCALARS[name] for name in told)
    assert told["privacy/epsilon"] == 1.5
    if privacy.charge() is not None or privacy.trains_privately:
        assert "train/loss" not in told
    assert "train/loss" not in {
        name for u in protected(privacy, model(0)) for name in privacy.tell(u.scalars)
    } or ("train/loss" in told)


def test_what_a_round_costs_is_a_charge(privacy: Privacy) -> None:
    charge = privacy.charge()
    assert charge is None or (isinstance(charge, Charge) and charge.noise_multiplier > 0)


def test_noise_is_drawn_anew_each_time(privacy: Privacy) -> None:
    if privacy.charge() is None:
        pytest.skip("it adds no noise to an update")
    weights = model(0)

    def once() -> list[str]:
        torch.manual_seed(0)
        revealed = privacy.reveal(protected(privacy, weights), weights)
        released, _ = privacy.release(revealed, privacy.init(weights), weights)
        return [digest(dict(update.delta.items())) for update in released]

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

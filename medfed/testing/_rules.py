"""The contract of an aggregation rule.

The order of arrival does not matter; inputs, names, shapes and dtypes stay; the result is finite; errors name
the site.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import TypedDict

import torch
from torch import Tensor

from medfed.aggregation import Merged, Rule
from medfed.errors import RuleError
from medfed.testing._contract import OF_EVERY_KIND, Contract, NotApplicable, raises
from medfed.wire.update import Update
from medfed.wire.weights import Difference, Weights, digest

check_rule: Contract[Rule] = Contract("rule", OF_EVERY_KIND)

SITES = ("alfa", "bravo", "charlie", "delta", "echo", "foxtrot", "golf")
LARGER_THAN_A_BLOCK = 140_001


class Extras(TypedDict):
    """What an update carries for a rule besides its delta."""

    scalars: dict[str, float]
    groups: dict[str, dict[str, Tensor]]


class Lazy(Mapping[str, Tensor]):
    """Tensors that are made when asked for, as from a file, and counted."""

    def __init__(self, tensors: Weights) -> None:
        self.tensors = tensors
        self.fetched: list[str] = []

    def __getitem__(self, name: str) -> Tensor:
        self.fetched.append(name)
        return self.tensors[name].clone()

    def __contains__(self, name: object) -> bool:
        return name in self.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


def model(seed: int, scale: float = 1.0) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return scale * torch.randn(shape, generator=g)

    return {
        "net.0.weight": normal(4, 3, 2),
        "net.0.bias": normal(4),
        "temperature": normal(),
        "nothing": normal(0, 3),
        "wide.weight": normal(LARGER_THAN_A_BLOCK),
        "turned.weight": normal(5, 6).t(),
        "half.weight": normal(3, 3).half(),
        "brain.weight": normal(3, 3).bfloat16(),
        "double.weight": normal(3).double(),
        "norm.running_mean": normal(4),
        "norm.running_var": normal(4).square() + 0.1,
    }


def _scalar(name: str, site: int) -> float:
    """Return a scalar of the nth site; a cluster is one of two."""
    return float(site % 2) if name == "train/cluster" else 1.0 + site


def fields(rule: Rule, seed: int) -> Extras:
    """Return what an update carries for this rule besides its delta."""
    groups = {
        group: {name: tensor.abs() for name, tensor in model(seed, 0.1).items()}
        for group in rule.needs_groups
    }
    scalars = {name: _scalar(name, seed) for name in rule.needs_scalars}
    return {"scalars": scalars, "groups": groups}


def updates_for(rule: Rule, weights: Weights, lazy: bool = False, step: float = 0.01) -> list[Update]:
    """Return updates of as many sites as the rule takes: differences of whole models, and one bare delta."""
    made = []
    for number, site in enumerate(SITES[: rule.max_sites]):
        moved = model(100 + number)
        local = {
            name: (tensor.double() * (1 - step) + step * moved[name].double()).to(tensor.dtype)
            for name, tensor in weights.items()
        }
        held = Lazy(local) if lazy else local
        delta: Weights = Difference(held, weights)
        if number == 1:
            bare = {name: local[name].float() - tensor.float() for name, tensor in weights.items()}
            delta = Lazy(bare) if lazy else bare
        made.append(Update(site, 3, delta, 10 + 3 * number, **fields(rule, number)))
    return made


def merge(rule: Rule, updates: list[Update], weights: Weights) -> Merged:
    return rule.merge(updates, rule.init(weights), weights)


def fingerprint(result: Merged) -> tuple[str, dict[str, str]]:
    new, state = result
    return digest(new), {group: digest(tensors) for group, tensors in state.items()}


@check_rule.check
def order_of_arrival_changes_no_bit(rule: Rule) -> None:
    weights = model(0)
    updates = updates_for(rule, weights)
    expected = fingerprint(merge(rule, updates, weights))
    for seed in range(3):
        shuffled = random.Random(seed).sample(updates, len(updates))
        assert fingerprint(merge(rule, shuffled, weights)) == expected


@check_rule.check
def a_generator_of_lazily_loaded_updates_gives_the_same_bits(rule: Rule) -> None:
    weights = model(0)
    expected = fingerprint(merge(rule, updates_for(rule, weights), weights))
    lazy = updates_for(rule, weights, lazy=True)
    found = rule.merge((update for update in lazy), rule.init(weights), weights)
    assert fingerprint(found) == expected


@check_rule.check
def each_lazy_tensor_is_fetched_once_a_pass(rule: Rule) -> None:
    weights = model(0)
    lazy = updates_for(rule, weights, lazy=True)
    merge(rule, lazy, weights)
    for update in lazy:
        held = update.delta.minuend if isinstance(update.delta, Difference) else update.delta
        assert isinstance(held, Lazy)
        for name in weights:
            assert held.fetched.count(name) <= 2, f"{name} of {update.site}"


@check_rule.check
def a_copy_of_the_global_weights_gives_the_same_bits(rule: Rule) -> None:
    # A hub that has read them from a file subtracts a copy; one in memory subtracts the weights themselves.
    weights = model(0)
    updates = updates_for(rule, weights)
    copied = [
        with_delta(u, Difference(u.delta.minuend, {k: v.clone() for k, v in weights.items()}))
        if isinstance(u.delta, Difference)
        else u
        for u in updates
    ]
    assert fingerprint(merge(rule, copied, weights)) == fingerprint(merge(rule, updates, weights))


def with_delta(update: Update, delta: Weights) -> Update:
    return Update(update.site, update.round, delta, update.examples, update.scalars, update.groups)


@check_rule.check
def no_input_is_changed(rule: Rule) -> None:
    weights = model(0)
    updates = updates_for(rule, weights)
    state = rule.init(weights)

    def everything() -> list[str]:
        held = [u.delta.minuend if isinstance(u.delta, Difference) else u.delta for u in updates]
        groups = [tensors for u in updates for tensors in u.groups.values()]
        return [digest(w) for w in [weights, *held, *groups, *state.values()]]

    before = everything()
    new, after = rule.merge(updates, state, weights)
    assert everything() == before
    new["wide.weight"].add_(1)
    for group in after.values():
        for tensor in group.values():
            tensor.add_(1)
    assert everything() == before, "a result shares memory with an input"


@check_rule.check
def names_shapes_and_dtypes_stay(rule: Rule) -> None:
    weights = model(0)
    new, _ = merge(rule, updates_for(rule, weights), weights)
    assert list(new) == list(weights)
    assert {k: (v.shape, v.dtype) for k, v in new.items()} == {
        k: (v.shape, v.dtype) for k, v in weights.items()
    }


@check_rule.check
def state_goes_through_a_file_between_rounds(rule: Rule) -> None:
    from safetensors.torch import load, save

    weights = model(0)
    updates = updates_for(rule, weights)
    new, state = merge(rule, updates, weights)
    expected = fingerprint(rule.merge(updates, state, new))
    read = {
        group: load(save({name: tensor.contiguous() for name, tensor in tensors.items()}))
        for group, tensors in state.items()
    }
    assert fingerprint(rule.merge(updates, read, new)) == expected
    assert {group: set(tensors) for group, tensors in state.items()} == {
        group: set(tensors) for group, tensors in rule.init(weights).items()
    }


@check_rule.check
def what_it_broadcasts_is_in_its_state(rule: Rule) -> None:
    assert set(rule.broadcast) <= set(rule.init(model(0)))


@check_rule.check
def updates_of_zero_move_nothing(rule: Rule) -> None:
    weights = model(0)
    updates = updates_for(rule, weights, step=0.0)
    updates = [u if isinstance(u.delta, Difference) else with_delta(u, zeros(weights)) for u in updates]
    new, state = merge(rule, updates, weights)
    for _ in range(2):
        for name, tensor in weights.items():
            torch.testing.assert_close(new[name], tensor, rtol=1e-7, atol=0)
        new, state = rule.merge(updates, state, weights)


def zeros(weights: Weights) -> dict[str, Tensor]:
    return {name: torch.zeros_like(tensor) for name, tensor in weights.items()}


@check_rule.check
def updates_times_a_number_move_the_model_that_many_times_as_far(rule: Rule) -> None:
    weights = {"w": torch.randn(40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)}
    deltas = torch.randn(7, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 0.01

    def moved(scale: float) -> Tensor:
        updates = [
            Update(site, 3, {"w": scale * delta}, 10, **_scalars_and_groups(rule, weights))
            for site, delta in zip(SITES[: rule.max_sites], deltas, strict=False)
        ]
        return merge(rule, updates, weights)[0]["w"] - weights["w"]

    for factor in (0.5, 4.0):
        torch.testing.assert_close(moved(factor), factor * moved(1.0), rtol=1e-4, atol=1e-9)


@check_rule.check
def one_site_alone_gives_a_finite_model_that_lies_its_way(rule: Rule) -> None:
    if rule.min_sites > 1:
        raise NotApplicable("it needs more sites")
    weights = {"w": torch.randn(40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)}
    delta = 0.01 * torch.randn(40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    update = Update("alfa", 1, {"w": delta}, 10, **_scalars_and_groups(rule, weights))
    moved = merge(rule, [update], weights)[0]["w"] - weights["w"]
    assert bool(torch.isfinite(moved).all())
    assert float(torch.cosine_similarity(moved, delta, dim=0)) > 0.5


@check_rule.check
def sites_that_agree_in_everything_are_followed(rule: Rule) -> None:
    """Ties everywhere: the same update from all sites moves the model its way, and nothing
    is divided by zero.
    """
    weights = {"w": torch.randn(40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)}
    delta = 0.01 * torch.randn(40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    updates = [
        Update(site, 1, {"w": delta}, 10, **_scalars_and_groups(rule, weights))
        for site in SITES[: rule.max_sites]
    ]
    moved = merge(rule, updates, weights)[0]["w"] - weights["w"]
    assert bool(torch.isfinite(moved).all())
    assert float(torch.cosine_similarity(moved, delta, dim=0)) > 0.5


def _scalars_and_groups(rule: Rule, weights: Weights) -> Extras:
    scalars = {name: _scalar(name, 0) for name in rule.needs_scalars}
    return {"scalars": scalars, "groups": {group: zeros(weights) for group in rule.needs_groups}}


@check_rule.check
def a_number_that_multiplies_or_divides_updates_is_declared(rule: Rule) -> None:
    """A site may state any number: the hub compares those that a rule weights by (`multiplies_by`,
    `divides_by`) with the other sites'. One that is declared as neither may be a million times larger or
    smaller, and the model still neither is one site's alone nor moves further than every update.
    """
    if not rule.needs_scalars:
        raise NotApplicable("it needs no number of a site")
    weights = {"w": torch.zeros(3, dtype=torch.float64)}
    for name in rule.needs_scalars:
        for factor, declared in ((1e6, rule.multiplies_by), (1e-6, rule.divides_by)):
            if name in declared:
                continue
            updates = []
            for number, site in enumerate(SITES[: rule.max_sites]):
                scalars = {
                    one: _scalar(one, 1) * (factor if number == 0 else 1) for one in rule.needs_scalars
                }
                delta = {"w": torch.eye(len(SITES), 3, dtype=torch.float64)[number]}
                groups = {group: zeros(weights) for group in rule.needs_groups}
                updates.append(Update(site, 3, delta, 10, scalars, groups))
            try:
                for update in updates:
                    rule.check(update)
                moved = merge(rule, updates, weights)[0]["w"]
            except RuleError:
                continue
            assert float(moved.abs().max()) < 10, f"{name} times {factor:g} multiplies updates"
            alone = len(updates) > 1 and float(moved[0]) > 10 * float(moved[1:].abs().sum())
            assert not alone, f"{name} times {factor:g} leaves one site's update alone"


@check_rule.check
def huge_updates_give_finite_weights_or_an_error_that_names_a_site(rule: Rule) -> None:
    weights = {name: t for name, t in model(0).items() if t.dtype == torch.float32}
    for size in (1e4, 1e15, 1e30, 3e38):
        for huge_sites in (1, len(SITES)):
            _merge_huge(rule, weights, size, huge_sites)


def _merge_huge(rule: Rule, weights: Weights, size: float, huge_sites: int) -> None:
    updates = updates_for(rule, weights)
    for index in range(min(huge_sites, len(updates))):
        sign = -1 if index % 2 else 1
        huge = {name: torch.full_like(tensor, sign * size) for name, tensor in weights.items()}
        updates[index] = with_delta(updates[index], Difference(huge, weights))
    try:
        new, state = merge(rule, updates, weights)
        new, state = rule.merge(updates, state, new)
    except RuleError as error:
        refusal = str(error)
        assert any(f"'{update.site}'" in refusal for update in updates), refusal
        assert "round 3" in refusal, refusal
        return
    for tensors in (new, *state.values()):
        for name, tensor in tensors.items():
            assert bool(torch.isfinite(tensor).all()), f"{name} at updates of {size:g}"


@check_rule.check
def what_is_not_finite_is_never_merged_in_silence(rule: Rule) -> None:
    weights = {name: t for name, t in model(0).items() if t.dtype == torch.float32}
    updates = updates_for(rule, weights)
    bad = {name: torch.full_like(tensor, float("nan")) for name, tensor in weights.items()}
    updates[0] = with_delta(updates[0], Difference(bad, weights))
    with raises(RuleError, r"'alfa'"):
        merge(rule, updates, weights)


@check_rule.check
def sites_that_trained_on_nothing_have_no_say(rule: Rule) -> None:
    weights = model(0)
    updates = updates_for(rule, weights)
    far = {name: (tensor.double() + 100).to(tensor.dtype) for name, tensor in weights.items()}
    idle = Update("zulu", 3, Difference(far, weights), 0, **fields(rule, 0))
    watches = Update("yankee", 3, {}, 0, {"val/dice": 0.5})
    expected = fingerprint(merge(rule, updates, weights))
    assert fingerprint(merge(rule, [*updates, idle, watches], weights)) == expected


@check_rule.check
def no_update_is_an_error(rule: Rule) -> None:
    weights = model(0)
    with raises(RuleError, "no site answered"):
        merge(rule, [], weights)
    with raises(RuleError, "0 examples together"):
        merge(rule, [Update("alfa", 3, zeros(weights), 0)], weights)


@check_rule.check
def two_updates_of_one_site_and_round_are_an_error(rule: Rule) -> None:
    weights = model(0)
    updates = updates_for(rule, weights)
    with raises(RuleError, "two updates of site 'alfa' for round 3"):
        merge(rule, [*updates, updates[0]], weights)


@check_rule.check
def an_update_of_another_shape_is_an_error(rule: Rule) -> None:
    weights = {"w": torch.zeros(2, 3)}
    updates = [
        Update(site, 3, {"w": torch.ones(3, 2)}, 5, **fields(rule, 0) | {"groups": {}})
        for site in SITES[: rule.max_sites]
    ]
    if rule.needs_groups:
        raise NotApplicable("its groups have the model's names")
    with raises(RuleError, r"'w' has shape \(3, 2\), the global model has \(2, 3\)"):
        merge(rule, updates, weights)


@check_rule.check
def fewer_sites_than_needed_are_an_error(rule: Rule) -> None:
    if rule.min_sites == 1:
        raise NotApplicable("one site is enough")
    weights = model(0)
    few = updates_for(rule, weights)[: rule.min_sites - 1]
    with raises(RuleError, f"at least {rule.min_sites} are needed"):
        merge(rule, few, weights)
    enough = updates_for(rule, weights)[: rule.min_sites]
    merge(rule, enough, weights)


@check_rule.check
def a_rule_that_supports_secure_aggregation_needs_nothing_of_a_single_site(rule: Rule) -> None:
    if not rule.supports_secure_aggregation:
        raise NotApplicable("it needs each site's update")
    assert not rule.needs_scalars
    assert not rule.needs_groups
    assert not rule.asynchronous
    assert rule.max_sites is None
    assert rule.min_sites == 1


@check_rule.check
def a_rule_that_supports_secure_aggregation_merges_the_sum_as_the_single_updates(rule: Rule) -> None:
    """Weights and state of two rounds are equal to float64 rounding: a sum is rounded once
    more than its parts.
    """
    if not rule.supports_secure_aggregation:
        raise NotApplicable("it needs each site's update")
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: torch.randn(40, generator=generator, dtype=torch.float64).abs()
        for name in ("net.weight", "norm.running_var")
    }
    single, state = weights, rule.init(weights)
    summed, summed_state = weights, rule.init(weights)
    for number in range(2):
        deltas = [
            {name: 0.01 * torch.randn(40, generator=generator, dtype=torch.float64) for name in weights}
            for _ in SITES
        ]
        examples = [10 + 3 * index for index in range(len(SITES))]
        updates = [
            Update(site, number, delta, n) for site, delta, n in zip(SITES, deltas, examples, strict=True)
        ]
        mean = {
            name: torch.stack([n * delta[name] for delta, n in zip(deltas, examples, strict=True)]).sum(0)
            / sum(examples)
            for name in weights
        }
        single, state = rule.merge(updates, state, single)
        summed, summed_state = rule.merge([Update("sum", number, mean, sum(examples))], summed_state, summed)
    assert float((single["net.weight"] - weights["net.weight"]).abs().max()) > 1e-4
    for one, other in ((single, summed), *((state[group], summed_state[group]) for group in state)):
        assert set(one) == set(other)
        for name, tensor in one.items():
            torch.testing.assert_close(other[name], tensor, rtol=1e-12, atol=1e-15)

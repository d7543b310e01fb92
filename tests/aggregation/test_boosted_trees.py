"""Trees grown from sums over hospitals are those of all patients in one place, and scikit-learn's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.ensemble import HistGradientBoostingClassifier
from torch import Tensor

from medfed.aggregation import _tree_growing
from medfed.aggregation._tree_growing import NO_EDGE, SKETCHES, Growth
from medfed.aggregation.boosted_trees import BoostedTrees as Rule
from medfed.errors import RuleError
from medfed.models.losses import Loss
from medfed.models.losses.cox import Cox
from medfed.models.losses.cross_entropy import CrossEntropy
from medfed.models.networks import _tree_ensemble
from medfed.models.networks._tree_ensemble import TreeEnsemble
from medfed.models.networks.boosted_trees import BoostedTrees as Network
from medfed.privacy._masks import FixedPoint, Scratch, masked
from medfed.wire.update import Update
from medfed.wire.weights import Difference, Weights, digest, load, weights_of

torch.set_num_threads(1)

# The features and targets of one hospital.
Hospital = tuple[Tensor, Tensor]

NETWORK = Network(trees=6, depth=3, bins=32)
RULE = Rule(min_patients=10)
ROUNDS = SKETCHES + NETWORK.trees * NETWORK.depth


def patients(classes: int, count: int = 500) -> Hospital:
    """Return features on several scales, a twentieth of them missing, and classes that follow from them."""
    generator = np.random.default_rng(classes)
    features = generator.normal(size=(count, 5)) * [1, 10, 100, 0.01, 0] + [0, 50, 500, 0, 0]
    features[:, 4] = generator.integers(0, 3, count)
    features[generator.random(features.shape) < 0.05] = np.nan
    known = np.nan_to_num(features)
    score = (
        known[:, 0] + 1.5 * (known[:, 2] > 480) + np.isnan(features[:, 1]) + generator.normal(size=count) / 2
    )
    target = np.digitize(score, np.quantile(score, np.arange(1, classes) / classes))
    return torch.tensor(features, dtype=torch.float32), torch.tensor(target)


def survivors() -> Hospital:
    features, _ = patients(2, 200)
    generator = np.random.default_rng(3)
    time = np.ceil(generator.exponential(np.exp(-np.nan_to_num(features[:, 0].numpy()))) * 20)
    event = generator.random(len(time)) < 0.7
    return features, torch.tensor(np.stack([time, event], axis=1), dtype=torch.float32)


def divided(whole: Hospital, *sizes: int) -> list[Hospital]:
    order = torch.randperm(len(whole[0]), generator=torch.Generator().manual_seed(0))
    parts = order.split([*sizes, len(order) - sum(sizes)])
    return [(whole[0][part], whole[1][part]) for part in parts]


def sent(module: TreeEnsemble, model: Weights, hospital: Hospital, loss: Loss, site: str) -> Update:
    """Return the update of one hospital."""
    load(module, model)
    module.collect(hospital[0], lambda scores: loss.derivatives(scores, hospital[1]))
    update = Update(site, 1, Difference(weights_of(module), model), len(hospital[0]))
    RULE.check(update)
    return update


def train(
    hospitals: Sequence[Hospital], loss: Loss, outputs: int, rounds: int = ROUNDS, rule: Rule = RULE
) -> TreeEnsemble:
    module = NETWORK.build(hospitals[0][0].shape[1], outputs)
    assert isinstance(module, TreeEnsemble)
    if isinstance(loss, Cox):
        module.classifies.zero_()
    model: Weights = weights_of(module)
    for _ in range(rounds):
        updates = [sent(module, model, one, loss, f"site{i}") for i, one in enumerate(hospitals)]
        model, _ = rule.merge(updates, {}, model)
    load(module, model)
    return module


@pytest.mark.parametrize("classes", [2, 3])
def test_any_division_into_hospitals_gives_the_pooled_trees_bit_for_bit(classes: int) -> None:
    whole = patients(classes)
    pooled = train([whole], CrossEntropy(), classes)
    federated = train(divided(whole, 40, 200, 1), CrossEntropy(), classes)
    assert digest(weights_of(federated)) == digest(weights_of(pooled))
    assert pooled.cursor.tolist() == [SKETCHES, NETWORK.trees, 0]
    assert int((pooled.feature >= 0).sum()) > 20


@pytest.mark.parametrize("classes", [2, 3])
def test_predictions_are_scikit_learns_on_the_same_bins(classes: int) -> None:
    features, target = patients(classes)
    own = train([(features, target)], CrossEntropy(), classes)
    bins = own._bins(features).double().numpy()
    bins[np.isnan(features.numpy())] = np.nan
    other = HistGradientBoostingClassifier(
        learning_rate=RULE.learning_rate,
        max_iter=NETWORK.trees,
        max_depth=NETWORK.depth,
        max_leaf_nodes=None,
        min_samples_leaf=RULE.min_patients,
        l2_regularization=RULE.l2,
        early_stopping=False,
    ).fit(bins, target.numpy())
    predicted = own(features).softmax(dim=1).numpy()
    np.testing.assert_allclose(predicted, other.predict_proba(bins), atol=1e-6)
    assert float((own(features).argmax(dim=1) == target).double().mean()) > 0.6


def test_hospitals_with_risk_sets_of_their_own_grow_the_trees_of_their_common_likelihood() -> None:
    """Each hospital's risk sets are its own patients: the likelihood is Cox's, stratified by hospital."""

    class Stratified(Cox, frozen=True, tag="stratified"):
        """Cox's likelihood of two strata, the first of 80 patients."""

        def derivatives(self, scores: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
            each = [Cox().derivatives(scores[part], target[part]) for part in (slice(80), slice(80, None))]
            return torch.cat([one[0] for one in each]), torch.cat([one[1] for one in each])

    hospitals = divided(survivors(), 80)
    whole = torch.cat([hospitals[0][0], hospitals[1][0]]), torch.cat([hospitals[0][1], hospitals[1][1]])
    federated = train(hospitals, Cox(), 1)
    assert digest(weights_of(federated)) == digest(weights_of(train([whole], Stratified(), 1)))
    assert float(federated.base.abs().max()) == 0
    risk, time = federated(whole[0])[:, 0], whole[1][:, 0]
    assert float(torch.corrcoef(torch.stack([risk, time]))[0, 1]) < -0.2


def test_a_secure_sum_of_64_bits_gives_the_same_trees() -> None:
    """The fixed point of `secure_sum` with its defaults, without the masks, which cancel."""
    hospitals, loss = divided(patients(2), 40, 200), CrossEntropy()
    module = NETWORK.build(5, 2)
    assert isinstance(module, TreeEnsemble)
    plain: Weights = weights_of(module)
    summed = plain
    point, most = FixedPoint(64, 1024.0, len(hospitals)), 100_000
    for _ in range(SKETCHES + 3):
        updates = [sent(module, plain, one, loss, f"site{i}") for i, one in enumerate(hospitals)]
        total = sum(update.examples for update in updates)
        mean = {
            name: sum(
                masked(update.delta[name], point, update.examples / most, [], Scratch())[0].double()
                for update in updates
            ).reshape(tensor.shape)  # type: ignore[union-attr]
            * (most / point.scale / total)
            for name, tensor in plain.items()
        }
        plain, _ = RULE.merge(updates, {}, plain)
        summed, _ = RULE.merge([Update("sum", 1, mean, total)], {}, summed)
        assert digest(summed) == digest(plain)


def test_sums_that_something_rounded_are_refused() -> None:
    module = NETWORK.build(5, 2)
    assert isinstance(module, TreeEnsemble)
    model = weights_of(module)
    update = sent(module, model, patients(2), CrossEntropy(), "north")
    rounded = {name: update.delta[name].half().double() for name in model}
    with pytest.raises(RuleError, match=r"no whole numbers of patients.*examples that are not the patients"):
        RULE.merge([replace(update, delta=rounded)], {}, model)
    with pytest.raises(RuleError, match="no whole numbers of patients"):
        RULE.merge([replace(update, examples=499)], {}, model)


def test_what_a_site_says_of_the_trees_themselves_is_ignored() -> None:
    module = NETWORK.build(5, 2)
    assert isinstance(module, TreeEnsemble)
    model = weights_of(module)
    update = sent(module, model, patients(2), CrossEntropy(), "north")
    honest, _ = RULE.merge([update], {}, model)
    lying = {name: update.delta[name] + (0 if name == "sums" else 3) for name in model}
    assert digest(RULE.merge([replace(update, delta=lying)], {}, model)[0]) == digest(honest)


@pytest.mark.parametrize(
    ("place", "value", "why"),
    [
        ((0, 0, 0, 0, 2), -0.1, "negative hessians or numbers"),
        ((0, 0, 0, 0, 1), -0.1, "negative hessians or numbers"),
        ((0, 0, 0, 0, 2), 2.0, "more patients than examples"),
        ((0, 0, 0, 0, 0), 0.5, "differ from those of another"),
    ],
)
def test_sums_that_no_patients_have_are_refused(place: tuple[int, ...], value: float, why: str) -> None:
    module = NETWORK.build(5, 2)
    assert isinstance(module, TreeEnsemble)
    model = weights_of(module)
    update = sent(module, model, patients(2), CrossEntropy(), "north")
    lying = {name: update.delta[name].clone() for name in model}
    lying["sums"][place] += value
    if "negative" in why:
        lying["sums"][place] = value
    with pytest.raises(RuleError, match=f"site 'north' .*{why}"):
        RULE.check(replace(update, delta=lying))


@pytest.mark.parametrize("number", [-(2.0**20), 0.0, 2.0**20])
def test_no_sums_of_a_lying_site_in_a_secure_sum_end_the_hub(number: float) -> None:
    """The hub sees the sum only, so `check` cannot refuse them: the model stays finite."""
    module = NETWORK.build(5, 3)
    assert isinstance(module, TreeEnsemble)
    model: Weights = weights_of(module)
    rule = Rule(l2=0.0, min_child_weight=0.0, min_patients=5)
    generator = torch.Generator().manual_seed(0)
    for _ in range(SKETCHES + 4):
        sums = torch.randint(-2, 3, model["sums"].shape, generator=generator).double() * number
        delta = {name: torch.zeros_like(tensor) for name, tensor in model.items()} | {"sums": sums}
        model, _ = rule.merge([Update("sum", 1, delta, 1)], {}, model)
        assert all(bool(torch.isfinite(tensor).all()) for tensor in model.values())


# -------------------------------------------------------------------------------------------- splits by hand

GROWTH = Growth(learning_rate=0.5, l2=1.0, min_child_weight=0.0, min_patients=1, min_gain=0.0)


def node(*bins: tuple[float, float, float]) -> np.ndarray:
    """Return the sums of a node of one feature; the last bin is of missing values."""
    return np.array([bins], float)


def test_the_split_and_its_leaves_are_those_by_hand() -> None:
    # Left (4, 3), right (-6, 5): 16/4 + 36/6 - 4/9; split at the other edge: (4 - 2)^2/5 + 16/4 - 4/9.
    split = _tree_growing._best_split(node((4, 3, 3), (-2, 1, 1), (-4, 4, 4), (0, 0, 0)), GROWTH)
    assert split is not None
    assert (split.feature, split.edge, split.left.tolist()) == (0, 0, [4, 3, 3])
    assert split.right.tolist() == [-6, 5, 5]
    assert _tree_growing._leaf(split.left, GROWTH) == -0.5 * 4 / 4
    assert _tree_growing._leaf(split.right, GROWTH) == 0.5 * 6 / 6
    # No patient was missing: later ones go with the 5 on the right.
    assert not split.missing_left


@pytest.mark.parametrize(("gradient", "left"), [(4.0, True), (-4.0, False)])
def test_missing_values_go_where_they_gain(gradient: float, left: bool) -> None:
    split = _tree_growing._best_split(node((4, 3, 3), (-4, 3, 3), (gradient, 2, 2)), GROWTH)
    assert split is not None
    assert split.missing_left is left


def test_a_leaf_of_too_few_patients_is_not_made() -> None:
    sums = node((4, 3, 3), (-4, 4, 4), (0, 0, 0))
    assert _tree_growing._best_split(sums, replace(GROWTH, min_patients=3)) is not None
    assert _tree_growing._best_split(sums, replace(GROWTH, min_patients=4)) is None
    assert _tree_growing._best_split(sums, replace(GROWTH, min_child_weight=3.5)) is None
    assert _tree_growing._best_split(sums, replace(GROWTH, min_gain=7.3)) is None


# ------------------------------------------------------------------------------------------------------ edges


def edges_of(values: Tensor, bins: int = 32, least: int = 10) -> list[float]:
    network, rule = replace_bins(bins), Rule(min_patients=least)
    module = network.build(1, 2)
    assert isinstance(module, TreeEnsemble)
    model: Weights = weights_of(module)
    target = torch.zeros(len(values), dtype=torch.long)
    for _ in range(SKETCHES):
        model, _ = rule.merge(
            [sent(module, model, (values[:, None], target), CrossEntropy(), "a")], {}, model
        )
    return [edge for edge in model["edges"][0].tolist() if edge < NO_EDGE]


def replace_bins(bins: int) -> Network:
    return Network(trees=1, depth=1, bins=bins)


def test_edges_separate_the_words_and_whole_numbers_of_a_column() -> None:
    values = torch.arange(200) % 5
    edges = edges_of(values.float())
    assert {1.0, 2.0, 3.0, 4.0} <= set(edges)


def test_edges_follow_the_density_on_any_scale() -> None:
    for scale in (1e-3, 1.0, 1e4):
        values = (100 + torch.randn(2000, generator=torch.Generator().manual_seed(0))).float() * scale
        inside = np.searchsorted(edges_of(values), values.numpy(), side="right")
        shares = np.bincount(inside) / 2000
        assert shares.max() < 0.12, scale
        assert (shares > 0).sum() >= 16, scale


def test_no_edge_is_a_value_of_a_patient() -> None:
    """Edges are cut from powers of two, whatever the values are."""
    values = (50 + 7 * torch.randn(1000, generator=torch.Generator().manual_seed(0))).float()
    edges = edges_of(values)
    assert len(edges) > 16
    assert not set(edges) & set(values.double().tolist())
    assert all((edge * 2**10).is_integer() for edge in edges)


def test_few_patients_get_few_bins() -> None:
    values = torch.linspace(1, 100, 60)
    inside = np.searchsorted(edges_of(values, least=20), values.numpy(), side="right")
    assert len(set(inside)) <= 3
    assert edges_of(torch.full((30,), torch.nan)) == []


def test_the_constants_of_both_halves_are_the_same() -> None:
    assert _tree_ensemble.GRID == _tree_growing.GRID
    assert _tree_ensemble.NO_EDGE == _tree_growing.NO_EDGE
    assert _tree_ensemble.first_edges(7).tolist() == [-256.0, -1.0, -(2.0**-8), 0.0, 2.0**-8, 1.0, 256.0]

"""Each local method on quadratics with steps computed by hand, through callback, exchange and rule."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import medfed
from medfed.aggregation.fedavg import FedAvg
from medfed.aggregation.feddyn import FedDyn as FedDynRule
from medfed.aggregation.ifca import IFCA as IFCARule
from medfed.aggregation.scaffold import Scaffold as ScaffoldRule
from medfed.errors import RuleError, StudyError
from medfed.federation.callback import FederatedCallback
from medfed.local_training.apfl import APFL
from medfed.local_training.ditto import Ditto
from medfed.local_training.feddyn import FedDyn
from medfed.local_training.fedper import FedPer
from medfed.local_training.fedrep import FedRep
from medfed.local_training.fine_tune import FineTune
from medfed.local_training.ifca import IFCA
from medfed.local_training.moon import contrastive_term
from medfed.local_training.scaffold import Scaffold
from medfed.testing._local_training import Rows, federate, net, personal_models
from medfed.wire.update import Update
from medfed.wire.weights import digest, weights_of

torch.set_num_threads(1)

# Centre and curvature of a site's loss h / 2 (w - m)^2. The joint minimum is (1 * 2 + 3 * -1) / 4 = -0.25.
CENTRES = {"a": (2.0, 1.0), "b": (-1.0, 3.0)}
JOINT = -0.25
RATE, STEPS, ROUNDS = 0.1, 4, 5


class Quadratic(pl.LightningModule):
    def __init__(self, centre: float, curvature: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.centre, self.curvature = centre, curvature

    def training_step(self, batch, index):
        return (self.curvature / 2 * (self.w - self.centre) ** 2).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=RATE)


def fit(module, callback, epochs: int, **trainer) -> None:
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    loader = DataLoader(TensorDataset(torch.zeros(STEPS, 1)), 1)
    pl.Trainer(max_epochs=epochs, callbacks=[callback], accelerator="cpu", **quiet, **trainer).fit(
        module, loader
    )


def federated(local, rule=None, sites=CENTRES, rounds=ROUNDS, start=0.0, **settings):
    """Return the final weight, and the weight of each site's own model."""
    modules = {name: Quadratic(*what) for name, what in sites.items()}
    callbacks = {}

    def site(name):
        def work(exchange):
            callbacks[name] = FederatedCallback(name, exchange, 1, local=local)
            fit(modules[name], callbacks[name], rounds, **settings)

        return work

    first = {"w": torch.tensor([start], dtype=torch.float64)}
    final = medfed.run_federation({n: site(n) for n in sites}, first, rule=rule or FedAvg(), rounds=rounds)
    own = {name: callbacks[name].personalised_weights(modules[name]) for name in sites}
    held = {name: float(module.w.detach()) for name, module in modules.items()}
    return float(final.weights["w"]), {n: held[n] if o is None else float(o["w"]) for n, o in own.items()}


def test_ditto() -> None:
    pull = 0.7
    w, own = 0.0, dict.fromkeys(CENTRES, 0.0)
    for _ in range(ROUNDS):
        models = []
        for site, (centre, curvature) in CENTRES.items():
            x = w
            for _ in range(STEPS):
                x -= RATE * curvature * (x - centre)
                own[site] -= RATE * (curvature * (own[site] - centre) + pull * (own[site] - w))
            models.append(x)
        w = sum(models) / 2
    found, personal = federated(Ditto(pull=pull))
    assert found == pytest.approx(w, rel=1e-12)
    assert personal == pytest.approx(own, rel=1e-12)


def test_ditto_with_accumulated_gradients_takes_half_as_many_steps_for_both_models() -> None:
    w, v = 0.0, 0.0
    for _ in range(ROUNDS):
        x = w
        for _ in range(STEPS // 2):
            x -= RATE * (x - 2.0)
            v -= RATE * ((v - 2.0) + 0.7 * (v - w))
        w = x
    found, personal = federated(Ditto(pull=0.7), sites={"a": (2.0, 1.0)}, accumulate_grad_batches=2)
    assert (found, personal["a"]) == pytest.approx((w, v), rel=1e-12)


def test_ditto_without_a_pull_is_the_hospitals_own_model_and_with_a_strong_one_the_federated() -> None:
    for site, (centre, curvature) in CENTRES.items():
        alone = centre * (1 - (1 - RATE * curvature) ** (ROUNDS * STEPS))
        assert federated(Ditto(pull=0.0))[1][site] == pytest.approx(alone, rel=1e-12)
    w, near = federated(Ditto(pull=6.0), rounds=40)
    _, far = federated(Ditto(pull=0.1), rounds=40)
    assert all(abs(near[site] - w) < abs(far[site] - w) for site in CENTRES)


@pytest.mark.parametrize("adaptive", [True, False])
def test_apfl(adaptive: bool) -> None:
    w = 0.0
    own, alpha = dict.fromkeys(CENTRES, 0.0), dict.fromkeys(CENTRES, 0.3)
    for _ in range(ROUNDS):
        models = []
        for site, (centre, curvature) in CENTRES.items():
            x = w
            for _ in range(STEPS):
                a, v = alpha[site], own[site]
                slope = curvature * (a * v + (1 - a) * x - centre)
                own[site] = v - RATE * a * slope
                if adaptive:
                    alpha[site] = min(max(a - RATE * (v - x) * slope, 0.0), 1.0)
                x -= RATE * curvature * (x - centre)
            models.append(x)
        w = sum(models) / 2
    found, personal = federated(APFL(alpha=0.3, adaptive=adaptive))
    assert found == pytest.approx(w, rel=1e-12)
    expected = {site: alpha[site] * own[site] + (1 - alpha[site]) * w for site in CENTRES}
    assert personal == pytest.approx(expected, rel=1e-9)
    assert adaptive == (alpha["a"] != 0.3)


def test_feddyn() -> None:
    # Algorithm 1 with the paper's h, which our hub does not store: theta = mean theta_k - h / alpha.
    alpha, w, h = 0.5, 0.0, 0.0
    known = dict.fromkeys(CENTRES, 0.0)
    for _ in range(ROUNDS):
        models = []
        for site, (centre, curvature) in CENTRES.items():
            x = w
            for _ in range(STEPS):
                x -= RATE * (curvature * (x - centre) - known[site] + alpha * (x - w))
            known[site] -= alpha * (x - w)
            models.append(x)
        h -= alpha / 2 * sum(model - w for model in models)
        w = sum(models) / 2 - h / alpha
    assert federated(FedDyn(alpha=alpha), FedDynRule())[0] == pytest.approx(w, rel=1e-12)


def test_feddyn_and_scaffold_end_at_the_joint_minimum_where_fedavg_does_not() -> None:
    assert abs(federated(None, rounds=100)[0] - JOINT) > 0.1
    assert federated(FedDyn(alpha=0.5), FedDynRule(), rounds=100)[0] == pytest.approx(JOINT, abs=1e-6)
    assert federated(Scaffold(option="I"), ScaffoldRule(), rounds=100)[0] == pytest.approx(JOINT, abs=1e-6)


def test_scaffold_option_one() -> None:
    x, c, own = 0.0, 0.0, dict.fromkeys(CENTRES, 0.0)
    for _ in range(ROUNDS):
        models, changes = [], []
        for site, (centre, curvature) in CENTRES.items():
            y = x
            for _ in range(STEPS):
                y -= RATE * (curvature * (y - centre) - own[site] + c)
            new = curvature * (x - centre)
            models.append(y)
            changes.append(new - own[site])
            own[site] = new
        x, c = sum(models) / 2, c + sum(changes) / 2
    assert federated(Scaffold(option="I"), ScaffoldRule())[0] == pytest.approx(x, rel=1e-6)


class TwoLayers(pl.LightningModule):
    """A body b and a head c with loss ((b - 1)^2 + (c - m)^2) / 2 and the site's own m."""

    def __init__(self, centre: float) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
        for layer in (self.body, self.head):
            nn.init.zeros_(layer.weight)
        self.centre = centre

    def training_step(self, batch, index):
        return ((self.body.weight - 1) ** 2 + (self.head.weight - self.centre) ** 2).sum() / 2

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=RATE, weight_decay=0.1)


@pytest.mark.parametrize(
    "method, head_steps, body_steps", [(FedPer(), 4, 4), (FedRep(), 2, 2), (FedRep(first=0.75), 3, 1)]
)
def test_fedper_trains_both_parts_and_fedrep_in_turn_and_the_head_stays(
    method, head_steps: int, body_steps: int
) -> None:
    modules = {"a": TwoLayers(2.0), "b": TwoLayers(-1.0)}

    def site(name):
        return lambda exchange: fit(modules[name], FederatedCallback(name, exchange, 1, local=method), ROUNDS)

    start = {"body.weight": torch.zeros(1, 1)}
    final = medfed.run_federation({n: site(n) for n in modules}, start, rule=FedAvg(), rounds=ROUNDS)

    def after(centre: float, steps: int) -> float:
        w = 0.0
        for _ in range(ROUNDS * steps):
            w -= RATE * ((w - centre) + 0.1 * w)
        return w

    assert set(final.weights) == {"body.weight"}
    assert float(final.weights["body.weight"]) == pytest.approx(after(1.0, body_steps), rel=1e-5)
    for module in modules.values():
        assert float(module.head.weight.detach()) == pytest.approx(after(module.centre, head_steps), rel=1e-5)


def test_a_head_that_is_not_there_is_told() -> None:
    with pytest.raises(StudyError, match=r"keep_local: 'hed' keeps nothing: .* .it has 'body', 'head'"):
        weights_of(TwoLayers(0.0), ["hed"])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), temperature=st.sampled_from([0.1, 0.5, 2.0]))
def test_moons_term_is_the_papers(seed: int, temperature: float) -> None:
    draw = np.random.default_rng(seed)
    z, towards, away = draw.normal(size=(3, 4, 6))

    def similar(one: np.ndarray, other: np.ndarray) -> float:
        return float(np.exp(one @ other / np.linalg.norm(one) / np.linalg.norm(other) / temperature))

    each = [
        -np.log(similar(a, g) / (similar(a, g) + similar(a, p)))
        for a, g, p in zip(z, towards, away, strict=True)
    ]
    found = contrastive_term(*(torch.from_numpy(x) for x in (z, towards, away)), temperature)
    assert float(found) == pytest.approx(float(np.mean(each)), rel=1e-9)


def test_moon_draws_a_representation_towards_the_global_one() -> None:
    z = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    towards, away = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(1))
    before = torch.cosine_similarity(z, towards).mean() - torch.cosine_similarity(z, away).mean()
    contrastive_term(z, towards, away, 0.5).backward()
    moved = z.detach() - 0.1 * z.grad
    assert (
        torch.cosine_similarity(moved, towards).mean() - torch.cosine_similarity(moved, away).mean() > before
    )


# ---------------------------------------------------------------------------------------------- clusters

GROUPS = {"a": (2.0, 1.0), "b": (2.2, 1.0), "c": (-3.0, 1.0), "d": (-3.4, 1.0)}


class Started(IFCARule, tag="started", frozen=True):
    """IFCA with two models that start at given weights."""

    def init(self, weights):
        return {"cluster-00": {"w": weights["w"] + 0.5}, "cluster-01": {"w": weights["w"] - 0.5}}


def test_ifca() -> None:
    models = [0.5, -0.5]
    for _ in range(ROUNDS):
        trained: dict[int, list[float]] = {0: [], 1: []}
        for centre, curvature in GROUPS.values():
            best = min((0, 1), key=lambda k: curvature / 2 * (models[k] - centre) ** 2)
            x = models[best]
            for _ in range(STEPS):
                x -= RATE * curvature * (x - centre)
            trained[best].append(x)
        models = [sum(t) / len(t) if t else m for t, m in zip(trained.values(), models, strict=True)]
    w, held = federated(IFCA(), Started(), sites=GROUPS)
    expected = {"a": models[0], "b": models[0], "c": models[1], "d": models[1]}
    assert held == pytest.approx(expected, rel=1e-12)
    assert w == pytest.approx(sum(models) / 2, rel=1e-12)


def test_ifcas_models_start_apart_by_the_seed_and_one_nobody_chose_stays() -> None:
    weights = {
        "w": torch.randn(50, generator=torch.Generator().manual_seed(0)),
        "n.running_var": torch.ones(3),
    }
    first, again, other = (
        IFCARule(clusters=3).init(weights),
        IFCARule(clusters=3).init(weights),
        IFCARule(seed=1).init(weights),
    )
    assert {name: digest(group) for name, group in first.items()} == {
        name: digest(group) for name, group in again.items()
    }
    assert digest(first["cluster-00"]) == digest(weights)
    assert digest(first["cluster-01"]) != digest(first["cluster-02"])
    assert digest(first["cluster-01"]) != digest(other["cluster-01"])
    deviation = float((first["cluster-01"]["w"] - weights["w"]).std() / weights["w"].std(correction=0))
    assert deviation == pytest.approx(0.5, rel=0.3)
    assert torch.equal(first["cluster-01"]["n.running_var"], torch.ones(3))
    moved = {name: tensor + 1 for name, tensor in weights.items()}
    update = Update(
        "a", 1, {name: moved[name] - weights[name] for name in weights}, 3, {"train/cluster": 2.0}
    )
    _, state = IFCARule(clusters=3).merge([update], first, weights)
    assert digest(state["cluster-01"]) == digest(first["cluster-01"])
    torch.testing.assert_close(state["cluster-02"], moved)


def test_a_cluster_that_is_not_there_is_refused() -> None:
    weights = {"w": torch.zeros(1)}
    update = Update("a", 1, {"w": torch.ones(1)}, 3, {"train/cluster": 2.0})
    with pytest.raises(
        RuleError,
        match="site 'a' for round 1: scalar 'train/cluster' is 2; expected a whole number from 0 to 1",
    ):
        IFCARule().merge([update], IFCARule().init(weights), weights)


# -------------------------------------------------------------------------------------- beside the federation


@pytest.mark.parametrize("method", [Ditto(), APFL(), FineTune()], ids=lambda m: type(m).__name__)
def test_what_is_trained_beside_the_federation_changes_no_bit_of_it(method, tmp_path: Path) -> None:
    assert digest(federate(tmp_path / "a", method).weights) == digest(federate(tmp_path / "b", None).weights)
    assert set(personal_models(tmp_path / "a")) == {"north", "south"}
    assert personal_models(tmp_path / "b") == {}


def test_fine_tuning_is_training_on_from_the_final_model(tmp_path: Path) -> None:
    class Plain(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(1, dtype=torch.float64))

        def training_step(self, batch, index):
            return ((self.w - 2.0) ** 2).sum() / 2

        def validation_step(self, batch, index):
            self.log("val/loss", ((self.w.detach() - 2.0) ** 2).sum())

        def configure_optimizers(self):
            optimiser = torch.optim.SGD(self.parameters(), lr=RATE)
            return [optimiser], [torch.optim.lr_scheduler.StepLR(optimiser, 1, 0.1)]

    from safetensors.torch import load_file

    from medfed.federation.config import SiteConfig
    from medfed.federation.site import PERSONAL, SiteRun, train_site

    scores = {}

    def site(exchange):
        training = SiteConfig(2, 1, local=FineTune(epochs=3, rate=0.5), accelerator="cpu")
        scores.update(train_site("north", Plain(), Rows("north"), exchange, training, SiteRun(tmp_path)))

    final = medfed.run_federation(
        {"north": site}, {"w": torch.zeros(1, dtype=torch.float64)}, rule=FedAvg(), rounds=2
    )
    w = 0.0
    for rate in (RATE, RATE / 10):
        for _ in range(4):
            w -= rate * (w - 2.0)
    assert float(final.weights["w"]) == pytest.approx(w, rel=1e-12)
    for _ in range(3 * 4):
        w -= RATE * 0.5 * (w - 2.0)
    assert float(load_file(tmp_path / PERSONAL)["w"]) == pytest.approx(w, rel=1e-12)
    assert scores["val/personal/loss"] == pytest.approx((w - 2.0) ** 2, rel=1e-6)
    assert scores["val/loss"] > scores["val/personal/loss"]


def test_the_module_gets_its_own_training_step_back() -> None:
    module = Quadratic(1.0, 1.0)
    callback = FederatedCallback("a", medfed.MemoryExchange(), 2, local=Ditto())
    with pytest.raises(StudyError, match="must be a multiple"):
        fit(module, callback, 3)
    federated(Ditto())
    assert "training_step" not in vars(module)
    assert net().training_step.__func__ is type(net()).training_step


@pytest.mark.parametrize("method", [Ditto(), FedPer(), APFL()], ids=lambda m: type(m).__name__)
def test_a_site_that_was_down_when_the_study_ended_still_gets_its_own_model(method, tmp_path: Path) -> None:
    final = federate(tmp_path, method)
    models = personal_models(tmp_path)
    for path in tmp_path.glob("*/personal.safetensors"):
        path.unlink()
    again = federate(tmp_path, method, resume=True)
    assert digest(again.weights) == digest(final.weights)
    assert personal_models(tmp_path) == models

"""The hub chooses what is removed by what the sites measure of the last model, also after a kill.

By hand: north has 10 patients and gains 0.03 by keeping the largest component of a; south has 20 and loses
0.03 by that: (0.3 - 0.6) / 30 < 0. Both gain 0.01 by removing components of b below 0.1 ml.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from counting import WANTS, Counter, Data, Killed
from simulated import simulated

from medfed.aggregation.fedavg import FedAvg
from medfed.federation.config import SiteConfig
from medfed.federation.egress import Egress
from medfed.federation.model_selection import ModelSelection
from medfed.federation.postprocessing import CANDIDATES, COMPONENTS, names_of, rules_in, scalars_of
from medfed.federation.site import SiteRun, train_site
from medfed.privacy.secure_sum import SecureSum
from medfed.wire.audit_log import AuditLog
from medfed.wire.weights import weights_of

STRUCTURES, ROUNDS = ("a", "b"), 3
LARGEST = {"north": (10, 0.03), "south": (20, -0.03)}


def gains_of(site: str) -> dict[str, float]:
    patients, largest = LARGEST[site]
    a = [largest if one == "largest" else 0.0 for one in CANDIDATES]
    return scalars_of(patients, {"a": a, "b": [0.01 if one == 0.1 else 0.0 for one in CANDIDATES]})


def run(place, *, resume=False, killed: int | None = None, measured=None, **settings):
    measured = [] if measured is None else measured

    def site(name):
        def measure(module):
            measured.append((name, float(module.weight.detach())))
            return gains_of(name)

        def work(exchange):
            callbacks = [Killed(killed)] if killed is not None and name == "south" else []
            egress = Egress(Egress().scalars | {*names_of(STRUCTURES)})
            config = SiteConfig(ROUNDS, accelerator="cpu", egress=egress)
            config = replace(config, privacy=settings.get("privacy") or config.privacy)
            own = SiteRun(place / name, resume, examples=1, callbacks=callbacks, on_last_model=measure)
            train_site(name, Counter(WANTS[name]), Data(), exchange, config, own)

        return work

    settings = {"folder": place / "hub", "structures": STRUCTURES, **settings}
    return simulated(
        {name: site(name) for name in WANTS}, weights_of(Counter()), rule=FedAvg(), rounds=ROUNDS, minimum=2,
        **settings,
    )  # fmt: skip


@pytest.mark.parametrize("on_disk", [True, False])
def test_the_last_model_is_measured_and_the_choice_comes_with_it(tmp_path, on_disk):
    measured, reports, log = [], [], AuditLog(tmp_path / "audit.jsonl")
    folder = {} if on_disk else {"folder": None}
    model = run(tmp_path, measured=measured, on_round=reports.append, audit=log, **folder)
    assert rules_in(model, STRUCTURES) == {"b": 0.1}
    assert sorted(measured) == [("north", 3.0), ("south", 3.0)]
    assert (float(model.weights["weight"]), model.chosen) == (3.0, 3)
    sent = [one.scalars for one in reports[-2].results]
    assert [{n: v for n, v in one.items() if n.startswith(COMPONENTS)} for one in sent] == [
        gains_of("north"),
        gains_of("south"),
    ]
    assert "components of b below 0.1 ml are removed" in (tmp_path / "audit.jsonl").read_text().lower()


@pytest.mark.parametrize("epoch", [0, 2])
def test_a_killed_site_resumes_to_the_same_choice(tmp_path, epoch):
    with pytest.raises(Exception, match="valid update"):
        run(tmp_path, killed=epoch)
    model = run(tmp_path, resume=True)
    assert (rules_in(model, STRUCTURES), float(model.weights["weight"])) == ({"b": 0.1}, 3.0)


@pytest.mark.parametrize("round", [3, 4])
def test_a_hub_that_dies_while_it_chooses_goes_on_to_the_same_choice(tmp_path, round):
    def dies(model):
        if model.round == round:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        run(tmp_path, on_model=dies)
    model = run(tmp_path, resume=True)
    assert (rules_in(model, STRUCTURES), float(model.weights["weight"])) == ({"b": 0.1}, 3.0)


def test_a_secure_sum_hides_updates_and_the_choice_is_the_same(tmp_path):
    model = run(tmp_path, privacy=SecureSum(min_sites=2, colluding=0))
    assert rules_in(model, STRUCTURES) == {"b": 0.1}
    assert float(model.weights["weight"]) == pytest.approx(3.0, abs=1e-4)


def test_a_mean_of_rounds_and_patience_end_with_their_model(tmp_path):
    model = run(tmp_path / "mean", average=2)
    assert (rules_in(model, STRUCTURES), float(model.weights["weight"])) == ({"b": 0.1}, 2.5)
    # Errors over rounds 1 to 3 are 2.5, 0.5 and 0.5: patience alone keeps the last merged model.
    model = run(tmp_path / "patience", selection=ModelSelection(patience=5))
    assert (rules_in(model, STRUCTURES), float(model.weights["weight"])) == ({"b": 0.1}, 3.0)

"""The final model is that of the best round by the sites' scores, in memory, on disk, and after a kill.

Every round adds 1 to the one weight, so the model of round r is r. The sites want 2 and 3: by hand their mean
squared errors are 2.5, 0.5, 0.5, 2.5, 6.5 over rounds 1 to 5.
"""

from __future__ import annotations

import pytest
from counting import WANTS, Counter, Data, Killed
from simulated import simulated

from medfed.aggregation.fedavg import FedAvg
from medfed.federation.config import SiteConfig
from medfed.federation.model_selection import ModelSelection
from medfed.federation.site import SiteRun, train_site
from medfed.privacy.secure_sum import SecureSum
from medfed.wire.audit_log import AuditLog
from medfed.wire.weights import weights_of

ROUNDS = 8
BEST = ModelSelection("val/loss", "lower", "best", patience=2)


def run(place, *, resume=False, killed: int | None = None, on_model=lambda model: None, **settings):
    modules = {name: Counter(wants) for name, wants in WANTS.items()}
    finals = {}

    def site(name):
        def work(exchange):
            callbacks = [Killed(killed)] if killed is not None and name == "south" else []
            config = SiteConfig(
                ROUNDS, accelerator="cpu", privacy=settings.get("privacy") or SiteConfig(1).privacy
            )
            finals[name] = train_site(
                name, modules[name], Data(), exchange, config,
                SiteRun(place / name, resume, examples=1, callbacks=callbacks),
            )  # fmt: skip

        return work

    reports: list = []
    settings = {"selection": BEST, "folder": place / "hub", **settings}
    model = simulated(
        {name: site(name) for name in WANTS}, weights_of(Counter()), rule=FedAvg(), rounds=ROUNDS, minimum=2,
        on_round=reports.append, on_model=on_model, **settings,
    )  # fmt: skip
    return model, reports, modules, finals


@pytest.mark.parametrize("on_disk", [True, False])
def test_the_study_stops_and_ends_with_the_best_rounds_model(tmp_path, on_disk):
    log = AuditLog(tmp_path / "audit.jsonl")
    settings = {} if on_disk else {"folder": None}
    model, reports, modules, finals = run(tmp_path, audit=log, **settings)
    # Rounds 3 (a tie) and 4 are not better than 2; that is known once round 5 is merged.
    assert (model.chosen, float(model.weights["weight"])) == (2, 2.0)
    assert [report.round for report in reports] == [1, 2, 3, 4, 5, 6, 7]
    assert [(one.scored, one.final) for one in reports[5:]] == [(5, False), (2, True)]
    # The last merged model was scored before the choice: (5 - 2)^2 and (5 - 3)^2.
    assert [one.scalars["val/loss"] for one in reports[5].results] == [9.0, 4.0]
    choice = reports[-1].choice
    assert (choice.round, choice.merged, choice.rounds, choice.mean) == (2, 5, 8, 0.5)
    assert choice.sites == ["north", "south"]
    # Every hospital holds the chosen model, and its scores are that model's.
    assert [module.weight.item() for module in modules.values()] == [2.0, 2.0]
    assert [finals[name]["val/loss"] for name in ("north", "south")] == [0.0, 1.0]
    assert '"chosen"' in (tmp_path / "audit.jsonl").read_text()


def test_without_patience_all_rounds_are_merged_and_the_best_one_is_kept(tmp_path):
    model, reports, *_ = run(tmp_path, selection=ModelSelection(keep="best"))
    assert (reports[-1].choice.merged, model.chosen, float(model.weights["weight"])) == (ROUNDS, 2, 2.0)


def test_patience_alone_ends_with_the_last_merged_model(tmp_path):
    model, reports, *_ = run(tmp_path, selection=ModelSelection(patience=2))
    assert (model.chosen, model.round, float(model.weights["weight"])) == (None, 5, 5.0)
    assert [one.final for one in reports] == [False] * 5 + [True]


@pytest.mark.parametrize("epoch", [1, 3, 4])
def test_a_killed_run_resumes_to_the_same_choice(tmp_path, epoch):
    with pytest.raises(Exception, match="valid update"):
        run(tmp_path, killed=epoch)
    model, reports, modules, _ = run(tmp_path, resume=True)
    assert (model.chosen, float(model.weights["weight"])) == (2, 2.0)
    assert (reports[-1].choice.merged, reports[-1].choice.mean) == (5, 0.5)
    assert [module.weight.item() for module in modules.values()] == [2.0, 2.0]


@pytest.mark.parametrize("round", [5, 6])
def test_a_hub_that_dies_while_it_chooses_goes_on_to_the_same_model(tmp_path, round):
    def dies(model):
        if model.round == round:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        run(tmp_path, on_model=dies)
    model, reports, modules, _ = run(tmp_path, resume=True)
    assert (model.chosen, float(model.weights["weight"])) == (2, 2.0)
    assert (reports[-1].choice.merged, reports[-1].choice.mean) == (5, 0.5)
    assert [module.weight.item() for module in modules.values()] == [2.0, 2.0]


def test_a_secure_sum_hides_updates_and_still_chooses_by_scores(tmp_path):
    privacy = SecureSum(min_sites=2, colluding=0)
    model, *_ = run(tmp_path, privacy=privacy)
    assert model.chosen == 2
    assert float(model.weights["weight"]) == pytest.approx(2.0, abs=1e-4)

"""The best round by the sites' mean validation score, and when a study ends early; every value by hand."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

import medfed
from medfed.aggregation.cyclic import Cyclic
from medfed.aggregation.fedavg import FedAvg
from medfed.aggregation.fedbuff import FedBuff
from medfed.errors import StudyError
from medfed.federation.config import HubConfig
from medfed.federation.model_selection import NOT_JUDGED, Judged, ModelSelection, choice_of, judge, stops
from medfed.privacy.secure_sum import SecureSum
from medfed.runs.rounds import SiteResult

DICE = ModelSelection("val/dice", "higher", "best", patience=2, lowest=0.0, highest=1.0)


def judged(rounds, selection=DICE, minimum=2):
    best = NOT_JUDGED
    for number, scores in enumerate(rounds):
        best = judge(selection, best, number, scores, minimum)
    return best


def test_the_round_of_the_best_mean_is_the_best_and_a_tie_leaves_the_earlier():
    rounds = [
        {"a": 0.9, "b": 0.9},  # the untrained model is no merged one
        {"a": 0.2, "b": 0.4},  # 0.3
        {"a": 0.5, "b": 0.25},  # 0.375
        {"a": 0.25, "b": 0.5},  # 0.375 again
    ]
    best = judged(rounds)
    assert (best.round, best.mean, best.waited) == (2, 0.375, 1)
    lower = ModelSelection("val/loss", "lower")
    assert judged(rounds, lower).round == 1


def test_rounds_are_compared_over_the_sites_that_scored_both():
    # c is easy: with it the mean of round 2 is higher, and a and b are both worse.
    best = judged([{}, {"a": 0.5, "b": 0.6}, {"a": 0.4, "b": 0.5, "c": 1.0}])
    assert (best.round, best.waited) == (1, 1)


def test_a_round_that_too_few_sites_scored_is_not_judged():
    best = judged([{}, {"a": 0.5, "b": 0.6}, {"a": 0.9}, {"a": 0.9, "c": 0.9}])
    assert best == Judged(1, {"a": 0.5, "b": 0.6}, 0)
    assert judged([{}, {"a": 0.5}, {}]) == NOT_JUDGED
    assert judged([{}, {}], minimum=0) == NOT_JUDGED


def test_patience_counts_judged_rounds_without_a_better_one():
    better = Judged(3, {"a": 0.5}, 1)
    assert not stops(DICE, better)
    assert stops(DICE, judge(DICE, better, 5, {"a": 0.4}, 1))
    assert not stops(DICE, judge(DICE, better, 5, {"a": 0.6}, 1))
    assert not stops(None, better)
    assert not stops(ModelSelection(), Judged(1, {}, 99))


def test_an_impossible_score_and_one_of_a_refused_update_decide_nothing():
    def result(site, status="merged", **scalars):
        named = {name.replace("_", "/"): value for name, value in scalars.items()}
        return SiteResult(site, status, scalars=named)

    results = [
        result("a", val_dice=0.5),
        result("liar", val_dice=1e9),
        result("nan", val_dice=float("nan")),
        result("silent", val_loss=0.1),
        result("refused", "refused", val_dice=0.9),
        result("last", "reported", val_dice=1.0),
    ]
    assert DICE.scores_in(results) == {"a": 0.5, "last": 1.0}
    assert ModelSelection("val/loss").scores_in(results) == {"silent": 0.1}


@pytest.mark.parametrize("score", ["test/dice", "val/personal/dice", "dice", "train/loss"])
def test_no_model_is_chosen_by_anything_but_validation(score):
    with pytest.raises(StudyError, match=rf"'{score}' is no validation score of the merged model"):
        ModelSelection(score)


def test_impossible_settings_are_refused():
    with pytest.raises(StudyError, match=r"patience is 0, expected 1 round or more"):
        ModelSelection(patience=0)
    with pytest.raises(StudyError, match=r"keep is 'first', expected 'last' or 'best'"):
        ModelSelection(keep="first")


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"rule": FedBuff()}, "asynchronous"),
        ({"rule": Cyclic()}, "each round has other sites"),
        ({"fraction": 0.5}, "each round has other sites"),
        ({"privacy": SecureSum(scores=False)}, "needs each site's 'val/dice', which the privacy mechanism"),
    ],
)
def test_a_hub_that_could_not_compare_scores_is_refused(settings, message):
    with pytest.raises(StudyError, match=f"HubConfig.selection: .*{message}"):
        HubConfig(**{"rounds": 3, "sites": ("a", "b", "c"), "rule": FedAvg(), "selection": DICE, **settings})


def test_the_choice_in_words():
    best = Judged(4, {"south": 0.5, "north": 0.7}, 2)
    assert choice_of(DICE, best, 6, 10).sentence == (
        "Training ended after 6 of 10 rounds: the last 2 that were judged were not better; the model is "
        "that of round 4, which has the best mean val/dice on validation patients of 0.6 over north, south. "
        "No test patient took part in the choice."
    )
    none = choice_of(DICE, NOT_JUDGED, 10, 10)
    assert (none.round, none.best) == (10, 0)
    assert "too few hospitals sent val/dice for any round to be judged" in none.sentence
    last = choice_of(ModelSelection("val/dice", "higher", "last", 2), best, 6, 10)
    assert (last.round, last.best) == (6, 4)
    assert last.sentence.endswith("the model is that of round 6, the last one merged.")


def test_a_selection_that_could_judge_nothing_says_so(caplog):
    def fit(exchange):
        trainer = pl.Trainer(
            max_epochs=2, callbacks=[medfed.FederatedCallback("a", exchange)], logger=False,
            accelerator="cpu", enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(Unscored(), DataLoader(torch.ones(2, 2), 1))

    best = ModelSelection("val/loss", "lower", keep="best", patience=1)
    final = medfed.run_federation(
        {"a": fit}, medfed.weights_of(Unscored()), rule="fedavg", rounds=2, selection=best
    )
    assert final.chosen == 2
    assert "no round was judged by 'val/loss': in none did 1 or more sites send it" in caplog.text


class Unscored(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch, index):
        return self.layer(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

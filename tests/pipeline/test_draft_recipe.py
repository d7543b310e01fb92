"""What a budget buys, by hand from a given timing: a plan follows from numbers of cases and seconds alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner
from hospitals import make_hospital

from medfed.cli import main
from medfed.data.settings import Images
from medfed.errors import StudyError
from medfed.pipeline import _draft_timing as timing
from medfed.pipeline._draft_recipe import (
    METRICS_S,
    MIN_VISITS,
    NETWORKS,
    TRANSFORMS,
    Cases,
    Machine,
    Network,
    Timing,
    cases_of,
    default_recipe,
    parse_budget,
    plan_recipe,
)
from medfed.study.reading import read_study

CASES = Cases(train=(30, 29), val=10, test=20)
SIZE = (40, 40, 40)
# Steps of 0.1, 0.3, 1 and 4 s; a window takes a tenth of that, and augmentation 0.01 s a patch.
MACHINE = Machine("2 threads", SIZE, tuple(Timing(s, 0.01, s / 10) for s in (0.1, 0.3, 1.0, 4.0)))


def plan(budget_s: float, cases: Cases = CASES, machine: Machine = MACHINE):
    return plan_recipe(budget_s, cases, SIZE, machine, voxels=64**3, passes=7)


def test_a_plan_is_what_the_seconds_buy() -> None:
    recipe = plan(600)
    # 15 steps at each hospital, 30 in all, and 59 patches: 30 x 0.3 + 59 x 0.01 = 9.59 s an epoch. Validation
    # takes 10 x 0.03 = 0.3 s, less than 15 % of two epochs. 20 cases are measured 7 times: 0.03 s and voxels.
    epoch_s, validation_s = 9.59, 0.3
    measuring_s = 20 * 7 * (0.03 + METRICS_S * 40**3)
    rounds = int((0.9 * 600 - measuring_s - validation_s) / (2 * epoch_s + validation_s))
    # The second network is seen 2 x 26 times only, so the first is taken: 3.59 s an epoch, 0.1 s to validate.
    assert 2 * rounds < MIN_VISITS
    measuring_s = 20 * 7 * (0.01 + METRICS_S * 40**3)
    rounds = int((0.9 * 600 - measuring_s - 0.1) / (2 * 3.59 + 0.1))
    assert (recipe.network, recipe.rounds, recipe.epochs) == (NETWORKS[0], rounds, 2)
    total_s = (measuring_s + 0.1 + rounds * (2 * 3.59 + 0.1)) / 0.9
    assert 600 - (2 * 3.59 + 0.1) / 0.9 < total_s <= 600
    assert (
        recipe.reasons[0] == "planned for 10 min on this machine (2 threads): a U-Net of 16 to 128 features,"
    )
    assert recipe.reasons[1].startswith(f"{rounds} rounds of 2 epochs, about {total_s / 60:.0f} min in all")


@pytest.mark.parametrize(("budget", "network"), [("10m", 0), ("15m", 1), ("1h", 2), ("1d", 3)])
def test_more_time_buys_the_largest_network_whose_cases_are_seen_often_enough(budget, network) -> None:
    recipe = plan(parse_budget(budget))
    assert recipe.network is NETWORKS[network]
    assert recipe.rounds * recipe.epochs >= MIN_VISITS
    # A day would buy more than 500 visits even so.
    assert recipe.rounds * recipe.epochs <= 500


def test_many_validation_cases_make_rounds_longer() -> None:
    # 100 x 0.01 = 1 s of validation is to be 15 % at most: 1 x 0.85 / 0.15 = 5.67 s of 3.59 s epochs: 2. With
    # 400 cases it is 22.7 s, so 7 epochs.
    assert plan(600, replace(CASES, val=100)).epochs == 2
    assert plan(600, replace(CASES, val=400)).epochs == 7


def test_too_little_time_is_said_with_what_would_do() -> None:
    with pytest.raises(
        StudyError, match=r"--budget: 30 s buys no round on this machine: .*give at least 4\d s"
    ):
        plan(30)
    short = plan(90)
    assert short.reasons[-1] == "More time helps: below 60 visits of each case a network is still learning."


def test_hospitals_without_training_cases_are_told() -> None:
    with pytest.raises(StudyError, match="--budget: no hospital has a training case"):
        plan(600, replace(CASES, train=(0, 0)))


@pytest.mark.parametrize("text", ["", "30", "m", "2w", "-1h", "0m", "1h30m", "nanm", "9" * 400 + "d"])
def test_what_is_no_time_is_refused(text) -> None:
    with pytest.raises(StudyError, match="expected a time such as 30m, 2h or 1d"):
        parse_budget(text)


def test_all_cases_of_a_hospital_held_out_are_tested() -> None:
    splits = {"a": {"train": 5, "val": 1, "test": 2}, "b": {"train": 7}, "far": {"train": 3, "test": 1}}
    assert cases_of(splits, ("far",)) == Cases(train=(5, 7), val=1, test=2 + 4)


@pytest.mark.parametrize("network", NETWORKS, ids=lambda one: one.words)
def test_each_network_can_be_built_for_patches_of_eight(network) -> None:
    module = timing.built(network, 1, 3, (16, 24, 8)).eval()
    with torch.inference_mode():
        assert module(torch.zeros(1, 1, 16, 24, 8)).shape == (1, 3, 16, 24, 8)


def test_the_timing_times_each_network_on_a_patch_of_the_median_image(monkeypatch) -> None:
    sizes = []

    def timed(network, inputs, classes, patch, device, item_s):
        sizes.append(patch)
        return Timing(1.0, item_s, 1.0)

    monkeypatch.setattr(timing, "_time", timed)
    settings = Images(transforms=tuple(_transform(one) for one in TRANSFORMS))
    machine = timing.time_machine(2, 3, (35, 51, 36), (1.0, 1.0, 1.0), 64**3, settings)
    assert machine.patch == (32, 48, 32)  # nnU-Net's rule: multiples of 16 within the image
    assert sizes == [machine.patch] * len(NETWORKS)
    assert all(one.item_s > 0 for one in machine.timings)


def test_the_timing_leaves_the_random_state_as_it_was(monkeypatch) -> None:
    small = (Network("unet", ("channels: [2, 4]",), "small"),)
    monkeypatch.setattr(timing, "NETWORKS", small)
    before = torch.random.get_rng_state()
    machine = timing.time_machine(1, 2, (16, 16, 16), (1.0, 1.0, 1.0), 512, Images())
    assert torch.equal(torch.random.get_rng_state(), before)
    assert machine.patch == (8, 8, 8)
    (one,) = machine.timings
    assert min(one.step_s, one.item_s, one.window_s) > 0


def _transform(text: str):
    import msgspec

    from medfed.registry import union

    return msgspec.convert(yaml.safe_load(text), union("transforms"))


def test_new_with_a_budget_writes_what_was_planned(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(timing, "time_machine", lambda *arguments: replace(MACHINE, patch=(16, 16, 16)))
    folders = [make_hospital(tmp_path / site, cases=12) for site in ("north", "south")]
    words = ["new", str(tmp_path / "s.yaml"), *map(str, folders)]
    done = CliRunner().invoke(main, [*words, "--budget", "10m"])
    assert done.exit_code == 0, done.output
    text, study = (tmp_path / "s.yaml").read_text(), read_study(tmp_path / "s.yaml")
    assert "# planned for 10 min on this machine (2 threads): " in text
    assert f"# {study.train.rounds} rounds of {study.train.epochs} epochs, about 10 min in all" in text
    assert not study.evaluation.local_models
    assert not study.evaluation.pooled_model
    default = CliRunner().invoke(main, ["new", str(tmp_path / "d.yaml"), *words[2:]])
    assert default.exit_code == 0, default.output
    study, recipe = read_study(tmp_path / "d.yaml"), default_recipe(64**3)
    assert study.train.rounds == recipe.rounds
    assert study.data.balance == "classes"
    assert len(study.data.transforms) == len(TRANSFORMS)
    assert study.evaluation.local_models


def test_a_budget_for_what_it_cannot_plan_is_refused(tmp_path: Path) -> None:
    folder = make_hospital(tmp_path / "north", cases=12)
    words = ["new", str(tmp_path / "s.yaml"), str(folder), "--budget", "1h", "--task", "classify"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 1
    assert "--budget plans segmentations of volumes" in done.output
    (tmp_path / "a.csv").write_text("age,ill\n" + "\n".join(f"{n},{n % 2}" for n in range(30)))
    words = ["new", str(tmp_path / "s.yaml"), str(tmp_path / "a.csv"), "--target", "ill", "--budget", "1h"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 1
    assert "--budget plans segmentations of volumes, and tables are none" in done.output

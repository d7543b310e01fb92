"""Which rules and mechanisms bear that a study ends with the mean of its last rounds' models."""

from __future__ import annotations

from medfed.aggregation import Rule
from medfed.privacy import Privacy
from medfed.registry import kinds
from medfed.study.averaging import averaging_problems

# Settings without which a mechanism cannot be made.
NEEDED = {name: {"noise_multiplier": 1.0} for name in ("client_dp", "distributed_dp", "dp_sgd")}


def refused(folder: str) -> set[str]:
    found = set()
    for name, kind in kinds(folder).items():
        try:
            part = kind(**NEEDED.get(name, {}))
        except TypeError:  # it has settings without defaults
            continue
        rule = part if isinstance(part, Rule) else kinds("aggregation")["fedavg"]()
        privacy = part if isinstance(part, Privacy) else kinds("privacy")["none"]()
        if list(averaging_problems(2, 3, rule, privacy)):
            found.add(name)
    return found


def test_only_rules_whose_model_is_of_all_hospitals_bear_it() -> None:
    assert refused("aggregation") == {"cyclic", "fedbuff"}


def test_only_mechanisms_whose_model_the_hub_can_read_bear_it() -> None:
    assert refused("privacy") == {"ckks"}


def test_one_round_is_no_mean_and_bears_everything() -> None:
    for rule in kinds("aggregation"):
        if rule in {"cyclic", "fedbuff"}:
            assert not list(
                averaging_problems(1, 3, kinds("aggregation")[rule](), kinds("privacy")["none"]())
            )

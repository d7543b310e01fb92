"""How many valid updates make a round."""

from __future__ import annotations

import pytest

from medfed.aggregation.fedavg import FedAvg
from medfed.aggregation.fedbuff import FedBuff
from medfed.errors import StudyError
from medfed.federation.config import HubConfig
from medfed.federation.model_selection import ModelSelection


@pytest.mark.parametrize(
    "rule, minimum, asked, quorum",
    [
        (FedAvg(), 2, 5, 2),
        (FedAvg(), 4, 3, 3),  # no more than were asked
        (FedBuff(buffer=2), 4, 5, 2),  # a buffer is merged once it is full
        (FedBuff(buffer=9), 4, 5, 4),
        (FedBuff(buffer=9), 4, 3, 3),
    ],
)
def test_the_quorum_is_the_minimum_or_what_can_come(rule, minimum, asked, quorum):
    config = HubConfig(rounds=1, sites=tuple("abcde"), rule=rule, minimum=minimum)
    assert config.quorum(asked) == quorum


def test_components_are_not_chosen_by_another_model_than_the_final_one():
    with pytest.raises(StudyError, match=r"HubConfig\.structures: .* leave one of the two out"):
        HubConfig(1, ("a",), FedAvg(), structures=("liver",), selection=ModelSelection(keep="best"))

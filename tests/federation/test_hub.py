"""Which sites the hub asks in a round."""

from __future__ import annotations

from medfed.aggregation.fedavg import FedAvg
from medfed.federation.config import HubConfig
from medfed.federation.hub import sample_sites


def test_sampling_is_drawn_from_seed_and_round_alone():
    plan = HubConfig(rounds=1, sites=tuple("abcdef"), rule=FedAvg(), fraction=0.5, minimum=2, seed=4)
    drawn = [sample_sites(plan, number) for number in range(1, 200)]
    assert drawn == [sample_sites(plan, number) for number in range(1, 200)]
    assert {len(sites) for sites in drawn} == {3}
    counts = [sum(site in sites for sites in drawn) for site in "abcdef"]
    # 199 draws of 3 of 6: 99.5 each on average, standard deviation 7; five of them is far outside chance.
    assert all(abs(count - 99.5) < 35 for count in counts)
    assert sample_sites(
        HubConfig(rounds=1, sites=tuple("ab"), rule=FedAvg(), fraction=0.1, minimum=2), 1
    ) == ("a", "b")

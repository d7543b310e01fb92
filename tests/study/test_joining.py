from __future__ import annotations

from medfed.aggregation.fedavg import FedAvg
from medfed.aggregation.scaffold import Scaffold
from medfed.privacy import NoPrivacy
from medfed.privacy.secure_sum import SecureSum
from medfed.study.joining import joining_refusals


def test_sums_over_named_hospitals_and_rules_that_count_sites_do_not_bear_another_one():
    assert list(joining_refusals(NoPrivacy(), FedAvg())) == []
    (privacy,) = joining_refusals(SecureSum(), FedAvg())
    assert "over hospitals that each of them agreed to by name" in privacy
    (rule,) = joining_refusals(NoPrivacy(), Scaffold())
    assert "rule 'scaffold' carries a sum over a fixed number of sites" in rule

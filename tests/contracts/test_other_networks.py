"""Exchanges in which another framework's hub merges: what none of them can keep is refused, and says why.

What holds of a site's side by value is in tests/exchange/test_network_site.py, which all of them share.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from medfed.errors import ExchangeError, StudyError
from medfed.registry import kinds
from medfed.study.reading import read_study

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"

NETWORKS = {
    name: record for name, record in kinds("exchange").items() if not getattr(record, "own_hub", True)
}

# The settings without a default.
SETTINGS = {
    "flower": {"handoff": "handoff", "rounds": 3},
    "nvflare": {"profile": "profile.json", "rounds": 3},
}


@pytest.fixture(params=NETWORKS)
def network(request):
    return NETWORKS[request.param](**SETTINGS.get(request.param, {}))


def test_it_is_no_hub_and_says_what_to_take(network, tmp_path):
    with pytest.raises(ExchangeError, match=r"whose hub is not medfed's .*take 'nats' or 'folder'"):
        network.open_hub("", tmp_path)


def test_it_shows_no_study_to_approve(network):
    with pytest.raises(ExchangeError, match="offers no study that a hospital could approve"):
        network.offered_studies("north")


def study_over(network, tmp_path, **changes):
    """Read the quickstart study over this exchange, with some keys changed."""
    text = msgspec.yaml.decode(QUICKSTART.read_bytes())
    text |= {"exchange": msgspec.to_builtins(network), **changes}
    path = tmp_path / "study.yaml"
    path.write_bytes(msgspec.yaml.encode(text))
    return read_study(path)


def test_a_plain_study_is_read(network, tmp_path):
    assert study_over(network, tmp_path).exchange == network


REFUSED = {
    "secure_sum": ({"privacy": {"kind": "secure_sum"}}, "privacy: 'secure_sum' is half done by medfed's hub"),
    "client_dp": (
        {"privacy": {"kind": "client_dp", "clip": 1.0, "noise_multiplier": 1.0}},
        "privacy: 'client_dp' is half done by medfed's hub",
    ),
    "compress": ({"compress": [{"kind": "int8"}]}, "compress: 'int8' is undone by medfed's hub"),
    "rule": ({"rule": {"kind": "median"}}, "rule.kind: 'median' is medfed's hub's; the network of exchange"),
}


@pytest.mark.parametrize("refused", REFUSED)
def test_a_study_that_needs_medfeds_hub_is_refused_when_it_is_read(network, tmp_path, refused):
    changes, match = REFUSED[refused]
    with pytest.raises(StudyError, match=match):
        study_over(network, tmp_path, **changes)


def test_methods_of_two_halves_are_refused(network, tmp_path):
    text = msgspec.yaml.decode(QUICKSTART.read_bytes())
    with pytest.raises(StudyError, match="local: 'scaffold' is half of a method whose other half is"):
        study_over(
            network, tmp_path,
            train={**text["train"], "local": {"kind": "scaffold"}}, rule={"kind": "scaffold"},
        )  # fmt: skip
    with pytest.raises(StudyError, match=r"train\.keep, train\.patience: the network of exchange"):
        study_over(network, tmp_path, train={**text["train"], "keep": "best"})

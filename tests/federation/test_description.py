"""The sum of hospitals' statistics by the road of a round: over memory, a folder and a broker, and lies."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from msgspec import convert

from medfed.errors import DataError, QuorumError, WireError
from medfed.exchange import MemoryExchange
from medfed.exchange.folder import Folder
from medfed.exchange.nats import Nats
from medfed.federation.config import HubConfig
from medfed.federation.description import (
    STATISTICS,
    Sum,
    answer_statistics,
    collect_statistics,
    description_digest,
    publish_statistics,
)
from medfed.federation.egress import Egress
from medfed.federation.round import SiteConnection
from medfed.privacy import NoPrivacy
from medfed.privacy.secure_sum import SecureSum
from medfed.wire.audit_log import AuditLog, entries
from medfed.wire.update import GlobalModel, Update

SITES = ("north", "south", "west")
DIGEST = description_digest("the study")
# Small counts, the largest digit, and digits of a negative number.
VECTORS = {
    "north": [1.0, 4.0, 2.0**32 - 1, -7.0],
    "south": [1.0, 0.0, 2.0**32 - 1, -(2.0**31)],
    "west": [1.0, 3.0, 1.0, 2.0**31],
}
TOTAL = [3.0, 7.0, 2.0**33 - 1, -7.0]


def not_negative(vector):
    if vector[1] < 0:
        raise DataError("a number of 'patients' is negative")


def config(privacy=None, minimum=3):
    return HubConfig(
        1,
        SITES,
        Sum(check_vector=not_negative),
        privacy=privacy or NoPrivacy(),
        minimum=minimum,
        study_digest=DIGEST,
        outlier=None,
        max_examples=1,
    )


def exchanged(hub, side_of, hub_config, vectors=None, audit=None):
    """Return what the hub collected, and the sum as each site received it."""
    vectors = vectors or VECTORS

    def answer(site):
        side = side_of(site)
        connection = SiteConnection(
            site, side, hub_config.privacy, Egress(frozenset()), audit=audit or AuditLog(None), parties=SITES
        )
        given = vectors.get(site)
        vector = None if given is None else lambda: torch.tensor(given, dtype=torch.float64)
        return answer_statistics(connection, vector, 4)

    with ThreadPoolExecutor(3) as pool:
        waiting = {site: pool.submit(answer, site) for site in SITES}
        try:
            described = collect_statistics(hub_config, hub, 4, audit or AuditLog(None))
            publish_statistics(hub, DIGEST, described.total.round())
        except BaseException:
            hub.close()
            raise
        return described, {site: one.result(60).tolist() for site, one in waiting.items()}


def in_memory(*args, **kwargs):
    exchange = MemoryExchange(DIGEST, parties=SITES)
    return exchanged(exchange, lambda site: exchange, *args, **kwargs)


def test_the_hub_has_the_sum_and_each_hospitals_own_and_every_hospital_receives_the_sum(tmp_path):
    audit = AuditLog(tmp_path / "audit.jsonl")
    described, received = in_memory(config(), audit=audit)
    assert described.total.tolist() == TOTAL
    assert {site: one.tolist() for site, one in described.hospitals.items()} == VECTORS
    assert received == dict.fromkeys(SITES, TOTAL)
    sent = [one for one in entries(tmp_path / "audit.jsonl") if one["event"] == "sent"]
    assert {(one["site"], one["values"], one["tensors"], one["examples"]) for one in sent} == {
        (site, 4, 1, 1) for site in SITES
    }


def test_under_a_secure_sum_the_hub_has_the_sum_alone_and_without_an_error():
    secure = SecureSum(limit=2.0**33, max_examples=1, bits=64)
    described, received = in_memory(config(secure))
    assert described.total.round().tolist() == TOTAL
    assert torch.allclose(described.total, described.total.round(), atol=1e-4)
    assert described.hospitals == {}
    assert received == dict.fromkeys(SITES, TOTAL)


@pytest.mark.parametrize(
    "lie, examples, why",
    [
        ([1.0, -4.0, 1.0, 0.0], 1, "'patients' is negative"),
        ([1.0, float("nan"), 1.0, 0.0], 1, "not finite"),
        ([1.0, 4.0, 1.0], 1, r"has shape \(3,\), the global model has \(4,\)"),
        ([1.0, 4.0, 1.0, 0.0], 1000, "states 1000 examples, this study takes at most 1"),
    ],
)
def test_a_lying_hospital_is_refused_by_name_and_the_others_are_summed(lie, examples, why):
    exchange = MemoryExchange(DIGEST, parties=SITES)

    def send(site):
        exchange.fetch(site, 0)
        given, count = (lie, examples) if site == "west" else (VECTORS[site], 1)
        exchange.send(Update(site, 1, {STATISTICS: torch.tensor(given, dtype=torch.float64)}, count))

    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(send, site) for site in SITES]
        described = collect_statistics(config(minimum=2), exchange, 4, AuditLog(None))
        assert not [one.result(60) for one in waiting if one.result(60)]
    assert described.total.tolist() == [2.0, 4.0, 2.0**33 - 2, -7.0 - 2.0**31]
    assert sorted(described.hospitals) == ["north", "south"]
    (refused,) = [one for one in described.results if one.status == "refused"]
    assert refused.site == "west"
    assert re.search(why, refused.reason)


def test_too_few_hospitals_end_the_request_and_each_is_named():
    vectors = {**VECTORS, "west": [1.0, -4.0, 1.0, 0.0]}
    with pytest.raises(QuorumError, match=r"west: refused .*'patients' is negative"):
        in_memory(config(), vectors)


@pytest.mark.parametrize(
    "model, why",
    [
        (GlobalModel(0, {STATISTICS: torch.zeros(5, dtype=torch.float64)}), "other statistics than the 4"),
        (GlobalModel(0, {"voxels": torch.zeros(4, dtype=torch.float64)}), "other statistics than the 4"),
        (GlobalModel(0, {STATISTICS: torch.zeros(4)}), "of another form"),
        (GlobalModel(0, {STATISTICS: torch.zeros(4, dtype=torch.float64)}, final=True), "of another form"),
        (GlobalModel(2, {STATISTICS: torch.zeros(4, dtype=torch.float64)}, final=True), "of another form"),
    ],
)
def test_a_hub_that_asks_for_something_else_gets_nothing(model, why):
    exchange = MemoryExchange(DIGEST, parties=SITES)
    exchange.publish(replace(model, study_digest=DIGEST))
    asked = []
    with pytest.raises(WireError, match=why):
        answer_statistics(SiteConnection("north", exchange), lambda: asked.append(1), 4)
    assert not asked


def test_the_exchange_of_statistics_has_a_digest_of_its_own():
    assert len({description_digest("a"), description_digest("b"), "a", "b"}) == 4
    assert description_digest("a") == description_digest("a")


@pytest.mark.parametrize("kind", ["folder", "nats"])
def test_statistics_across_machines_and_one_hospital_that_only_receives(tmp_path, request, kind):
    vectors = {**VECTORS, "west": None}
    if kind == "folder":
        exchanges = dict.fromkeys(("hub", *SITES), Folder(url=str(tmp_path / "share"), poll_s=0.05))
    else:
        enrolment = request.getfixturevalue("enrolment")
        enrolment.enrol("west")
        enrolment.start()
        exchanges = {party: convert(enrolment.exchange_of(party), Nats) for party in ("hub", *SITES)}
    hub = exchanges["hub"].open_hub(DIGEST, tmp_path / "hub")
    sides = {site: exchanges[site].open_site(DIGEST, site, tmp_path / site) for site in SITES}
    two = HubConfig(
        1, ("north", "south"), Sum(), minimum=2, study_digest=DIGEST, outlier=None, max_examples=1
    )
    described, received = exchanged(hub, sides.__getitem__, two, vectors)
    expected = [2.0, 4.0, 2.0**33 - 2, -7.0 - 2.0**31]
    assert described.total.tolist() == expected
    assert received == dict.fromkeys(SITES, expected)
    for side in sides.values():
        side.close()
    hub.close()

"""A site decrypts only the sum of what at least `min_sites` hospitals encrypted for this round.

The hub here is real up to the merge and then publishes something else; the site is asked to decrypt it.
"""

from __future__ import annotations

import secrets
from dataclasses import replace
from functools import cache

import msgspec
import numpy as np
import pytest
import torch

from medfed.errors import PrivacyError
from medfed.exchange import MemoryExchange
from medfed.wire.audit_log import AuditLog, entries
from medfed.wire.messages import SiteChannel
from medfed.wire.update import GlobalModel, Update

ts = pytest.importorskip("tenseal")

from medfed.privacy import _ckks_tags as tags  # noqa: E402
from medfed.privacy import ckks as module  # noqa: E402
from medfed.privacy.ckks import Ckks  # noqa: E402

SITES = ("east", "north", "south")
EXAMPLES = {"east": 7, "north": 12, "south": 30}
PRIVACY = Ckks(layers=["a"])


def local(site: str, round: int = 1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(sum(site.encode()) + round)
    # Two ciphertexts; 452 numbers of the second are used.
    return {"a": torch.randn(50, 50, generator=generator), "b": torch.zeros(2)}


MODEL = {name: torch.zeros_like(tensor) for name, tensor in local("east").items()}


@cache
def key() -> bytes:
    return module._new_key()


@cache
def sent(round: int) -> dict[str, Update]:
    protector = module._Encryptor(PRIVACY, key())
    return {
        site: PRIVACY.admit(
            protector.protect(Update(site, round, local(site, round), EXAMPLES[site]), MODEL), MODEL
        )
        for site in SITES
    }


def merged(updates: dict[str, Update], round: int = 1) -> GlobalModel:
    """Return what an honest hub publishes of these updates."""
    _, state = PRIVACY.prepare_merge(list(updates.values()), {}, MODEL)
    return GlobalModel(round, MODEL, groups=state)


def decrypt(model: GlobalModel, audit: AuditLog | None = None) -> GlobalModel:
    exchange = MemoryExchange("5e" * 32)
    exchange.store_secret("north", "ckks", key())
    channel = SiteChannel(exchange, "north", model.round, audit or AuditLog(None), None, SITES, 3)
    return PRIVACY.decrypt(model, channel)


def with_sum(model: GlobalModel, **changes: torch.Tensor) -> GlobalModel:
    return replace(model, groups={module.SUM: {**model.groups[module.SUM], **changes}})


def of_one(site: str) -> dict[str, torch.Tensor]:
    """Return one hospital's ciphertexts, as the sum would hold them."""
    return {"00000": sent(1)[site].groups["ckks"]["00000"]}


def weighted(factors: dict[str, int]) -> dict[str, torch.Tensor]:
    """Return a combination of the hospitals' ciphertexts that the hub may compute."""
    context, total = module._hub_context(), []
    for place in range(2):
        vectors = [
            ts.ckks_vector_from(context, module._unpacked(sent(1)[site].groups["ckks"]["00000"])[place])
            for site, factor in factors.items()
            for _ in range(factor)
        ]
        total.append(sum(vectors[1:], vectors[0]).serialize())
    return {"00000": module._packed(total)}


def relabelled(size: int) -> dict[str, torch.Tensor]:
    """Return the true sum, of which the first ciphertext says that it has another number of values."""
    parts = module._unpacked(merged(sent(1)).groups[module.SUM]["00000"])
    assert parts[0][:3] == b"\x0a\x02\x80"  # a list of one size, 2048 as a varint of two bytes
    changed = parts[0][:2] + bytes([0x80 | size % 128, size // 128]) + parts[0][4:]
    return {"00000": module._packed([changed, *parts[1:]])}


def test_the_true_sum_is_decrypted():
    mean = sum(EXAMPLES[site] * local(site)["a"].double() for site in SITES) / sum(EXAMPLES.values())
    opened = decrypt(merged(sent(1)))
    torch.testing.assert_close(opened.weights["a"].double(), mean, rtol=0, atol=1e-5)
    assert module.SUM not in opened.groups


NOT_THE_SUM = r"what the hub published is not the sum of the ciphertexts of east, north, south"

LIES = {
    "one hospital's update, with its own tag": (
        lambda: merged({"south": sent(1)["south"]}),
        r"the merged model is the sum of 1 hospitals' ciphertexts, 3 are needed \(privacy.min_sites\)",
    ),
    "one hospital's update under all tags": (
        lambda: with_sum(merged(sent(1)), **of_one("south")),
        NOT_THE_SUM,
    ),
    "one hospital counted a second time": (
        lambda: with_sum(merged(sent(1)), **weighted({"east": 1, "north": 1, "south": 2})),
        NOT_THE_SUM,
    ),
    "one ciphertext of another": (
        lambda: with_sum(
            merged(sent(1)),
            **{
                "00000": module._packed(
                    [
                        module._unpacked(of_one("south")["00000"])[0],
                        module._unpacked(merged(sent(1)).groups[module.SUM]["00000"])[1],
                    ]
                )
            },
        ),
        NOT_THE_SUM,
    ),
    "fewer ciphertexts": (
        lambda: with_sum(
            merged(sent(1)),
            **{"00000": module._packed(module._unpacked(merged(sent(1)).groups[module.SUM]["00000"])[:1])},
        ),
        NOT_THE_SUM,
    ),
    "none": (
        lambda: with_sum(merged(sent(1)), **{"00000": torch.zeros(0, dtype=torch.uint8)}),
        "it holds no ciphertexts",
    ),
    "a ciphertext of another length": (
        lambda: with_sum(merged(sent(1)), **relabelled(2000)),
        "it holds no ciphertexts",
    ),
    "a ciphertext of one value": (
        lambda: with_sum(merged(sent(1)), **relabelled(1)),
        "it holds no ciphertexts",
    ),
    "rubbish": (
        lambda: with_sum(merged(sent(1)), **{"00000": module._packed([b"x" * 60, b"y"])}),
        "it holds no ciphertexts",
    ),
    "of an older round": (
        lambda: merged(sent(1), round=2),
        r"what stands for site 'east' in the merged model is no tag that it made for round 2",
    ),
    "tags of another round": (
        lambda: with_sum(merged(sent(1)), **{f"tag of {s}": sent(2)[s].groups["ckks"]["tag"] for s in SITES}),
        r"site 'east' in the merged model is no tag that it made for round 1",
    ),
    "one hospital's tag under three names": (
        lambda: with_sum(
            merged(sent(1)), **{f"tag of {s}": sent(1)["south"].groups["ckks"]["tag"] for s in SITES}
        ),
        r"site 'east' in the merged model is no tag that it made",
    ),
    "a tag that the hub made": (
        lambda: with_sum(
            merged(sent(1)),
            **{
                "tag of east": module._as_tensor(
                    tags.seal_tag(secrets.token_bytes(32), tags.Tag("east", 1, 7, []))
                )
            },
        ),
        r"site 'east' in the merged model is no tag that it made",
    ),
    "a party that is no hospital": (
        lambda: with_sum(merged(sent(1)), **{"tag of broker": sent(1)["south"].groups["ckks"]["tag"]}),
        r"the hub shows 'broker' as a party of the sum, expected hospitals that train in the study \(east, n",
    ),
    "half floats in a ciphertext's place": (
        lambda: with_sum(merged(sent(1)), **{"00000": torch.ones(9, dtype=torch.bfloat16)}),
        "it holds no ciphertexts",
    ),
    "a matrix of numbers of examples": (
        lambda: with_sum(merged(sent(1)), examples=torch.ones(3, 3)),
        "does not state the number of examples as a whole number",
    ),
    "a tag that is a number": (
        lambda: with_sum(merged(sent(1)), **{"tag of east": torch.tensor(1.0)}),
        "it holds no ciphertexts",
    ),
    "another number of examples": (
        lambda: with_sum(merged(sent(1)), examples=torch.tensor(1)),
        NOT_THE_SUM,
    ),
}


@pytest.mark.parametrize("lie, reason", LIES.values(), ids=LIES.keys())
def test_whatever_else_the_hub_publishes_is_not_decrypted(lie, reason, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_decrypted", lambda *_: pytest.fail("it was decrypted"))
    audit = AuditLog(tmp_path / "audit.jsonl")
    with pytest.raises(PrivacyError, match=f"site 'north', round [12]: .*{reason}.*nothing is decrypted"):
        decrypt(lie(), audit)
    (entry,) = entries(tmp_path / "audit.jsonl")
    assert (entry["event"], entry["site"]) == ("hub refused", "north")


def test_a_site_with_a_wrong_tag_is_named_where_its_form_is_wrong():
    honest = sent(1)["east"].groups["ckks"]["tag"]
    wrong = tags.seal_tag(key(), tag_of("south", combined=b""))
    model = with_sum(merged(sent(1)), **{"tag of east": honest, "tag of south": module._as_tensor(wrong)})
    with pytest.raises(PrivacyError, match="site 'south': its tag does not fit the model"):
        decrypt(model)


def with_south(update: Update) -> GlobalModel:
    return merged({**sent(1), "south": update})


def tag_of(site: str, **changes) -> tags.Tag:
    sealed = module._as_bytes(sent(1)[site].groups["ckks"]["tag"])
    (tag,) = tags.open_tags(key(), {site: sealed}, 1)
    return msgspec.structs.replace(tag, **changes)


NAMED = (
    "site 'south' made its tag of other ciphertexts, or of another number of examples, than those that the"
)


def test_a_site_whose_tag_is_of_other_ciphertexts_is_named():
    south, other = sent(1)["south"], sent(2)["south"]
    mixed = {**other.groups["ckks"], "tag": south.groups["ckks"]["tag"]}
    for update in (replace(south, groups={"ckks": mixed}), replace(south, examples=31)):
        with pytest.raises(PrivacyError, match=f"site 'north', round 1: {NAMED}.*nothing is decrypted"):
            decrypt(with_south(update))
    unnamed = with_sum(merged(sent(1)), **{"update of south": torch.zeros(0, dtype=torch.uint8)})
    with pytest.raises(PrivacyError, match=NAMED):
        decrypt(unnamed)


def test_a_site_that_lies_in_the_combination_alone_stops_the_run_without_a_name():
    """What is left: a site that changes medfed itself. The threat model says so."""
    south = sent(1)["south"]
    wrong = tags.seal_tag(key(), tag_of("south", combined=tag_of("east").combined))
    lying = {**south.groups["ckks"], "tag": module._as_tensor(wrong)}
    with pytest.raises(PrivacyError, match=NOT_THE_SUM):
        decrypt(with_south(replace(south, groups={"ckks": lying})))


def test_a_combination_is_the_sum_of_the_ciphertexts_times_the_coefficients(monkeypatch):
    """Decrypted, it is sum r_j m_j: with coefficients that CKKS can hold, computed by hand."""
    monkeypatch.setattr(tags, "_factors", lambda key, round, count: [1, 5, 2][:count])
    context = module._context(key())
    parts = [ts.ckks_vector(context, [value] * 4).serialize() for value in (1.0, 10.0, 100.0)]
    data = tags.combine(ts, context, key(), 1, parts)
    combined = np.array(ts.ckks_vector_from(context, data).decrypt())
    assert np.allclose(combined, [251.0] * 4, atol=1e-3)  # 1 * 1 + 5 * 10 + 2 * 100


@pytest.mark.parametrize("factors", [[1, 1, 1], [7, 3, 3], [4, 2, 1], [6, 6, 1]])
def test_a_combination_leaves_the_ciphertexts_that_planes_share_as_they_are(monkeypatch, factors):
    monkeypatch.setattr(tags, "_factors", lambda key, round, count: factors[:count])
    context = module._context(key())
    parts = [ts.ckks_vector(context, [value]).serialize() for value in (1.0, 10.0, 100.0)]
    data = tags.combine(ts, context, key(), 1, parts)
    (combined,) = ts.ckks_vector_from(context, data).decrypt()
    assert combined == pytest.approx(factors[0] + 10 * factors[1] + 100 * factors[2], abs=1e-3)


def test_coefficients_follow_from_key_and_round_and_nothing_else():
    first = tags._factors(key(), 1, 100)
    assert first == tags._factors(key(), 1, 100)
    assert not set(first) & set(tags._factors(key(), 2, 100))
    assert not set(first) & set(tags._factors(secrets.token_bytes(64), 1, 100))
    assert all(0 < one < 2**40 for one in first)
    assert max(first) > 2**39 / 2  # they have 40 bits

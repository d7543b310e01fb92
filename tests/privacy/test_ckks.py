"""The hub adds ciphertexts: the model equals the plain one, and it never has the key or the model."""

from __future__ import annotations

import re
import threading
from dataclasses import replace

import hospitals
import msgspec
import pytest
import torch
from answering import SITES, STUDY, answer, model
from simulated import simulated

import medfed
from medfed.aggregation.fedavg import FedAvg
from medfed.errors import PrivacyError, QuorumError, StudyError
from medfed.exchange import MemoryExchange
from medfed.federation.acceptance import EXAMPLES
from medfed.federation.checkpoints import load_latest_checkpoint
from medfed.federation.config import HubConfig
from medfed.federation.hub import run_hub
from medfed.federation.round import SiteConnection, receive, send_update
from medfed.privacy import NoPrivacy
from medfed.wire.messages import SiteChannel
from medfed.wire.update import GlobalModel, Update

ts = pytest.importorskip("tenseal")

from medfed.privacy import ckks as module  # noqa: E402
from medfed.privacy.ckks import Ckks  # noqa: E402

ROUNDS = 2

# Scale 2^28 and 39 examples: measured 5e-6 a number of a sum of two, over the examples; float32 itself rounds
# to 4e-6 here.
CLOSE = 1e-5


def run(privacy, rounds=ROUNDS, **more) -> GlobalModel:
    stops = more.pop("stops", None)
    sites = {
        name: lambda exchange, name=name: answer(
            exchange, privacy, name, stops=stops if name == "south" else None
        )
        for name in SITES
    }
    return simulated(
        sites, model(), rule=FedAvg(), rounds=rounds, privacy=privacy, minimum=3, study_digest=STUDY, **more
    )


def close(found: GlobalModel, expected: GlobalModel) -> bool:
    return all(
        torch.allclose(found.weights[name], tensor, rtol=0, atol=CLOSE)
        for name, tensor in expected.weights.items()
    )


@pytest.mark.parametrize("layers", ["all", ["a"], ["b"]])
def test_a_study_ends_with_the_model_that_it_has_without(layers):
    assert close(run(Ckks(layers=layers)), run(NoPrivacy()))


def test_the_hub_holds_neither_the_key_nor_the_model(tmp_path):
    seen: list[bytes] = []
    final = run(Ckks(layers=["a"]), folder=tmp_path / "hub", on_bytes=seen.append)
    assert close(final, run(NoPrivacy()))
    checkpoint, state, _ = load_latest_checkpoint(tmp_path / "hub", STUDY)
    assert torch.equal(checkpoint.weights["a"], model()["a"])  # the untrained numbers
    assert not torch.equal(checkpoint.weights["b"], model()["b"])  # in the clear, and merged
    assert set(state) == {module.SUM, EXAMPLES}
    # Beside the ciphertexts only each site's count of examples, which its update states in the clear.
    assert {site: int(count) for site, count in state[EXAMPLES].items()} == {
        "north": 15,
        "south": 15,
        "west": 14,
    }
    keys = {site: (tmp_path / "sites" / site / "ckks.secret") for site in SITES}
    assert len({path.read_bytes() for path in keys.values()}) == 1
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in keys.values())
    key = keys["north"].read_bytes()
    # Any part of the key, base64 or not: boxes are all that was sent of it.
    assert not any(key[at : at + 64] in data for data in seen for at in range(1000, 40_000, 3000))
    # What the hub has opens to nothing like the model: the hub's own key is nobody's.
    ciphertext = module._unpacked(state[module.SUM]["00000"])[0]
    garbage = torch.tensor(ts.ckks_vector_from(module._hub_context(), ciphertext).decrypt())
    opened = torch.tensor(ts.ckks_vector_from(module._context(key), ciphertext).decrypt())
    true = final.weights["a"].flatten()[: module.SLOTS] * float(state[module.SUM][module.EXAMPLES])
    assert float((opened - true).abs().max()) < 1e-3
    assert float((garbage - true).abs().min()) > 1


def test_a_stopped_run_goes_on_with_the_key_that_the_sites_kept(tmp_path):
    with pytest.raises(QuorumError, match="south"):
        run(Ckks(), rounds=3, folder=tmp_path / "hub", stops=3)
    assert close(run(Ckks(), rounds=3, folder=tmp_path / "hub"), run(NoPrivacy(), rounds=3))


def test_a_site_that_lost_its_key_is_refused_with_the_reason():
    exchange = MemoryExchange(STUDY)
    group = {module.SUM: {module.EXAMPLES: torch.tensor(3)}}
    exchange.publish(GlobalModel(1, model(), study_digest=STUDY, groups=group))
    with pytest.raises(
        PrivacyError, match=r"site 'north', round 1: the model's encrypted layers are closed to this site"
    ):
        receive(SiteConnection("north", exchange, Ckks()), 1)
    with pytest.raises(PrivacyError, match="only sites that train under the study's privacy hold its key"):
        receive(SiteConnection("north", exchange), 1)


class Tampers(MemoryExchange):
    """North's software changes its update before it sends."""

    def __init__(self, change, **more) -> None:
        super().__init__(STUDY, **more)
        self._change = change

    def send(self, update: Update) -> None:
        super().send(self._change(update) if update.site == "north" and update.delta is not None else update)


def tampered(change) -> str:
    exchange, privacy, reports = Tampers(change, parties=SITES), Ckks(layers=["a"], min_sites=2), []
    threads = [threading.Thread(target=answer, args=(exchange, privacy, name), daemon=True) for name in SITES]
    for thread in threads:
        thread.start()
    plan = HubConfig(1, SITES, FedAvg(), privacy, minimum=2, study_digest=STUDY)
    final = run_hub(plan, exchange, model(), on_round=reports.append)
    for thread in threads:
        thread.join(60)
    assert module.SUM in final.groups
    answers = {one.site: one for one in reports[0].results}
    assert [answers[site].status for site in SITES] == ["refused", "merged", "merged"]
    return answers["north"].reason


def piece(update: Update, data: torch.Tensor) -> Update:
    if update.evaluation_only:
        return update
    return replace(update, groups={"ckks": {**update.groups["ckks"], "00000": data}})


def tagged(update: Update, tag: torch.Tensor | None) -> Update:
    if update.evaluation_only:
        return update
    kept = {name: tensor for name, tensor in update.groups["ckks"].items() if name != module.TAG}
    return replace(update, groups={"ckks": kept if tag is None else {**kept, module.TAG: tag}})


def in_the_clear(update: Update) -> Update:
    return update if update.evaluation_only else replace(update, delta=model())


def other_parameters(size: int) -> bytes:
    context = ts.context(ts.SCHEME_TYPE.CKKS, 8192, coeff_mod_bit_sizes=[40, 20, 40])
    return ts.ckks_vector(context, [1.0] * size, 2**20).serialize()


def other_scale(size: int) -> bytes:
    return ts.ckks_vector(module._hub_context(), [1.0] * size, 2.0**20).serialize()


def packed(make, sizes=(2048, 2048, 2048)) -> torch.Tensor:
    return module._packed([make(size) for size in sizes])


def short(size: int) -> bytes:
    return ts.ckks_vector(module._hub_context(), [1.0] * size).serialize()


CHANGES = {
    "rubbish": (
        lambda update: piece(update, torch.ones(5000, dtype=torch.uint8)),
        "0 ciphertexts, expected 3",
    ),
    "floats": (
        lambda update: piece(update, torch.ones(50)),
        "50 numbers of torch.float32 are not 3 ciphertexts",
    ),
    "too much": (
        lambda update: piece(update, torch.ones(300_000, dtype=torch.uint8)),
        "are not 3 ciphertexts",
    ),
    "no ciphertexts": (
        lambda update: piece(update, packed(lambda size: b"x" * 60)),
        "does not hold a ciphertext",
    ),
    "another ring": (
        lambda update: piece(update, packed(other_parameters)),
        "does not hold a ciphertext|are not 3",
    ),
    "another scale": (lambda update: piece(update, packed(other_scale)), "does not hold a ciphertext"),
    "a short one": (
        lambda update: piece(update, packed(short, (2048, 2048, 1904))),
        "does not hold a ciphertext of 2048 numbers",
    ),
    "no tag": (lambda update: tagged(update, None), "1 pieces of ciphertext and no tag, expected 1 and a"),
    "a tag of floats": (
        lambda update: tagged(update, torch.ones(50)),
        "its tag has 50 numbers of torch.float",
    ),
    "a long tag": (
        lambda update: tagged(update, torch.ones(200_000, dtype=torch.uint8)),
        "its tag has 200000 numbers of torch.uint8, expected at most 71000 bytes",
    ),
    "in the clear": (in_the_clear, "'a' is not in the global model"),
}


@pytest.mark.parametrize("change, message", CHANGES.values(), ids=CHANGES.keys())
def test_an_update_that_is_no_ciphertext_is_refused_and_the_others_are_added(change, message):
    assert re.search(message, tampered(change))


def test_messages_without_signatures_are_not_enough():
    exchange = MemoryExchange(STUDY)
    exchange.signed = False
    with pytest.raises(PrivacyError, match=r"privacy.kind: ckks needs messages with signatures"):
        send_update(SiteConnection("north", exchange, Ckks()), Update("north", 1, model(), 5), model())


def test_a_weight_too_large_is_named():
    protector = module._Encryptor(Ckks(), module._new_key())
    with pytest.raises(
        PrivacyError, match=r"site 'north' for round 1: a weight times its 10 examples is 1e\+07"
    ):
        protector.protect(Update("north", 1, {"a": torch.tensor([1e6])}, 10), {"a": torch.zeros(1)})


def test_a_layer_that_does_not_exist_is_named():
    protector = module._Encryptor(Ckks(layers=["head"]), module._new_key())
    with pytest.raises(
        PrivacyError, match=r"privacy.layers: none of the model's tensors begins with head; there are a, b"
    ):
        protector.protect(Update("north", 1, model(), 10), model())


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["rule.kind=fedadam"], "'fedadam' computes with the merged model, which privacy 'ckks' hides"),
        (["rule.kind=median"], "median"),
        (["sampling.fraction=0.5"], "every site must take part in the first round"),
    ],
)
def test_what_cannot_be_computed_on_ciphertext_is_refused_when_the_study_is_read(
    tmp_path, overrides, message
):
    path = hospitals.write_study(tmp_path)
    with pytest.raises(StudyError, match=message):
        medfed.read_study(path, ["privacy.kind=ckks", *overrides])


def test_a_hub_cannot_give_a_site_a_key_of_its_own():
    """The hub puts its own public key in south's place, which south's signature does not cover."""
    from medfed.privacy._ckks_keys import ANNOUNCED, KeyAnnouncement, shared_key
    from medfed.privacy._key_exchange import RelayedMessages, to_bytes

    class Lies(MemoryExchange):
        def send_messages(self, round, attempt, step, channel):
            changed = {
                site: read_and_change(data) if step == ANNOUNCED else data for site, data in channel.items()
            }
            return super().send_messages(round, attempt, step, changed)

    def read_and_change(data: bytes) -> bytes:
        sealed = msgspec.json.decode(data, type=RelayedMessages).messages
        return to_bytes(RelayedMessages({**sealed, "south": sealed["north"]}))

    exchange = Lies(STUDY)
    exchange.publish(GlobalModel(0, model(), study_digest=STUDY))
    for site, key in (("south", b"1" * 32), ("north", b"2" * 32)):
        SiteChannel(exchange, site, 1).send(1, ANNOUNCED, to_bytes(KeyAnnouncement(key)))
    sealed = {site: exchange._messages[(site, "hub", ANNOUNCED)][1] for site in ("north", "south")}
    exchange.send_messages(1, 1, ANNOUNCED, {"north": to_bytes(RelayedMessages(sealed))})
    with pytest.raises(PrivacyError, match="in the name of 'south' that is not from it"):
        shared_key(SiteChannel(exchange, "north", 1, parties=SITES), lambda: b"key")

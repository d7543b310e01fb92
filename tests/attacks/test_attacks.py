"""An enrolled hospital turns hostile: each bad message is refused with its reason, and the round goes on.

Attacks by somebody between the parties are in tests/exchange/end_to_end/test_tampering.py, those by a
lying hub in tests/privacy/test_secagg_client.py, and the checks of the format itself in tests/wire.
"""

from __future__ import annotations

import gzip
import io
import json
import shutil
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from medfed.aggregation.fedavg import FedAvg
from medfed.aggregation.norm_bound import NormBound
from medfed.deployment.enrolment import enrol
from medfed.errors import ExchangeError
from medfed.exchange import _site_transport
from medfed.exchange.folder import Folder
from medfed.federation.config import HubConfig
from medfed.federation.round import aggregate_round
from medfed.privacy import NoPrivacy
from medfed.privacy.secure_sum import SecureSum
from medfed.wire import encoding as wire
from medfed.wire.audit_log import AuditLog, verify
from medfed.wire.messages import SiteChannel
from medfed.wire.update import DEFAULT_OUTLIER_FACTOR, GlobalModel, Update
from medfed.wire.weights import norm

STUDY = "a7" * 32
SITES = ("north", "south", "west")


def model() -> dict[str, torch.Tensor]:
    return {"net.weight": torch.zeros(20, 30), "net.bias": torch.zeros(30)}


def delta(plus: float = 1.0, **changes) -> dict[str, torch.Tensor]:
    return {**{name: torch.full_like(tensor, plus) for name, tensor in model().items()}, **changes}


SUMMED = HubConfig(1, SITES, FedAvg(), SecureSum(), minimum=2, deadline_s=0.3)


class Federation:
    """Three enrolled sites that exchange through a folder; `north` is hostile."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        enrol.init(folder / "enrolment", "test", ["127.0.0.1"])
        for site in SITES:
            request, _ = enrol.request(folder / "credentials" / site, site)
            enrol.sign(folder / "enrolment", request, folder / f"{site}.kit")
            enrol.accept(folder / "credentials" / site, folder / f"{site}.kit")
        self.hub = self.record(folder / "enrolment" / "hub").open_hub(STUDY, folder / "hub")
        self.sites = {
            site: self.record(folder / "credentials" / site).open_site(STUDY, site, folder / site)
            for site in SITES
        }
        self.current = GlobalModel(0, model(), study_digest=STUDY)
        self.hub.publish(self.current)
        for name, side in self.sites.items():
            side.fetch(name, 0)

    def record(self, credentials: Path) -> Folder:
        return Folder(url=str(self.folder / "share"), credentials=str(credentials), poll_s=0.02)

    def go_on(self, weights: dict[str, torch.Tensor]) -> None:
        """Publish the model of a round and let every site fetch it."""
        self.current = GlobalModel(self.current.round + 1, weights, study_digest=STUDY)
        self.hub.publish(self.current)
        for name, side in self.sites.items():
            side.fetch(name, self.current.round)

    def run_round(self, rule=None, privacy=None, outlier: float | None = DEFAULT_OUTLIER_FACTOR):
        round = self.current.round + 1
        for site in ("south", "west"):
            self.sites[site].send(Update(site, round, delta(), 10))
        log = self.folder / f"audit-{round}.jsonl"
        outcome = aggregate_round(
            self.hub,
            HubConfig(
                1, SITES, rule or FedAvg(), privacy or NoPrivacy(), minimum=2, deadline_s=3, outlier=outlier
            ),
            {},
            self.current,
            SITES,
            AuditLog(log),
        )
        verify(log)
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        return outcome, {
            line["site"]: line for line in lines if line["event"] in ("refused", "merged") and "site" in line
        }

    def refused(self) -> str:
        """Run the round, check that the other updates are merged, and return why north's was refused."""
        outcome, log = self.run_round()
        # By hand: both honest sites add 1 to each weight.
        after = self.current.round + 1
        assert all(bool((tensor == after).all()) for tensor in outcome.weights.values())
        status = {answer.site: answer.status for answer in outcome.results}
        assert status == {"north": "refused", "south": "merged", "west": "merged"}
        assert log["north"]["event"] == "refused"
        reason = {answer.site: answer.reason for answer in outcome.results}["north"]
        assert log["north"]["reason"] == reason
        assert "'north'" in reason
        return reason

    def close(self) -> None:
        for side in (self.hub, *self.sites.values()):
            side.close()


@pytest.fixture
def federation(tmp_path):
    result = Federation(tmp_path)
    yield result
    result.close()


def sends(federation: Federation, data: bytes, monkeypatch) -> None:
    """Let north send these bytes as its update for round 1, signed and with correct digests."""
    with monkeypatch.context() as patched:
        patched.setattr(_site_transport.encoding, "update_pieces", lambda update, study="": iter([data]))
        federation.sites["north"].send(Update("north", 1, {}, 1))


# ---------------------------------------------------------------------------------------- between the parties


def up(federation: Federation, site: str, round: int = 1) -> Path:
    return federation.folder / "share" / "up" / STUDY[:16] / site / f"r{round:05d}"


def forged(federation: Federation) -> None:
    """Send south's whole message in north's place."""
    federation.sites["south"].send(Update("south", 1, delta(), 10))
    shutil.copytree(up(federation, "south"), up(federation, "north"))


def swapped(federation: Federation) -> None:
    """Send north's own message of another round in this round."""
    federation.sites["north"].send(Update("north", 2, delta(), 10))
    shutil.copytree(up(federation, "north", 2), up(federation, "north", 1))


def replayed(federation: Federation) -> None:
    """Send north's message of the previous round again, so that it would be merged twice."""
    federation.sites["north"].send(Update("north", 1, delta(), 10))
    outcome, log = federation.run_round()
    assert log["north"]["event"] == "merged"
    kept = federation.folder / "kept"
    shutil.copytree(up(federation, "north"), kept)
    federation.go_on(outcome.weights)
    shutil.copytree(kept, up(federation, "north", 2))


def tampered(federation: Federation) -> None:
    """Flip a bit of a tensor that north sent."""
    federation.sites["north"].send(Update("north", 1, delta(), 10))
    chunk = next((up(federation, "north") / "c").iterdir())
    data = bytearray(chunk.read_bytes())
    data[-20] ^= 1
    chunk.write_bytes(data)


@pytest.mark.parametrize(
    "attack, message",
    [
        (forged, "it is signed by 'south', expected 'north'"),
        (swapped, "its manifest is for round 2"),
        (replayed, "its manifest is for round 1"),
        (tampered, "does not have the digest that its manifest names"),
    ],
)
def test_what_somebody_between_the_parties_changes_has_an_entry_and_the_round_goes_on(
    federation, attack, message
):
    attack(federation)
    assert message in federation.refused()


# ---------------------------------------------------------------------------------------------- bytes


def header(**changes) -> dict[str, str]:
    fields = {
        "is": "update",
        "format": wire.FORMAT,
        "study": STUDY,
        "round": 1,
        "site": "north",
        "examples": 10,
    }
    return {"medfed": json.dumps({**fields, "scalars": {}, **changes})}


def described(**entries) -> bytes:
    """Return a file with 8 bytes of content and an arbitrary header."""
    text = json.dumps({"__metadata__": header(), **entries}).encode()
    return struct.pack("<Q", len(text)) + text + bytes(8)


def entry(offsets, shape=(2,), dtype="F32") -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def zip_bomb() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", bytes(10 << 20))
    return out.getvalue()


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


def framed(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


BYTES = {
    "a zip bomb": zip_bomb(),
    "a gzip bomb": gzip.compress(bytes(10 << 20)),
    "a JSON bomb as header": framed(nested(200_000)),
    "a JSON bomb as metadata": framed('{"__metadata__":' + nested(200_000) + "}"),
    "a JSON bomb in medfed's header": save(delta(), metadata={"medfed": nested(200_000)}),
    "a JSON bomb in a number's place": save(
        {"delta/net.bias": torch.ones(30)},
        metadata={"medfed": header(scalars={"a": 0})["medfed"].replace("0}", nested(100_000) + "}")},
    ),
    "a JSON bomb as settings of a compression": save(
        {"delta/net.bias": torch.ones(30)},
        metadata={"medfed": header(encoded={"a": 0})["medfed"].replace('"a": 0', '"a": ' + nested(20_000))},
    ),
    "many keys": save(delta(), metadata={"medfed": json.dumps({str(n): n for n in range(60_000)})}),
    "a header longer than the file": struct.pack("<Q", 1 << 62) + b"{}",
    "no header": save(delta()),
    "offsets beyond the file": described(**{"delta/net.bias": entry((0, 1 << 40), (1 << 38,))}),
    "offsets that overlap": described(a=entry((0, 8)), b=entry((4, 8), (1,))),
    "a shape that overflows": described(**{"delta/net.bias": entry((0, 8), (1 << 40, 1 << 40))}),
    "a negative shape": described(**{"delta/net.bias": entry((0, 8), (-2,))}),
    "a dtype that does not exist": described(**{"delta/net.bias": entry((0, 8), dtype="OBJ")}),
    "a pickle": b"\x80\x04\x95" + bytes(100),
    "too many bytes": bytes(24 << 20),
}


@pytest.mark.parametrize("signed", [False, True])
def test_a_json_bomb_as_manifest_is_refused(federation, signed):
    text = nested(100_000).encode()
    # Unsigned it is in the first line, where the signature would be: whoever can write to the storage can
    # send it. Signed it comes before what says that this is a manifest, so that it must be read over.
    sealed = (
        federation.sites["north"]._objects.seal.seal(b'{"chunks":' + text + b',"is":"manifest"}')
        if signed
        else b'{"more":' + text + b"}\n{}"
    )
    up(federation, "north").mkdir(parents=True)
    (up(federation, "north") / "m").write_bytes(sealed)
    assert "cannot be decoded" in federation.refused()


@pytest.mark.parametrize("data", BYTES.values(), ids=BYTES.keys())
def test_bytes_that_are_no_update_are_refused(federation, monkeypatch, data):
    sends(federation, data, monkeypatch)
    reason = federation.refused()
    assert "round 1" in reason
    assert len(reason) < 600  # the message repeats nothing of a bomb


# ---------------------------------------------------------------------------------------------- updates


def named(name: str) -> bytes:
    tensors = {f"delta/{key}": tensor for key, tensor in delta().items()} | {name: torch.ones(1)}
    return save(tensors, metadata=header())


NAN = torch.full((30,), float("nan"))
UPDATES = {
    "another site's name": (Update("south", 1, delta(), 10), "sent an update of site 'south'"),
    "another round": (Update("north", 7, delta(), 10), "for round 7, expected its own for round 1"),
    "NaN": (
        Update("north", 1, delta(**{"net.bias": NAN}), 10),
        "'net.bias' has 30 of 30 values that are not finite",
    ),
    "infinity": (
        Update("north", 1, delta(**{"net.bias": NAN.nan_to_num(float("inf"))}), 10),
        "values that are not finite",
    ),
    "NaN in a group": (
        Update("north", 1, delta(), 10, groups={"control": {"net.bias": NAN}}),
        "'net.bias' of group 'control' has values that are not finite",
    ),
    "NaN as a score": (
        Update("north", 1, delta(), 10, {"val/dice": float("nan")}),
        "the header cannot be decoded",
    ),
    "a negative weight": (Update("north", 1, delta(), -10), "trained on -10 examples"),
    "a tensor more": (
        Update("north", 1, delta(**{"net.scale": torch.ones(1)}), 10),
        "'net.scale' is not in the global model",
    ),
    "a tensor too large": (
        Update("north", 1, delta(**{"net.bias": torch.ones(3000)}), 10),
        "has shape (3000,)",
    ),
    "a million times": (
        Update("north", 1, delta(1e6), 10),
        "its norm is 2.51e+07, the median of this round's 25.1",
    ),
    "a million times less": (
        Update("north", 1, delta(-1e6), 10),
        "its norm is 2.51e+07, the median of this round's 25.1",
    ),
    "a broadcast": (Update("north", 1, delta(**{"net.bias": torch.ones(1)}), 10), "has shape (1,)"),
}


@pytest.mark.parametrize("update, message", UPDATES.values(), ids=UPDATES.keys())
def test_an_update_that_does_not_fit_is_refused(federation, monkeypatch, update, message):
    data = wire.encode_update(update, STUDY)
    sends(federation, data, monkeypatch)
    assert message in federation.refused()


@pytest.mark.parametrize("name", ["delta/../../etc/cron", "group:../../x/y", "/etc/passwd", "../x", "delta/"])
def test_a_path_in_a_tensors_name_is_refused_and_nothing_is_written_there(federation, monkeypatch, name):
    before = {path for path in federation.folder.rglob("*") if "credentials" in path.parts}
    sends(federation, named(name), monkeypatch)
    assert f"'{name}'" in federation.refused()
    assert before == {path for path in federation.folder.rglob("*") if "credentials" in path.parts}
    assert not list(federation.folder.parent.glob("x"))


@pytest.mark.parametrize("name", ["../south", "a/b", "..", "hub", "a\nb"])
def test_a_path_as_a_sites_name_opens_nothing(federation, name):
    with pytest.raises(ExchangeError, match="a site's name is 1 to 64 letters"):
        federation.record(federation.folder / "credentials" / "north").open_site(
            STUDY, name, federation.folder / "x"
        )


def test_left_to_a_rule_that_bounds_norms_it_moves_the_model_no_further_than_an_honest_one(federation):
    federation.sites["north"].send(Update("north", 1, delta(1e6), 10))
    outcome, log = federation.run_round(rule=NormBound(), outlier=None)
    honest = norm(delta())
    # By hand: each update is clipped to the median norm, so the mean of three is at most that long.
    assert norm(outcome.weights) == pytest.approx(honest, rel=1e-6)
    assert log["north"]["event"] == "merged"


def test_a_plain_update_in_a_secure_sum_is_refused(federation):
    """A site that skips the messages is not awaited, and files in its name are not read."""
    from medfed.errors import QuorumError

    federation.sites["north"].send(Update("north", 1, delta(1e6), 10))
    with pytest.raises(QuorumError, match="0 of 3 sites showed keys"):
        aggregate_round(federation.hub, SUMMED, {}, federation.current, SITES, AuditLog(None))


@pytest.mark.parametrize(
    "data, message",
    [
        (nested(100_000).encode(), "cannot be decoded"),
        (b'{"box":"AAAA","mask":"AAAA","seed":"AAAA"}', "X25519's have 32"),
        (b"\x80\x04\x95", "cannot be decoded"),
        (b"{}", "cannot be decoded"),
    ],
    ids=["nested", "short keys", "pickle", "empty"],
)
def test_a_message_that_is_none_is_refused_with_an_entry(federation, data, message):
    from medfed.errors import QuorumError

    SiteChannel(federation.sites["north"], "north", 1, model=federation.current).send(1, "keys", data)
    log = federation.folder / "audit.jsonl"
    with pytest.raises(QuorumError, match="0 of 3 sites showed keys"):
        aggregate_round(federation.hub, SUMMED, {}, federation.current, SITES, AuditLog(log))
    (line,) = [json.loads(line) for line in log.read_text().splitlines()]
    assert (line["event"], line["site"], line["step"]) == ("message refused", "north", "keys")
    assert message in line["reason"]


def test_a_message_in_anothers_name_is_refused(federation):
    federation.sites["south"].send_message("south", 1, 1, "keys", b"of south")
    share = federation.folder / "share" / "up" / STUDY[:16]
    (share / "north" / "l-keys").mkdir(parents=True)
    (share / "north" / "l-keys" / "m").write_bytes((share / "south" / "l-keys" / "m").read_bytes())
    (message,) = federation.hub.collect_messages(1, 1, "keys", ["north"], 5)
    assert "it is signed by 'south', expected 'north'" in str(message.error)


def test_a_message_larger_than_any_is_refused(federation):
    share = federation.folder / "share" / "up" / STUDY[:16] / "north" / "l-keys"
    share.mkdir(parents=True)
    (share / "m").write_bytes(bytes(5 << 20))
    (message,) = federation.hub.collect_messages(1, 1, "keys", ["north"], 5)
    assert "a message of 5242880 bytes; at most 4194304 are read" in str(message.error)

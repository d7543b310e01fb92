"""A hub that lies in ways that belong to one mechanism, and with real certificates.

What it tries on every mechanism alike is in `medfed.testing` and runs in tests/contracts/test_privacy.py.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from medfed.deployment.enrolment import enrol
from medfed.errors import PrivacyError, StudyError
from medfed.exchange import DropOut
from medfed.federation.round import SiteConnection, receive, send_update
from medfed.privacy._key_exchange import EncryptedBySite, RelayedMessages, parse, to_bytes
from medfed.privacy._secagg import (
    DeliveredShares,
    Keys,
    Members,
    Shares,
    SignedMembers,
    UnmaskRequest,
    neighbours,
    view,
)
from medfed.privacy._shamir import SHARE_BYTES, join, split
from medfed.privacy.distributed_dp import DistributedDP
from medfed.privacy.secure_sum import SecureSum
from medfed.study.reading import parse_study
from medfed.testing._malicious_hub import (
    PARTY_LIES,
    STUDY,
    MaliciousHub,
    forwarding_steps,
    lying_to,
    require_refusal,
    round_under,
)
from medfed.wire.audit_log import AuditLog, entries
from medfed.wire.messages import FORMAT, Message, SiteChannel, Statement, seal_message
from medfed.wire.signing import HUB, Identity
from medfed.wire.update import GlobalModel, Update, model_digest

torch.set_num_threads(1)

SITES = ("alfa", "bravo", "charlie", "delta")
WAIT_S = 10


def update(site: str) -> Update:
    number = sum(site.encode()) % 17
    return Update(site, 1, {"w": torch.arange(5.0) + number}, 10 + number)


# ---------------------------------------------------------------------------------------- real certificates


@pytest.fixture(scope="module")
def identities(tmp_path_factory) -> dict[str, Identity]:
    folder = tmp_path_factory.mktemp("enrolled")
    enrol.init(folder / "enrolment", "fed", ["127.0.0.1"])
    for site in (*SITES, "stranger", "Alfa"):
        request, _ = enrol.request(folder / site, site)
        enrol.sign(folder / "enrolment", request, folder / f"{site}.kit")
        enrol.accept(folder / site, folder / f"{site}.kit")
    (folder / "enrolment" / "authority.key").unlink()  # the hub's operator has not got it
    own = {party: Identity(folder / "enrolment" / party).check() for party in ("hub", "broker")}
    return {**own, **{site: Identity(folder / site).check() for site in (*SITES, "stranger", "Alfa")}}


def mechanisms():
    yield SecureSum(patience_s=WAIT_S)
    yield DistributedDP(noise_multiplier=1.0, clip=50.0, patience_s=WAIT_S)
    try:
        from medfed.privacy.ckks import Ckks, _tenseal

        _tenseal()
        yield Ckks(patience_s=WAIT_S)
    except PrivacyError:
        yield pytest.param(None, marks=pytest.mark.skip(reason="tenseal is not installed"))


@pytest.mark.parametrize("privacy", mechanisms(), ids=lambda one: type(one).__name__)
def test_with_certificates_too_no_lie_about_parties_is_believed(identities, privacy):
    """The hub has two certificates that `enrol init` gave it, and one of a hospital outside the study."""
    updates = {site: update(site) for site in SITES}
    honest = MaliciousHub(SITES, seals=identities.__getitem__)
    assert round_under(privacy, honest, updates, 3).merged == list(SITES)
    step = forwarding_steps(honest, "delta")[0]
    for name, (change, reason) in PARTY_LIES.items():
        hub = MaliciousHub(SITES, seals=identities.__getitem__)
        hub.lie = lying_to(hub, "delta", step, change)
        round_result = round_under(privacy, hub, updates, 3)
        require_refusal(round_result, "delta", reason, name)
        assert {"alfa", "bravo", "charlie"} <= set(round_result.merged), name


REST = """
task: {kind: classify, classes: [benign, malignant]}
network: {kind: fully_connected}
data: {kind: table, features: [age], target: grade}
train: {rounds: 1, epochs: 1, optimiser: {kind: sgd, lr: 0.1}}
"""


def test_a_study_cannot_make_hub_or_broker_a_hospital(tmp_path):
    for name in ("hub", "Broker"):
        with pytest.raises(StudyError, match=f"sites: '{name}' is the name of the {name.lower()} itself"):
            parse_study(f"name: s\nsites: {{north: a, {name}: b}}\n{REST}", "study.yaml")
    # Nor a script that names it as a party.
    hub = MaliciousHub((*SITES, HUB))
    channel = SiteChannel(hub, "alfa", 1, parties=(*SITES, HUB))
    with pytest.raises(PrivacyError, match="the hub shows 'hub' as a party"):
        channel.open(b"", HUB)


# -------------------------------------------------------------------------- a secure sum, message by message


@dataclass
class Scripted:
    """A secure sum whose hub and colluding sites are this test: it writes each message itself."""

    privacy: SecureSum
    colluding: tuple[str, ...]
    sites: tuple[str, ...] = SITES
    ends: dict[str, BaseException | None] = field(default_factory=dict)
    logs: Path | None = None

    def __post_init__(self) -> None:
        self.hub = MaliciousHub(self.sites)
        weights = {name: torch.zeros_like(tensor) for name, tensor in update("alfa").delta.items()}
        self.model = GlobalModel(0, weights, study_digest=STUDY)
        self.hub.publish(self.model)
        self.honest = tuple(site for site in self.sites if site not in self.colluding)
        self.threads = [
            threading.Thread(target=self._work, args=(site,), daemon=True) for site in self.honest
        ]
        for thread in self.threads:
            thread.start()
        # By site what it was told instead of `keys`.
        self.told: dict[str, dict[str, Keys]] = {}
        self.box = {site: X25519PrivateKey.generate() for site in self.colluding}
        self.mask = {site: X25519PrivateKey.generate() for site in self.colluding}
        self.seed = {site: secrets.token_bytes(32) for site in self.colluding}

    def _work(self, site: str) -> None:
        try:
            log = AuditLog(self.logs / f"{site}.jsonl" if self.logs else None)
            connection = SiteConnection(site, self.hub, self.privacy, audit=log, parties=self.sites)
            received = receive(connection, 0)
            send_update(connection, update(site), received.weights, model_sha256=received.sha256)
            self.ends[site] = None
        except BaseException as error:
            self.ends[site] = error
            self.hub.drop_out(site, DropOut.ERROR)

    def end(self) -> dict[str, BaseException | None]:
        self.hub.close()
        for thread in self.threads:
            thread.join(WAIT_S)
        return self.ends

    def say(self, step: str, contents: Mapping[str, object]) -> None:
        self.hub.send_messages(1, 1, step, {site: to_bytes(content) for site, content in contents.items()})

    def hear(self, step: str, sites: Sequence[str] | None = None) -> dict[str, tuple[bytes, bytes]]:
        """Return what each honest site that answers says for a step, and as it was sealed."""
        heard = {}
        for one in self.hub.collect_messages(1, 1, step, self.honest if sites is None else sites, WAIT_S):
            if one.message is not None:
                heard[one.site] = (parse(one.message.data, Statement, one.site, step).content, one.sealed)
        return heard

    def sealed(self, site: str, step: str, content: object) -> bytes:
        statement = msgspec.json.encode(Statement(model_digest(self.model), to_bytes(content)))
        message = Message(FORMAT, STUDY, self.hub._run, site, HUB, 1, 1, step, statement)
        return seal_message(message, self.hub._seal(site))

    def shown_to(self, site: str) -> bytes:
        """Return the digest of the keys that a site was shown, to which shares are bound."""
        return view(self.told.get(site, self.keys), ())

    def cipher(self, colluding: str, other: str, sender: str, receiver: str) -> AESGCM:
        shared = self.box[colluding].exchange(X25519PublicKey.from_public_bytes(self.keys[other].box))
        return AESGCM(hkdf(shared, f"secure sum box 1/1 {sender} to {receiver}"))

    def up_to_the_updates(self) -> None:
        """Follow the protocol until the masked updates are there, colluding sites being present."""
        self.hub.send_messages(1, 1, "call", dict.fromkeys(self.honest, b""))
        heard = self.hear("keys")
        self.keys = {site: parse(content, Keys, site, "keys") for site, (content, _) in heard.items()}
        relayed = {site: sealed for site, (_, sealed) in heard.items()}
        for site in self.colluding:
            own = Keys(
                self.box[site].public_key().public_bytes_raw(),
                self.mask[site].public_key().public_bytes_raw(),
                hashlib.sha256(self.seed[site]).digest(),
            )
            self.keys[site], relayed[site] = own, self.sealed(site, "keys", own)
        self.say("keys", dict.fromkeys(self.honest, RelayedMessages(relayed)))
        boxes = {
            site: parse(content, EncryptedBySite, site, "shares").by_site
            for site, (content, _) in self.hear("shares").items()
        }
        self.known: dict[tuple[str, str], tuple[bytes, bytes]] = {}  # by owner and colluding holder
        for owner in self.honest:
            for holder in self.colluding:
                opened = self.cipher(holder, owner, owner, holder).decrypt(
                    bytes(12), boxes[owner][holder], self.shown_to(owner)
                )
                self.known[owner, holder] = opened[:SHARE_BYTES], opened[SHARE_BYTES:]
        needed = self.privacy._settings.required_shares(len(self.sites))
        for owner in self.colluding:
            of_key = split(self.mask[owner].private_bytes_raw(), len(self.sites), needed)
            of_seed = split(self.seed[owner], len(self.sites), needed)
            for place, holder in enumerate(self.sites):
                if holder in self.honest:
                    box = self.cipher(owner, holder, owner, holder)
                    boxes.setdefault(owner, {})[holder] = box.encrypt(
                        bytes(12), of_key[place] + of_seed[place], self.shown_to(holder)
                    )
        self.say(
            "shares",
            {
                site: DeliveredShares(
                    list(self.sites), {other: boxes[other][site] for other in self.sites if other != site}
                )
                for site in self.honest
            },
        )
        self.updates = {one.site: one.update for one in self.hub.collect(1, self.honest, WAIT_S)}

    def everybody(self) -> dict[str, list[str]]:
        return {site: list(self.sites) for site in self.honest}

    def ask_for_shares(self, lists: Mapping[str, list[str]]) -> dict[str, Shares]:
        """Tell each honest site its list and every signature of it that there is; return the shares given."""
        self.say("members", {site: Members(lists[site]) for site in self.honest})
        # A site that is told that it dropped out says no more.
        heard = self.hear("signed", [site for site in self.honest if site in lists[site]])
        requests = {}
        for site in heard:
            same = {other: heard[other][1] for other in heard if lists[other] == lists[site]}
            listed = SignedMembers(lists[site], view(self.keys, self.sites))
            same |= {f: self.sealed(f, "signed", listed) for f in self.colluding if f in lists[site]}
            dropped = sorted(set(self.sites) - set(lists[site]))
            requests[site] = UnmaskRequest(same, lists[site], dropped)
        self.say("signed", requests)
        return {
            site: parse(content, Shares, site, "unmask")
            for site, (content, _) in self.hear("unmask", list(heard)).items()
        }


def hkdf(secret: bytes, purpose: str) -> bytes:
    """RFC 5869 by its definition, one block."""
    extracted = hmac.digest(bytes(32), secret, hashlib.sha256)
    return hmac.digest(extracted, f"medfed-1 {purpose}".encode() + b"\x01", hashlib.sha256)


def stream(key: bytes, first: int, count: int) -> np.ndarray:
    """AES-256 in counter mode from zero, as 64-bit numbers `first` to `first + count`."""
    cipher = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()
    return np.frombuffer(cipher.update(bytes(8 * (first + count))), "<u8")[first:]


def pair(one: str, two: str, private: X25519PrivateKey, public: bytes) -> bytes:
    shared = private.exchange(X25519PublicKey.from_public_bytes(public))
    return hkdf(shared, f"secure sum mask {'/'.join(sorted((one, two)))}")


def masked(site: str, seed: bytes, mask: X25519PrivateKey, keys: Mapping[str, Keys], privacy) -> np.ndarray:
    """Return what a site sends after Bonawitz 2017, figure 4: x_u + PRG(b_u) + the sum of +-PRG(s_uv)."""
    one = update(site)
    scale = privacy._settings.fixed_point(len(keys)).scale
    share = one.examples / privacy.max_examples
    values = np.rint(one.delta["w"].double().numpy() * share * scale).astype(np.int64)
    total = np.concatenate([[one.examples], values]).astype(np.int64).view(np.uint64)
    total = total + stream(hkdf(seed, "secure sum own mask"), 0, total.size)
    for other, shown in keys.items():
        if other != site:
            drawn = stream(pair(site, other, mask, shown.mask), 0, total.size)
            total = total + drawn if site < other else total - drawn
    return total


def sent(one: Update) -> np.ndarray:
    numbers = [one.groups["secure_sum"]["examples"].reshape(-1), one.delta["w"]]
    return np.concatenate([tensor.numpy() for tensor in numbers]).view(np.uint64)


def test_the_masked_update_is_that_of_the_paper(monkeypatch):
    """Bonawitz et al., CCS 2017, computed again from the secrets that its site drew."""
    from medfed.privacy import _secagg_client

    drawn: dict[str, _secagg_client._Secrets] = {}
    agree = _secagg_client._agree

    def watched(attempt):
        agreed = agree(attempt)
        drawn[attempt.site] = agreed.own
        return agreed

    monkeypatch.setattr(_secagg_client, "_agree", watched)
    script = Scripted(SecureSum(patience_s=WAIT_S), ("charlie", "delta"))
    script.up_to_the_updates()
    script.end()
    for site in ("alfa", "bravo"):
        own = drawn[site]
        expected = masked(site, own.seed, own.mask_key, script.keys, script.privacy)
        assert np.array_equal(sent(script.updates[site]), expected), site


def split_view(privacy: SecureSum) -> tuple[Scripted, dict[str, Shares]]:
    """Hub, charlie and delta tell alfa that all are in the sum, and bravo that alfa dropped out."""
    script = Scripted(privacy, ("charlie", "delta"))
    script.up_to_the_updates()
    given = script.ask_for_shares({"alfa": list(SITES), "bravo": ["bravo", "charlie", "delta"]})
    script.end()
    return script, given


def test_more_colluding_sites_than_the_study_states_read_an_update_so_the_bound_is_exact():
    """t = 3 of 4 holds for one colluding site: 1 < 2 * 3 - 4. Two are not fewer, and this is what they do."""
    script, given = split_view(SecureSum(patience_s=WAIT_S))
    places = {site: number for number, site in enumerate(SITES, 1)}
    shares = {site: script.known["alfa", site] for site in script.colluding}
    seed = join({1: given["alfa"].seeds["alfa"], **{places[one]: shares[one][1] for one in shares}})
    key = join({2: given["bravo"].keys["alfa"], **{places[one]: shares[one][0] for one in shares}})
    mask = X25519PrivateKey.from_private_bytes(key)
    bare = sent(script.updates["alfa"]) - masked("alfa", seed, mask, script.keys, script.privacy)
    assert not bare.any()


def test_as_many_as_the_study_states_do_not(tmp_path):
    """t = 6 of 7 with colluding: 3, since 3 < 2 * 6 - 7; with t = 5, which each list has, 3 = 2 * 5 - 7."""
    helpers = ("echo", "foxtrot", "golf")
    sites = (*SITES, *helpers)
    privacy = SecureSum(colluding=3, min_sites=5, threshold=0.51, patience_s=WAIT_S)
    script = Scripted(privacy, helpers, sites, logs=tmp_path)
    script.up_to_the_updates()
    told_all = ("alfa", "bravo")
    given = script.ask_for_shares(
        {site: [one for one in sites if site in told_all or one != "alfa"] for site in script.honest}
    )
    ends = script.end()
    assert given == {}
    assert all("5 of 7 sites signed the list, 6 are needed" in str(end) for end in ends.values()), ends
    for site, end in ends.items():
        refused = [line for line in entries(tmp_path / f"{site}.jsonl") if line["event"] == "hub refused"]
        assert [(line["site"], line["reason"]) for line in refused] == [(site, str(end))]


LISTS = st.lists(st.sampled_from(range(1, 32)), min_size=4, max_size=4)


@given(LISTS)
@hypothesis_settings(
    max_examples=25, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck)
)
def test_whatever_lists_it_tells_nobodys_shares_of_both_kinds_are_enough(chosen):
    """Five sites, one colluding; each honest site is told any list, with all signatures of that list."""
    sites = (*SITES, "echo")
    script = Scripted(SecureSum(patience_s=WAIT_S), ("echo",), sites)
    script.up_to_the_updates()
    lists = {
        site: [one for place, one in enumerate(sites) if bits >> place & 1]
        for site, bits in zip(script.honest, chosen, strict=True)
    }
    given_shares = script.ask_for_shares(lists)
    script.end()
    enough = script.privacy._settings.required_shares(len(sites))
    assert enough == 4
    for owner in script.honest:
        seeds = 1 + sum(owner in shares.seeds for shares in given_shares.values())
        keys = 1 + sum(owner in shares.keys for shares in given_shares.values())
        assert min(seeds, keys) < enough, (owner, lists)
    # Whoever gave shares gave them for one list, of enough sites.
    told = {tuple(lists[site]) for site in given_shares}
    assert len(told) <= 1
    assert all(len(one) >= enough for one in told)


# What is written instead of the hub's next message, and how the honest sites refuse.
LIES_AFTER_THE_UPDATES = {
    "a member that sent no shares": (lambda sites: [*sites, "zulu"], "or one that sent no shares"),
    "a member twice": (lambda sites: ["alfa", *sites], "names a site twice"),
    "a list in another order": (lambda sites: sites[::-1], "names a site twice"),
    "a list that is too short": (lambda sites: sites[:2], "2 of 4 sites are in the sum, 3 are needed"),
    "an empty name": (lambda sites: ["", *sites], "or one that sent no shares"),
}


@pytest.mark.parametrize("lie", LIES_AFTER_THE_UPDATES)
def test_a_list_of_members_that_is_none_is_not_signed(lie):
    change, reason = LIES_AFTER_THE_UPDATES[lie]
    script = Scripted(SecureSum(patience_s=WAIT_S), ("charlie", "delta"))
    script.up_to_the_updates()
    script.say("members", dict.fromkeys(script.honest, Members(change(list(SITES)))))
    assert script.hear("signed") == {}
    ends = script.end()
    assert all(isinstance(end, PrivacyError) and reason in str(end) for end in ends.values()), ends


REQUESTS = {
    "both kinds": (
        lambda r: UnmaskRequest(r.messages, r.seeds_of, ["delta"]),
        "shares of both kinds of site",
    ),
    "a dropout that is none": (
        lambda r: UnmaskRequest(r.messages, ["alfa", "bravo", "charlie"], ["delta"]),
        "of other sites than the list that this site signed",
    ),
    "nobody's": (lambda r: UnmaskRequest(r.messages, [], []), "of other sites than the list"),
    "no signatures": (lambda r: UnmaskRequest({}, r.seeds_of, r.keys_of), "0 of 4 sites signed the list"),
    "an outsider's signature": (
        lambda r: UnmaskRequest({**r.messages, "hub": r.messages["alfa"]}, r.seeds_of, r.keys_of),
        "the hub shows 'hub' as a party",
    ),
}


@pytest.mark.parametrize("lie", REQUESTS)
def test_a_request_for_other_shares_gets_none(lie):
    change, reason = REQUESTS[lie]
    script = Scripted(SecureSum(patience_s=WAIT_S), ("charlie", "delta"))
    script.up_to_the_updates()
    script.say("members", dict.fromkeys(script.honest, Members(list(SITES))))
    signed = {site: sealed for site, (_, sealed) in script.hear("signed").items()}
    listed = SignedMembers(list(SITES), view(script.keys, SITES))
    signed |= {site: script.sealed(site, "signed", listed) for site in script.colluding}
    script.say("signed", dict.fromkeys(script.honest, change(UnmaskRequest(signed, list(SITES), []))))
    assert script.hear("unmask") == {}
    ends = script.end()
    assert all(isinstance(end, PrivacyError) and reason in str(end) for end in ends.values()), ends


def test_sites_that_were_shown_other_keys_do_not_unmask():
    """A colluding site shows alfa and bravo different keys, which a list of names alone would not tell."""
    script = Scripted(SecureSum(patience_s=WAIT_S), ("charlie", "delta"))
    say, fresh = script.say, X25519PrivateKey.generate()

    def forked(step, contents):
        if step == "keys":
            told = contents["bravo"].messages
            other = msgspec.structs.replace(script.keys["delta"], mask=fresh.public_key().public_bytes_raw())
            script.told["bravo"] = {**script.keys, "delta": other}
            contents = {
                **contents,
                "bravo": RelayedMessages({**told, "delta": script.sealed("delta", "keys", other)}),
            }
        say(step, contents)

    script.say = forked
    script.up_to_the_updates()
    assert script.ask_for_shares(script.everybody()) == {}
    ends = script.end()
    assert "site 'alfa' was shown other keys" in str(ends["bravo"])


def test_a_site_that_only_colluding_sites_answer_sends_no_update():
    """The hub replays honest sites' keys, which nobody can answer; charlie may be a colluding site."""
    script = Scripted(SecureSum(patience_s=WAIT_S), ("charlie",))
    say = script.say

    def stale(step, contents):
        if step == "shares":
            spoilt = {other: secrets.token_bytes(80) for other in ("bravo", "delta")}
            told = contents["alfa"]
            contents = {**contents, "alfa": DeliveredShares(told.members, {**told.by_site, **spoilt})}
        say(step, contents)

    script.say = stale
    script.up_to_the_updates()
    ends = script.end()
    assert [site for site, one in sorted(script.updates.items()) if one is not None] == ["bravo", "delta"]
    assert "'alfa', round 1: the shares of bravo, delta do not open: the hub showed" in str(ends["alfa"])


@pytest.mark.parametrize("listed", [[], ["bravo"], ["bravo", "delta"]], ids=len)
def test_a_list_of_too_few_is_refused_at_once_by_whoever_is_not_on_it(listed):
    """No honest hub says that; a site that believed it would wait for another attempt for ever."""
    script = Scripted(SecureSum(patience_s=WAIT_S), ("charlie", "delta"))
    script.up_to_the_updates()
    script.say("members", {"alfa": Members(listed)})
    script.threads[0].join(WAIT_S)
    assert f"'alfa', round 1: {len(listed)} of 4 sites are in the sum, 3 are needed" in str(
        script.ends["alfa"]
    )
    script.end()


def test_shares_of_one_attempt_are_of_no_use_in_the_next():
    """Seeds in the first, keys in the second: they are other secrets, and only the same list is signed."""
    script = Scripted(SecureSum(patience_s=WAIT_S), ("charlie", "delta"))
    script.up_to_the_updates()
    given_shares = script.ask_for_shares(script.everybody())
    assert {site: sorted(shares.seeds) for site, shares in given_shares.items()} == {
        "alfa": list(SITES),
        "bravo": list(SITES),
    }
    assert all(not shares.keys for shares in given_shares.values())
    first = script.keys["alfa"]
    script.hub.send_messages(1, 2, "call", dict.fromkeys(script.honest, b""))
    again = {
        one.site: one.message for one in script.hub.collect_messages(1, 2, "keys", script.honest, WAIT_S)
    }
    script.end()
    second = parse(parse(again["alfa"].data, Statement, "alfa", "keys").content, Keys, "alfa", "keys")
    assert len({first.box, first.mask, first.seed, second.box, second.mask, second.seed}) == 6


# --------------------------------------------------------------------------------------------------- the ring


def ring_of(names: Sequence[str], most: int) -> dict[str, list[str]]:
    keys = {name: Keys(f"{name}-box".encode(), f"{name}-mask".encode(), b"") for name in names}
    return neighbours(keys, most)


def test_the_ring_is_the_graph_of_the_paper():
    """Bell et al., CCS 2020: a Harary graph over a random order, here made again by networkx."""
    networkx = pytest.importorskip("networkx")
    graph = networkx.Graph()
    for site, others in ring_of([f"s{number:02d}" for number in range(13)], 6).items():
        graph.add_edges_from((site, other) for other in others)
    assert networkx.is_isomorphic(graph, networkx.hkn_harary_graph(6, 13))
    assert networkx.node_connectivity(graph) == 6


@pytest.mark.parametrize("colluding", [0, 1])
def test_no_part_of_a_ring_can_be_cut_off_and_unmasked(colluding):
    """Every list of who is in the sum, every place of a colluding site: ten sites, four neighbours each."""
    sites = [f"s{number}" for number in range(10)]
    around = ring_of(sites, 4)
    settings = SecureSum(neighbours=4, colluding=colluding, threshold=0.51)._settings
    shares, cut = settings.required_shares(len(sites)), 0
    for bits in range(1 << len(sites)):
        in_sum = {site for place, site in enumerate(sites) if bits >> place & 1}
        if len(in_sum) < settings.required(len(sites)):
            continue
        for helps in sites if colluding else [None]:
            honest = in_sum - {helps}
            for part in parts(honest, around):
                if part == honest:
                    continue
                cut += 1
                holders = [
                    sum(one in honest or one == helps for one in (site, *around[site])) for site in part
                ]
                assert min(holders) < shares, (sorted(in_sum), helps, sorted(part))
    assert cut  # some lists do cut the ring


def parts(sites: set[str], around: Mapping[str, list[str]]) -> list[set[str]]:
    """Return the connected parts of these sites."""
    rest, result = set(sites), []
    while rest:
        part, edge = set(), {min(rest)}
        while edge:
            part |= edge
            edge = {other for site in edge for other in around[site] if other in sites} - part
        rest -= part
        result.append(part)
    return result

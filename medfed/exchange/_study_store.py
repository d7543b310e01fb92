"""One study's objects in an object store: their names, and how a party writes and opens them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from medfed.exchange._chunks import measure_chunks
from medfed.exchange._manifest import (
    PROTOCOL,
    ControlKind,
    ControlMessage,
    Manifest,
    encode_sealed,
    open_control,
    open_manifest,
)
from medfed.exchange._object_store import Buffer, ObjectStore
from medfed.wire.signing import HUB, Seal

# Below this and its name lies what the hub offers to one site: glob/site-<site>/studies/m.
OFFERS = "site-"


def space_of(study_digest: str) -> str:
    """Return the part of names, and of a broker's subjects, under which a study's objects lie."""
    return study_digest[:16] or "none"


@dataclass(frozen=True)
class StudyStore:
    """One study's objects in an object store, as one party (a site, or `hub`) reads and writes them."""

    store: ObjectStore
    seal: Seal
    study_digest: str
    party: str

    def update_prefix(self, site: str, round: int) -> str:
        """Return the prefix of a site's update for a round."""
        return f"up/{self._space}/{site}/r{round:05d}"

    def global_prefix(self, round: int) -> str:
        """Return the prefix of the chunks of a round's global model."""
        return f"glob/{self._space}/r{round:05d}"

    def site_object(self, site: str, what: str) -> str:
        """Return the name of one of a site's control messages."""
        return f"up/{self._space}/{site}/{what}/m"

    def hub_object(self, what: str) -> str:
        """Return the name of a control message of the hub, or (`current`) of its newest model's manifest."""
        return f"glob/{self._space}/{what}/m"

    @property
    def _space(self) -> str:
        return space_of(self.study_digest)

    def get_site_object(self, site: str, what: str) -> bytes | None:
        """Return one of a site's control messages as stored, or None."""
        return self.store.get(self.site_object(site, what))

    def get_hub_object(self, what: str) -> bytes | None:
        """Return one of the hub's control messages as stored, or None."""
        return self.store.get(self.hub_object(what))

    def describe(self, run: str, round: int, pieces: Iterable[Buffer], previous: int = 0) -> Manifest:
        """Return the manifest of this party's object, a global model or an update, which is hashed for it.

        `previous` is the round of the update that this site sent before.
        """
        what: Literal["global", "update"] = "global" if self.party == HUB else "update"
        size, digests = measure_chunks(pieces, self.store.chunk_bytes)
        chunk_bytes = self.store.chunk_bytes
        revoked = self.seal.revocations() if self.party == HUB else ""
        place = (PROTOCOL, what, self.study_digest, run, self.party, round)
        return Manifest(*place, size, chunk_bytes, digests, revoked, previous)

    def open_manifest(self, data: bytes, party: str) -> Manifest:
        """Return the manifest of a party's object; see `_manifest.open_manifest`."""
        return open_manifest(
            data, self.seal, party, "global" if party == HUB else "update", self.study_digest
        )

    def put_control(
        self, what: ControlKind, text: str = "", session: str = "", count: int = 0, name: str = ""
    ) -> bytes:
        """Store a control message of this party, under its own name or another; return what is stored."""
        own = self.hub_object(what) if self.party == HUB else self.site_object(self.party, what)
        message = ControlMessage(PROTOCOL, what, self.study_digest, self.party, text, session, count)
        sealed = encode_sealed(message, self.seal)
        self.store.put(name or own, sealed)
        return sealed

    def open_control(self, data: bytes, party: str, what: ControlKind) -> ControlMessage:
        """Return a party's control message; see `_manifest.open_control`."""
        return open_control(data, self.seal, party, what, self.study_digest)

"""Which cases trained or chose a run's model, as keyed digests of their content: trained.json.

The key is of this run and its file alone, so that digests of two runs cannot be compared, and nobody without
the file can try out images or rows. The file stays where the cases are: a hospital's own run folder knows its
own cases, a simulation's knows all, a hub's knows none.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

from medfed.errors import DECODING_ERRORS, RunError
from medfed.files import write_whole

KEY_BYTES = 32
# How many hex digits a digest keeps.
DIGITS = 32


class TrainedCases(msgspec.Struct, frozen=True):
    """The key, and the digests of the training and validation cases by site and split."""

    key: str
    sites: dict[str, dict[str, list[str]]] = {}

    def digest(self, content: bytes) -> str:
        """Return a content's digest under this run's key."""
        return hmac.new(bytes.fromhex(self.key), content, hashlib.sha256).hexdigest()[:DIGITS]

    def seen(self, contents: Mapping[str, bytes], besides: str = "") -> set[str]:
        """Return the tokens of those contents that trained or chose the model.

        Args:
            contents: content by token.
            besides: a site whose own cases do not count.
        """
        known = {
            digest
            for site, splits in self.sites.items()
            if site != besides
            for digests in splits.values()
            for digest in digests
        }
        return {token for token, content in contents.items() if self.digest(content) in known}

    def site_of(self, content: bytes) -> str | None:
        """Return a site of which this content trained or chose the model, None if no site knows it."""
        digest = self.digest(content)
        return next(
            (site for site, splits in self.sites.items() if any(digest in some for some in splits.values())),
            None,
        )


def read_trained(path: Path) -> TrainedCases | None:
    """Return what a run's trained.json holds, or None if there is none.

    Raises:
        RunError: if the file is damaged.
    """
    return read_keyed(path, TrainedCases, "which cases trained")


class _Keyed(Protocol):
    @property
    def key(self) -> str: ...


_K = TypeVar("_K", bound=_Keyed)


def read_keyed(path: Path, kind: type[_K], says: str, otherwise: str = "") -> _K | None:
    """Return the keyed digests in a file, or None if there is none.

    Args:
        path: the file.
        kind: its record, with the digests' key in hex.
        says: what the file says, for an error.
        otherwise: a sentence on what happens without it.

    Raises:
        RunError: if the file is damaged.
    """
    if not path.is_file():
        return None
    try:
        known = msgspec.json.decode(path.read_bytes(), type=kind)
        bytes.fromhex(known.key)
    except (*DECODING_ERRORS, ValueError) as error:
        raise RunError(
            f"{path.name}, which says {says}, is damaged ({error}); restore it from a back-up of the run "
            f"folder{otherwise and f'. {otherwise}'}"
        ) from None
    return known


def write_trained(path: Path, contents: Mapping[str, Mapping[str, list[bytes]]]) -> TrainedCases:
    """Add these contents, by site and split, to a run's trained.json, and return all that it holds."""
    before = read_trained(path) or TrainedCases(os.urandom(KEY_BYTES).hex())
    sites = {site: dict(splits) for site, splits in before.sites.items()}
    for site, splits in contents.items():
        for split, every in splits.items():
            old = sites.setdefault(site, {}).get(split, [])
            # Sorted, so that the order says nothing of the folder's.
            sites[site][split] = sorted({*old, *map(before.digest, every)})
    trained = TrainedCases(before.key, sites)
    write_whole(path, msgspec.json.encode(trained), durable=True)
    return trained

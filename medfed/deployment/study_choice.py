"""Which of the studies that are offered to a hospital it takes part in: one that it approved, one at a time.

A process takes one study, first of all one that it began; another process beside it takes the next. A study
that nobody here approved is taken only if there is no other, and then shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from medfed.deployment.approvals import head_of, is_approved
from medfed.deployment.site_file import SiteFile, give_up_s
from medfed.errors import MedfedError
from medfed.exchange import Offer
from medfed.files import is_locked
from medfed.runs.folder import RunFolder

# How many digits of a digest show which study is meant.
_DIGITS = 12


def choose_study(site: SiteFile, accept: str, log: Callable[[str], None]) -> Offer:
    """Return the study that this process takes, waiting until the hub offers one.

    `accept` is the digest, or the first digits of it, of a study that is approved with this command.

    Raises:
        EndedError: if none is offered within the site's `give_up_hours`.
        WireError, ExchangeError: if what is offered cannot be the hub's.
    """
    begun = dict(begun_runs(site))
    known = [
        digest
        for digest, folder in begun.items()
        if not folder.read_facts().is_finished and _is_approved(site, digest)
    ]
    offers = site.exchange.offered_studies(site.name, known=known, max_wait_s=give_up_s(site), log=log)
    newest_first = list(reversed(offers))
    ranked = sorted(newest_first, key=lambda one: _rank(site, one, accept, begun.get(one.digest)))
    chosen = ranked[0]
    for other in ranked[1:]:
        if not _has_ended(begun.get(other.digest)):
            state = "approved here" if _is_approved(site, other.digest) else "nobody here has approved it"
            taken = f"this process takes {chosen.digest[:_DIGITS]}"
            log(f"study {other.digest[:_DIGITS]} is offered, too ({state}); {taken}")
    return chosen


def _rank(site: SiteFile, offer: Offer, accept: str, folder: RunFolder | None) -> tuple[bool, ...]:
    """Return what decides between studies; the smallest is taken, of equal ones the newest."""
    return (
        _has_ended(folder) or _is_busy(site, folder),
        not (accept and offer.digest.startswith(accept.lower())),
        not _is_approved(site, offer.digest),
        not offer.is_live,
        folder is None,
    )


def _is_approved(site: SiteFile, digest: str) -> bool:
    return is_approved(Path(site.out), digest, head_of(Path(site.secret)))


def _has_ended(folder: RunFolder | None) -> bool:
    return folder is not None and folder.read_facts().is_finished


def _is_busy(site: SiteFile, folder: RunFolder | None) -> bool:
    """Return whether another process of this hospital takes part in the study of this run folder."""
    if folder is None:
        return False
    return is_locked(folder.path / "sites" / site.name / "exchange" / "lock")


def begun_runs(site: SiteFile) -> Iterator[tuple[str, RunFolder]]:
    """Yield the studies that this hospital began, by digest; a damaged run folder is none."""
    for path in sorted(Path(site.out).glob("*/run.json")):
        folder = RunFolder(path.parent)
        try:
            yield folder.read_facts().digest, folder
        except MedfedError:
            continue

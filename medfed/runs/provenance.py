"""Who trained a model: the merges that a run recorded, not the hospitals that its study planned.

The hub's audit log has a line for each merge with the sites whose updates went in. Report, model card,
checklists and exports say who trained from it, and `medfed audit verify` computes it again. A hospital's own
folder records what it sent, and not what was merged (`own_part.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from medfed.errors import AuditError
from medfed.runs.folder import RunFolder
from medfed.runs.rounds import RoundLine, read_rounds
from medfed.wire.audit_log import entries, line_digests, verify

# The rounds in which each site's update was merged, in order.
Merges = dict[str, tuple[int, ...]]


def merges_in_log(log: Path) -> Merges:
    """Return the merged rounds of each site in an audit log; a round merged again counts as the last time.

    Raises:
        AuditError: if the log's chain is broken.
    """
    verify(log)
    rounds: dict[int, list[str]] = {}
    for entry in entries(log):
        sites, number = entry.get("sites"), entry.get("round")
        if entry.get("event") == "merged" and isinstance(sites, list) and isinstance(number, int):
            rounds[number] = [str(site) for site in sites]
    return _by_site(rounds)


def planned_in_log(log: Path) -> list[str]:
    """Return the hospitals that a hub's log says the study was to train at, when it began."""
    began = [entry for entry in entries(log) if entry.get("event") == "began"]
    return sorted({str(site) for entry in began for site in entry.get("sites", ())})


def merges_in_rounds(lines: Iterable[RoundLine]) -> Merges:
    """Return the merged rounds of each site as rounds.jsonl has them."""
    rounds: dict[int, list[str]] = {}
    for line in lines:
        if line.status == "merged":
            rounds.setdefault(line.round, []).append(line.site)
    return _by_site(rounds)


def _by_site(rounds: Mapping[int, Iterable[str]]) -> Merges:
    merges: dict[str, list[int]] = {}
    for number in sorted(rounds):
        for site in rounds[number]:
            merges.setdefault(site, []).append(number)
    return {site: tuple(numbers) for site, numbers in sorted(merges.items())}


def merges_of(folder: RunFolder) -> Merges:
    """Return who trained a run's model: by its audit log where that has merges, else by rounds.jsonl.

    A hospital's own folder shows no merge: its rounds.jsonl has the models that it went on from.
    """
    if folder.facts.is_file() and folder.read_facts().own:
        return {}
    logged = merges_in_log(folder.audit) if folder.audit.is_file() else {}
    return logged or merges_in_rounds(read_rounds(folder.rounds))


def check_provenance(folder: RunFolder) -> Merges:
    """Return the merges of a run's audit log, to which rounds.jsonl must agree.

    Raises:
        AuditError: naming the site and the rounds that only one of them has.
    """
    logged, told = merges_in_log(folder.audit), merges_in_rounds(read_rounds(folder.rounds))
    if not logged:
        return {}
    for site in sorted({*logged, *told}):
        differing = sorted(set(logged.get(site, ())) ^ set(told.get(site, ())))
        if differing:
            raise AuditError(
                f"{folder.rounds.name}: site '{site}': round {differing[0]} is merged in only one of it and "
                f"{folder.audit.name}; the log is the record: restore {folder.rounds.name}, and write the "
                "report again"
            )
    return logged


def check_sent(merges: Merges, log: Path, hub_log: Path) -> str:
    """Return the site of a hospital's own log, whose updates are those that the hub's log says were merged.

    Raises:
        AuditError: if the hub merged an update that this log did not send, or of another size.
    """
    verify(log)
    sent = {
        (str(entry["site"]), entry.get("round")): entry.get("bytes")
        for entry in entries(log)
        if entry.get("event") == "sent" and "what" not in entry and "site" in entry
    }
    sites = {site for site, _ in sent}
    if len(sites) != 1:
        raise AuditError(f"{log.name}: holds updates of {len(sites)} sites, expected one hospital's own log")
    (site,) = sites
    merged = {
        entry.get("round"): entry.get("bytes")
        for entry in entries(hub_log)
        if entry.get("event") == "merged" and entry.get("site") == site
    }
    for number in merges.get(site, ()):
        if (site, number) not in sent or merged.get(number) != sent[site, number]:
            raise AuditError(
                f"site '{site}': the hub merged an update of round {number} that this hospital's log did not "
                "send, or of another size; ask whoever runs the hub"
            )
    return site


class Heads(NamedTuple):
    """The rounds in which a hub and a site showed each other the heads of their logs, which these still have.

    `of_hub` are those that the site's log kept, `of_site` those that the hub's kept.
    """

    of_hub: tuple[int, ...]
    of_site: tuple[int, ...]


def check_heads(site: str, log: Path, hub_log: Path) -> Heads:
    """Return in which rounds hub and site kept the heads of each other's logs.

    Each line pins all before it. So a log that was written anew, or cut, after such a round is found by the
    other party's log, even if its own writer did it.

    Raises:
        AuditError: naming whose log lacks a line that it showed, and in which round.
    """
    of_hub = [(int(one["round"]), str(one["hub_head"])) for one in entries(log) if one.get("hub_head")]
    of_site = [
        (int(one["round"]), str(one.get("head")))
        for one in entries(hub_log)
        if one.get("event") == "site head" and one.get("site") == site
    ]
    _check_kept(of_site, log, f"site '{site}'", "the hub")
    _check_kept(of_hub, hub_log, "the hub", f"site '{site}'")
    return Heads(_rounds(of_hub), _rounds(of_site))


def _rounds(kept: Iterable[tuple[int, str]]) -> tuple[int, ...]:
    return tuple(sorted({round for round, _ in kept}))


def _check_kept(kept: Iterable[tuple[int, str]], log: Path, whose: str, by: str) -> None:
    """Check that a log still has each line whose digest another party kept in a round."""
    digests = set(line_digests(log))
    for round, head in kept:
        if head not in digests:
            raise AuditError(
                f"the log of {whose} lacks the line that it showed {by} in round {round}: it was written "
                "anew or cut since, or is the log of another run folder"
            )


def joined_later(merges: Merges, lines: Iterable[RoundLine]) -> dict[str, int]:
    """Return the hospitals that came after the first merge, with their first merged round.

    One that was only not asked before (a share of the sites, or one after another) did not come later.
    """
    first = min((rounds[0] for rounds in merges.values()), default=0)
    waiting = {line.site for line in lines if line.round <= first and line.status == "not sampled"}
    return {site: rounds[0] for site, rounds in merges.items() if rounds[0] > first and site not in waiting}


def trained_names(merges: Merges, lines: Iterable[RoundLine]) -> list[str]:
    """Return the hospitals that trained, each that came later with the round from which on it did."""
    later = joined_later(merges, lines)
    return [f"{site} (from round {later[site]} on)" if site in later else site for site in sorted(merges)]


def never_merged(merges: Merges, planned: Iterable[str]) -> list[str]:
    """Return the hospitals that the study planned to train at and that no merge has."""
    return sorted(set(planned) - merges.keys())

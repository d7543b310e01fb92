"""`medfed audit`: the log of what left the hospital, and what an update reveals."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from medfed.cli.error_handling import Commands
from medfed.cli.messages import answer, is_asked, note, say
from medfed.cli.options import PATH
from medfed.wire.untrusted_text import for_terminal

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

    from medfed.wire.signing import Identity


@click.group(cls=Commands)
def audit() -> None:
    """Verify what left a hospital, and measure what it reveals."""


def log_file(path: Path) -> Path:
    """Return the audit log at a path, which may be the folder that holds it.

    Raises:
        AuditError: if there is none.
    """
    from medfed.errors import AuditError

    path = path / "audit.jsonl" if path.is_dir() else path
    if not path.is_file():
        raise AuditError(f"{path}: no audit log; give a run folder or its audit.jsonl")
    return path


@audit.command(short_help="Check that a log is unchanged.")
@click.argument("log", type=PATH)
@click.option("--head", help="The last digest known to be correct; detects a truncated log.")
@click.option(
    "--credentials",
    type=PATH,
    help="A folder of credentials: every line must be signed with a certificate that this federation issued, "
    "and in the site's own folder with one of the site's own.",
)
@click.option(
    "--site-log",
    type=PATH,
    multiple=True,
    help="A hospital's own log: what the hub says it merged of it must be what it sent. Can be repeated.",
)
def verify(log: Path, head: str | None, credentials: Path | None, site_log: tuple[Path, ...]) -> None:
    """Check that no line of an audit log was changed, removed, moved or written by anyone but the site.

    Of a run folder, also who trained: its model card and report say what the log's merges say. Of a dossier
    (`medfed export --dossier`; a folder or a .zip), also each of its files, and its signature.

    \b
    medfed audit verify runs/our-study --credentials credentials
    medfed audit verify runs/our-study --site-log north/runs/our-study
    medfed audit verify dossier.zip --credentials credentials
    """
    from medfed.pipeline.dossier.manifest import is_dossier, opened
    from medfed.wire.signing import Identity

    identity = Identity(credentials) if credentials else None
    if not is_dossier(log):
        answer(_verify_log(log_file(log), head, identity, site_log))
        return
    with opened(log) as folder:
        dossier = _verify_dossier(folder, identity)
        checked = _verify_log(log_file(folder), head, identity, site_log) if dossier["has_log"] else {}
        _say_standing(dossier)
        answer({**checked, "dossier": dossier})


def _verify_dossier(folder: Path, identity: Identity | None) -> dict[str, Any]:
    """Say what a dossier's manifest shows, and return it as --json has it."""
    from medfed.pipeline.dossier.manifest import verify_dossier
    from medfed.pipeline.dossier.verify import check_claims, check_derived, page_made_by, standing
    from medfed.pipeline.dossier.write import page

    found = verify_dossier(folder, identity.authority if identity else None)
    say(f"{len(found.manifest.files)} files, each as the manifest of {found.manifest.made} has it")
    if found.signer:
        issued = ", issued in this federation" if identity else "; its issuer was not checked (--credentials)"
        say(f"the manifest is signed by '{for_terminal(found.signer)}', {found.fingerprint}{issued}")
    else:
        say("the manifest is not signed: anyone could have made it")
    say(f"study {found.manifest.study[:64]}, weights {found.manifest.weights_sha256[:64]}")
    has_merges, has_log = check_claims(folder, found.manifest), (folder / "audit.jsonl").is_file()
    say(
        "who trained, in dossier.json, is what its audit log says"
        if has_merges
        else f"the dossier holds no {'log of merges' if has_log else 'audit log'}: "
        "it does not show who trained"
    )
    other = check_derived(folder) or page_made_by(folder, page)
    say(
        f"it was made by medfed {for_terminal(other)}: this one can derive neither its claims nor its pages"
        if other
        else "what dossier.json says follows from the records in it, and both pages are theirs"
    )
    rests = standing(bool(found.signer), identity is not None, has_merges, not other)
    return {
        "files": len(found.manifest.files),
        "signer": found.signer or None,
        "fingerprint": found.fingerprint or None,
        "issuer_checked": identity is not None,
        "study": found.manifest.study,
        "weights_sha256": found.manifest.weights_sha256,
        "has_log": has_log,
        "page_compared": not other,
        **rests._asdict(),
    }


def _say_standing(dossier: Mapping[str, Any]) -> None:
    """Say at last what the claims rest on, and that nothing is verified where nobody known signed."""
    signer = dossier["signer"] or ""
    for what, name in (
        ("recomputed from the log", "recomputed"),
        ("following from the records in it", "follow"),
        ("only stated", "stated"),
    ):
        if claims := dossier[name]:
            say(f"{what}: {', '.join(claims)}")
    if dossier["verified"]:
        say(
            f"VERIFIED as the dossier of '{for_terminal(signer)}', who vouches for its records and statements"
        )
    elif signer:
        say(
            "NOT VERIFIED: it is whole and contradicts itself nowhere, and anybody can make such a "
            "certificate for a name; give the federation's --credentials, or compare the fingerprint"
        )
    else:
        say(
            "NOT VERIFIED: it is whole and contradicts itself nowhere, and nobody signed it: anybody could "
            "have written records and claims alike. Ask its maker to sign it (--credentials)"
        )


def _verify_log(
    path: Path, head: str | None, identity: Identity | None, site_log: Sequence[Path]
) -> dict[str, object]:
    """Say what a log shows, and return it as --json has it."""
    from medfed.wire.audit_log import verify

    checked = verify(path, head, identity.authority if identity else None)
    if identity and (own := identity.certificates_of(checked.signer)):
        verify(path, head, identity.authority, own)
    say(f"{checked.lines} lines, each linked to the one before it; the last is {checked.head}")
    if head is None:
        say(
            "without --head nobody can tell whether lines were cut off at the end, or the whole log was "
            "written anew by its own writer; keep this digest elsewhere, or compare the hub's log with "
            "hospitals' (--site-log)"
        )
    document: dict[str, object] = {
        "lines": checked.lines,
        "head": checked.head,
        "head_compared": head is not None,
        "signed": checked.signed,
        "signer": checked.signer or None,
        "fingerprint": checked.fingerprint or None,
        "issuer_checked": identity is not None,
    }
    document |= _echo_provenance(path, site_log, identity.authority if identity else None)
    if not checked.signed:
        say("no line is signed: anyone with write access to this file could have rewritten it")
        return document
    say(f"{checked.signed} lines are signed by '{checked.signer}'", nl=False)
    say(f", certificate {checked.fingerprint}{', issued in this federation' if identity else ''}")
    return document


def _echo_provenance(
    log: Path, site_logs: Sequence[Path], authority: Certificate | None
) -> dict[str, object]:
    """Say who trained, as the merges of a hub's log have it, checked against the run and hospitals' logs."""
    from medfed.evaluation.report.formatting import round_ranges
    from medfed.runs.folder import RunFolder
    from medfed.runs.provenance import (
        check_heads,
        check_provenance,
        check_sent,
        merges_in_log,
        never_merged,
        planned_in_log,
    )
    from medfed.wire.audit_log import verify

    merges = check_provenance(RunFolder(log.parent)) if log.name == "audit.jsonl" else merges_in_log(log)
    if not merges:
        say("this log holds no merge: who trained is in the hub's log")
    for site, rounds in merges.items():
        say(f"{site}: merged in {round_ranges(rounds)}")
    never = never_merged(merges, planned_in_log(log)) if merges else []
    for site in never:
        say(f"{for_terminal(site)}: planned, and no update of it was merged")
    compared: dict[str, object] = {}
    for path in site_logs:
        own = log_file(path)
        verify(own, None, authority)
        site = check_sent(merges, own, log)
        merged = "what was merged is what its own log says it sent"
        say(f"{site}: {merged if site in merges else 'no update of it was merged; its own log agrees'}")
        kept = check_heads(site, own, log)
        compared[site] = {"kept_by_hub": list(kept.of_site), "kept_by_site": list(kept.of_hub)}
        for whose, by, rounds in (
            ("its own log", "the hub", kept.of_site),
            ("the hub's log", "it", kept.of_hub),
        ):
            say(f"{site}: {_kept(whose, by, rounds)}")
    who = {"merges": {site: list(rounds) for site, rounds in merges.items()}, "never_merged": never}
    return {**who, "site_logs": compared}


def _kept(whose: str, by: str, rounds: Sequence[int]) -> str:
    """Say up to which round another party's copy of a digest shows that a log was not written anew."""
    if not rounds:
        return f"{by} kept no digest of {whose}: nobody can tell whether it was written anew"
    last = f"not written anew or cut up to round {rounds[-1]}"
    return f"{by} kept digests of {whose} in {len(rounds)} rounds: {last}"


@audit.command(short_help="Check a hospital's privacy ledger.")
@click.argument("site", type=PATH)
@click.option("--adopt", is_flag=True, help="Take over a ledger without head or signatures, as it is now.")
def ledger(site: Path, adopt: bool) -> None:
    """Check the privacy ledger of the hospital of a site file: no line was changed, added, cut or deleted.

    With --adopt, a ledger of an earlier medfed, or one whose head was lost, counts as it is from now on.
    Compare it with your own records first: nobody else knows what was spent.

    \b
    medfed audit ledger site.yaml
    """
    from medfed.deployment.site_file import read_site, secret_of
    from medfed.deployment.site_session import adopt_ledger, ledger_of

    settings = read_site(site)
    secret = secret_of(Path(settings.secret))
    adopted = adopt_ledger(settings, secret) if adopt else None
    if adopted is not None:
        say(f"{adopted} lines are taken over")
    opened = ledger_of(settings, secret)
    head, accounts = opened.head(), opened.accounts()
    still_open = sum(not account.closed for account in accounts)
    say(f"{head.lines} lines, signed and complete; the last is {head.sha256}")
    say(f"{len(accounts)} runs of studies, {still_open} of them open")
    totals = {"runs": len(accounts), "open": still_open, "adopted": adopted}
    answer({"lines": head.lines, "head": head.sha256, **totals})


@audit.command(short_help="Write a log as a page or a table.")
@click.argument("log", type=PATH)
@click.option(
    "--out",
    type=PATH,
    default=Path("audit.html"),
    show_default=True,
    help="The file to write, .html or .csv.",
)
def export(log: Path, out: Path) -> None:
    """Write an audit log as an HTML page or a CSV table.

    \b
    medfed audit export runs/our-study --out audit.csv
    """
    from medfed.pipeline.audit_report import export_log

    checked = export_log(log_file(log), out)
    answer({"lines": checked.lines, "out": out})
    say(f"{checked.lines} lines in {out}")


@audit.command(short_help="Attack a hospital's own updates.")
@click.argument("run", type=PATH)
@click.option("--site", help="The hospital whose updates are attacked; required if RUN has several.")
@click.option(
    "--gate",
    type=click.FloatRange(0, 1),
    help="Exit with 1 if more than this share is recovered, such as 0.5.",
)
@click.option(
    "--cases",
    type=click.IntRange(1, 8),
    help="Cases in the attacked training step; default: the study's batch.",
)
@click.option(
    "--steps", type=click.IntRange(1), default=300, show_default=True, help="Iterations of gradient matching."
)
@click.option(
    "--shadows",
    type=click.IntRange(0),
    default=16,
    show_default=True,
    help="Number of shadow models; 0 skips the membership attack.",
)
@click.option(
    "--minutes",
    type=click.FloatRange(0),
    default=5.0,
    show_default=True,
    help="Time limit for training the shadow models.",
)
@click.option(
    "--out", type=PATH, help="Folder for the text and the figure; default: the hospital's folder of the run."
)
def leakage(
    run: Path,
    site: str | None,
    gate: float | None,
    cases: int | None,
    steps: int,
    shadows: int,
    minutes: float,
    out: Path | None,
) -> None:
    """Attack a hospital's own updates before they leave, and measure what the hub could reconstruct.

    RUN is a run folder, or a study file before any training. The result stays in the hospital's folder, with
    a figure of a patient's image next to its reconstruction.

    \b
    medfed audit leakage runs/our-study --site north
    medfed audit leakage study.yaml --site north --gate 0.5
    """
    import msgspec

    from medfed.pipeline.leakage.audit import audit as audit_leakage
    from medfed.pipeline.leakage.findings import AttackBudget, describe, to_json

    budget = AttackBudget(steps=steps, shadows=shadows, budget_s=60 * minutes, cases=cases)
    findings, figure = audit_leakage(run, site, budget, out)
    exceeded = gate is not None and findings.worst > gate
    if is_asked():
        plain = msgspec.json.decode(to_json(findings))
        answer({**plain, "figure": figure, "gate": gate, "exceeded": exceeded})
    say(describe(findings))
    say(f"\nfigure (do not pass it on): {figure}")
    if exceeded:
        note(f"gate: {findings.worst:.2f} is more than {gate:g}")
        sys.exit(1)

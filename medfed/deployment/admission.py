"""What a hospital checks before it trains: credentials, the offered study, its own policy, and approval."""

from __future__ import annotations

import getpass
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medfed.deployment.approvals import approve, describe_changes, head_of, is_approved, last_approved
from medfed.deployment.description import tell_both
from medfed.deployment.earlier_results import similar_results
from medfed.deployment.own_code import parse_allowed
from medfed.deployment.policy import refusals
from medfed.deployment.site_file import SiteFile
from medfed.deployment.site_session import SiteSession, open_audit_log
from medfed.deployment.study_page import OwnPart, describe
from medfed.errors import DeclinedError, ExchangeError, StudyError, WireError
from medfed.exchange import DropOut
from medfed.federation.round import SiteConnection, drop_out
from medfed.files import write_whole
from medfed.pipeline.labelled import drawn_of
from medfed.pipeline.measure_models import all_cases_of
from medfed.pipeline.small_scores import patient_counts
from medfed.runs.folder import RunFolder
from medfed.study.canonical import is_digest, public_yaml, start_digest, study_digest
from medfed.study.reading import study_name
from medfed.study.study import Study
from medfed.wire.signing import Identity

# How many digits of a study's digest name its run folder, and how many a person must type to approve it.
FOLDER_DIGITS, APPROVAL_DIGITS = 8, 12

# What the hub's study is called in errors.
OFFER = "the hub's study"

# Shows a study in words and returns whether someone approves it.
Ask = Callable[[str], bool]


def check_credentials(site: SiteFile) -> None:
    """Check that the site file's credentials are this site's, before there is a study."""
    credentials = getattr(site.exchange, "credentials", "")
    if credentials and (name := Identity(Path(credentials)).check().name) != site.name:
        raise StudyError(
            f"the site file says that this is '{site.name}', its exchange.credentials are those of '{name}'; "
            f"name the folder that `medfed enrol accept` filled for '{site.name}'"
        )


@contextmanager
def log_invalid_offer(site: SiteFile) -> Iterator[None]:
    """Log, beside the run folders, that the hub offered an invalid study."""
    try:
        yield
    except (WireError, ExchangeError) as error:
        audit = open_audit_log(site, RunFolder(Path(site.out)))
        audit.write("study refused", site=site.name, reason=str(error))
        raise


def parse_offer(text: str, known: str, site: SiteFile) -> Study:
    """Return the study that the hub offers; its digest must be `known`, and this site must be in it."""
    try:
        study = parse_allowed(text, OFFER, site)
    except DeclinedError as error:
        _decline_code(text, known, site, str(error))
        raise
    if study.trackers:
        raise ExchangeError(
            "the hub's study names trackers, to which this hospital's numbers would go; a hub that runs "
            "this version of medfed sends none; ask the coordinator"
        )
    start = study.given_start
    if start is not None and not is_digest(start.path):
        # A path here would let a hub have this site read any of its files, to compute the study's digest.
        raise ExchangeError(
            "the hub's study gives its start by a path; a hub that runs this version of medfed gives the "
            "SHA-256 of the weights alone; ask the coordinator"
        )
    if study_digest(study) != known:
        raise ExchangeError(
            f"the hub offers study {known[:APPROVAL_DIGITS]}, but the file it sends is study "
            f"{study_digest(study)[:APPROVAL_DIGITS]}; do hub and site run the same version of medfed?"
        )
    check_member(study, site)
    return study if start is None else study.starting_from(_start_checkpoint(study, start.path, site))


def _decline_code(text: str, known: str, site: SiteFile, reason: str) -> None:
    """Log that the site file does not allow a study's code, and tell the hub not to wait for this site."""
    folder = RunFolder(Path(site.out) / f"{study_name(text, OFFER)}-{known[:FOLDER_DIGITS]}")
    audit = open_audit_log(site, folder)
    audit.write("declined", study=known, site=site.name, reason=reason)
    side: Any = site.exchange.open_site(known, site.name, folder.site(site.name))
    drop_out(SiteConnection(site.name, side, audit=audit), DropOut.POLICY)
    side.close()


def check_member(study: Study, site: SiteFile) -> None:
    """Raise if a study has no site of this site file's name, or takes it to draw more than it does.

    Raises:
        StudyError: naming the study's sites, or the structures.
    """
    if not study.trains(site.name) and site.name not in study.held_out:
        others = ", ".join(sorted({*study.sites, *study.held_out}))
        raise StudyError(
            f"study '{study.name}' has no site '{site.name}' (it has {others}); correct the name in the site "
            f"file, or ask the coordinator to add the site"
        )
    _check_labelled(study, site)


def _check_labelled(study: Study, site: SiteFile) -> None:
    """Raise if a study takes a structure as absent wherever this hospital did not draw it.

    Raises:
        StudyError: with the line that the study needs.
    """
    labelled_at = getattr(study.task, "labelled_at", None)
    if not site.labelled or labelled_at is None:
        return
    classes = study.task.classes  # type: ignore[attr-defined]
    drawn = drawn_of(study, site.labelled)
    undrawn = [classes[number] for number in labelled_at(site.name) if classes[number] not in drawn]
    if undrawn:
        raise StudyError(
            f"site '{site.name}': its site file says that it draws {', '.join(site.labelled)} (labelled), "
            f"but the study takes its labels to show {', '.join(undrawn)} too and would learn that there is "
            f"none; ask for `task.labelled: {{{site.name}: [{', '.join(drawn)}]}}` in the study, or correct "
            "the site file"
        )


def _start_checkpoint(study: Study, start: str, site: SiteFile) -> str:
    """Return the path of the checkpoint that the study begins with, which never comes from the hub."""
    expected = start_digest(start)
    needs = f"study '{study.name}' begins with the weights in a file of SHA-256 {expected}"
    if site.start is None:
        raise StudyError(
            f"{needs}; get that file (or the bundle that holds it) from the coordinator and name it in the "
            "site file (start: FILE)"
        )
    try:
        digest = start_digest(site.start)
    except OSError as error:
        raise StudyError(
            f"{needs}; the file that start names in the site file cannot be read: {error.strerror}"
        ) from None
    except StudyError as error:
        raise StudyError(f"{needs}; what start names in the site file cannot be used: {error}") from None
    if digest != expected:
        raise StudyError(
            f"{needs}; the file that start names in the site file is another or damaged: SHA-256 {digest}"
        )
    return site.start


def enforce_policy(session: SiteSession) -> None:
    """Check the study against the hospital's policy.

    Raises:
        DeclinedError: naming each rule of the policy that the study breaks.
    """
    site, study, hospital = session.site, session.study, session.hospital
    cases = hospital.data.examples if session.trains else len(all_cases_of(hospital))
    reasons = refusals(site.policy, study.at(site.name), cases)
    if not reasons:
        return
    session.audit.write("declined", study=session.digest, site=site.name, reason="; ".join(reasons))
    decline(session, DropOut.POLICY)
    listed = "\n  ".join(reasons)
    raise DeclinedError(f"this hospital's policy does not allow study '{study.name}':\n  {listed}")


def decline(session: SiteSession, reason: DropOut) -> None:
    """Tell the hub that it need not wait for this site; `reason` is all that it learns.

    A hub that has all of this site waits for nothing, and may have ended: it is not asked for then.
    """
    if session.has_answered:
        return
    tell_both(session, reason)


def require_approval(session: SiteSession, accept: str, ask: Ask | None) -> None:
    """Check that someone at the hospital approved the study, by `accept` (its digest) or when asked.

    Raises:
        DeclinedError: if nobody did; a page that describes the study is then written beside the run folders.
    """
    out, study, known = Path(session.site.out), session.study, session.digest
    head = head_of(Path(session.site.secret))
    if is_approved(out, known, head):
        return
    page = "\n".join(filter(None, (describe(own_part(session), known), describe_changes(out, study, head))))
    if accept:
        if len(accept) < APPROVAL_DIGITS or not known.startswith(accept.lower()):
            raise DeclinedError(
                f"--accept {accept}: the hub offers study {known}; approve that one, with at least "
                f"{APPROVAL_DIGITS} of its digits, or none"
            )
    elif ask is None:
        path = out / f"{study.name}-{known[:FOLDER_DIGITS]}.txt"
        write_whole(path, page)
        write_whole(path.with_suffix(".yaml"), public_yaml(study))
        raise DeclinedError(
            f"nobody here has approved study '{study.name}' yet{_other_approved(out, known)}. Read {path}, "
            f"then run once\n  medfed train --site ... --accept {known}"
        )
    elif not ask(page):
        raise DeclinedError(
            f"study '{study.name}' was not approved; nothing was trained and nothing was sent"
        )
    approve(out, study, getpass.getuser(), head)
    write_whole(session.folder.consent, page)
    session.audit.write("agreed", study=known, by=getpass.getuser())


def own_part(session: SiteSession) -> OwnPart:
    """Return the study as this hospital takes part in it, for its page."""
    data = session.hospital.data
    counts = patient_counts(session.study, data)
    cases = data.examples if session.trains else None
    return OwnPart(session.study, session.site, cases, counts, similar_results(session))


def _other_approved(out: Path, known: str) -> str:
    """Return a note that another study was approved last, if so: one changed number makes another study."""
    last = last_approved(out)
    if last is None:
        return ""
    return f" (it is {known[:APPROVAL_DIGITS]}; the last one approved is {last[:APPROVAL_DIGITS]})"

"""The end of a hospital's part, once the hub has its last numbers: its own model, its report, its run's end.

The hub may have ended by then, and its study is offered no longer. A run that was stopped here, by a full
disk or a job's time limit, is therefore finished without a hub.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medfed.deployment.admission import APPROVAL_DIGITS
from medfed.deployment.approvals import head_of, is_approved
from medfed.deployment.site_evaluation import compare_local_model, write_own_gallery
from medfed.deployment.site_file import SiteFile
from medfed.deployment.site_session import ANSWERED, SiteSession, ledger_of
from medfed.deployment.study_choice import begun_runs
from medfed.errors import RunError
from medfed.evaluation.rows import FEDERATED
from medfed.federation.site import log_ledger_refusals
from medfed.files import is_locked, lock, utc_now, write_whole
from medfed.pipeline import privacy_facts
from medfed.pipeline.create_run import finish_run
from medfed.pipeline.report import report_run
from medfed.runs.facts import RunFacts
from medfed.runs.folder import RunFolder
from medfed.runs.status import FINISHED

# Beside a site's own state: who finishes the run.
LOCK = "finish.lock"


def mark_answered(folder: RunFolder, site: str) -> None:
    """Record that the hub has this site's last numbers, so that the rest needs no hub."""
    write_whole(folder.site(site) / ANSWERED, f"{utc_now()}\n".encode())


def run_without_hub(site: SiteFile, accept: str) -> RunFolder | None:
    """Return a run of this hospital for which no hub is needed any more, or None.

    It is one that only has to be finished, or that of the study with the digest `accept`, if it ended here;
    `accept` has as many digits as it takes to approve a study, since fewer may be another study's.
    """
    if accept and len(accept) < APPROVAL_DIGITS:
        return None
    approver = Path(site.out), head_of(Path(site.secret))
    for digest, folder in begun_runs(site):
        if accept and not digest.startswith(accept.lower()):
            continue
        own = folder.path / "sites" / site.name
        if folder.read_facts().is_finished:
            if accept:
                return folder
        elif (
            (own / ANSWERED).exists()
            and folder.checkpoint(FEDERATED).exists()
            and is_approved(approver[0], digest, approver[1])
            and not is_locked(own / LOCK)
        ):
            return folder
    return None


def finish(session: SiteSession, facts: RunFacts, began: float) -> None:
    """Train and measure the hospital's own model, if the study compares it, write the report, end the run.

    `began` is the monotonic time at which this process began.

    Raises:
        RunError: if another process finishes this run.
    """
    study, folder, name = session.study, session.folder, session.name
    with _only_here(folder, name):
        if study.evaluation.local_models and session.trains:
            session.status.update(state="training its own model, to compare")
            compare_local_model(session)
        write_own_gallery(session)
        report_run(folder.path)
        if session.trains:
            with log_ledger_refusals(session.audit, name):
                ledger = ledger_of(session.site, session.hospital.secret)
            head = ledger.head()
            # A further record of the ledger's last line, in a log that the site's own key signs.
            session.audit.write("ledger", site=name, lines=head.lines, sha256=head.sha256)
            facts = privacy_facts.with_spent_budget(facts, study, {name: ledger})
        finish_run(folder, facts, began)
        session.status.update(state=FINISHED)


def finish_later(session: SiteSession) -> None:
    """Finish a run that was stopped after the hub had this site's last numbers."""
    session.progress.log(
        f"site {session.name}: the hub has all numbers of this hospital; what is left is done without it"
    )
    finish(session, session.folder.read_facts(), time.monotonic())


@contextmanager
def _only_here(folder: RunFolder, site: str) -> Iterator[None]:
    with (folder.site(site) / LOCK).open("w") as file:
        try:
            lock(file, wait=False)
        except BlockingIOError:
            raise RunError(
                f"site '{site}': another process finishes this run; wait for it, or stop it first"
            ) from None
        yield

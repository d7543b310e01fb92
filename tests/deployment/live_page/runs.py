"""Run folders with a status and rounds of known numbers, for the live page to show."""

from __future__ import annotations

from pathlib import Path

from medfed.runs.facts import PrivacyFacts, RunFacts
from medfed.runs.folder import RunFolder
from medfed.runs.progress import Progress
from medfed.runs.recorded_progress import RecordedProgress
from medfed.runs.rounds import RoundReport, SiteResult, append_round
from medfed.runs.status import Status, read_status

HOSTILE = "<script>document.title='owned'</script>\x1b[2J\u202e"


def merged(site: str, number: int) -> SiteResult:
    scores = {"train/loss": 2.0 / number, "val/loss": 1.0 / number, "val/dice": 1 - 0.5 / number}
    scalars = {**scores, "privacy/epsilon": 0.25 * number}
    return SiteResult(site, "merged", examples=12, bytes_up=40_000_000, seconds=3.0, scalars=scalars)


def make_run(path: Path, *, ended: str = "", facts: bool = True) -> Path:
    """Make the folder of a hub's run: north and south merged 4 rounds of 10, south missing in round 2."""
    folder = RunFolder(path)
    path.mkdir(parents=True)
    if facts:
        privacy = PrivacyFacts("dp_sgd", ["each patient's part is hidden"])
        folder.write_facts(
            RunFacts(study="lungs", digest="ab" * 32, sites=["north", "south"], privacy=privacy)
        )
        folder.public_study.write_text('{"privacy": {"kind": "dp_sgd", "epsilon": 8.0, "delta": 1e-05}}')
    status = Status(folder.status, study="lungs", digest="ab" * 32)
    progress = RecordedProgress(Progress(), status)
    progress.start("lungs: fedavg over 2 hospitals", {"north": 0, "south": 0}, 10, "val/dice")
    for number in range(1, 5):
        away = SiteResult("south", "refused", f"its update is {HOSTILE}")
        south = away if number == 2 else merged("south", number)
        report = RoundReport(number, (merged("north", number), south), 41.2, 50_000_000)
        progress.round(report)
        append_round(folder.rounds, report)
    progress.log(f"a line that quotes {HOSTILE}")
    progress.connections({"north"}, {"north", "south"}, 340.0)
    status.update(state=ended or "leading", stored_bytes={"models": 80_000_000})
    status.beat()
    folder.consent.write_text(f"Study 'lungs'\n\nWhat leaves: {HOSTILE}\n")
    return path


def written_s(path: Path) -> float:
    """Return when a run's status was written, in seconds since 1970."""
    from medfed.deployment.live_page.view import seconds_of

    status = read_status(RunFolder(path).status)
    assert status is not None
    seconds = seconds_of(status.written)
    assert seconds is not None
    return seconds

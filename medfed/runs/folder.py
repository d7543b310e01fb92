"""A run's folder: one property per file, in plain formats that need no medfed to be read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from medfed.errors import DECODING_ERRORS, RunError
from medfed.files import private_folder, write_whole
from medfed.runs.facts import RunFacts, Withdrawal


class _Entry:
    """A file or folder of this name in a run's folder."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, folder: RunFolder, owner: type[RunFolder]) -> Path:
        return folder.path / self._name


@dataclass(frozen=True)
class RunFolder:
    """The files of one run. Those marked * show single patients, or folders, and stay in the hospital.

    study.yaml      the study with every default written out; study.json without folders, for the report
    run.json        digest, versions, seeds, hardware, command without folders
    command.txt *   the lines that began and resumed the run, as they were typed
    start.csv       what of the study's start was loaded, tensor by tensor
    rounds.jsonl    one line per round and site
    trained.json *  keyed digests of the cases that trained
    tested.json *   keyed digests of the patients of each result
    cases.jsonl *   measurements per patient
    scores.jsonl *  what guaranteed thresholds are chosen on, per patient
    rows.jsonl      measurements over groups of patients; rows.csv, curves.jsonl and groups.jsonl belong to it
    reported.jsonl  at a hub: the measurements that hospitals reported, over groups of patients
    table1.html     statistics of all hospitals' data, and table1.csv; statistics.json holds their numbers
    plan.yaml       the data section that follows from them, where a study is only described
    audit.jsonl     what crossed a hospital's wall
    report.html     the report
    cases.html *    images of the best, median and worst cases and of failures; outlines.json has contours
    own_report.html *  each patient's value and those contours, for the owner of the data
    status.json     how far the run is, for the live page and monitors
    consent.txt     the page that hospitals agree to
    checkpoints/    models that Lightning and torch read
    watch/ *        a deployed model's reference and looks, by hospital; watch.html is the page
    sites/          what each site needs to resume, and its TensorBoard
    hub/            the newest rounds, to resume from
    """

    path: Path

    study = _Entry("study.yaml")
    public_study = _Entry("study.json")
    facts = _Entry("run.json")
    command = _Entry("command.txt")
    rows = _Entry("rows.jsonl")
    rows_csv = _Entry("rows.csv")
    curves = _Entry("curves.jsonl")
    groups = _Entry("groups.jsonl")
    cases = _Entry("cases.jsonl")
    scores = _Entry("scores.jsonl")
    gallery = _Entry("cases.html")
    outlines = _Entry("outlines.json")
    own_report = _Entry("own_report.html")
    reported = _Entry("reported.jsonl")
    rounds = _Entry("rounds.jsonl")
    trained = _Entry("trained.json")
    tested = _Entry("tested.json")
    start = _Entry("start.csv")
    audit = _Entry("audit.jsonl")
    status = _Entry("status.json")
    consent = _Entry("consent.txt")
    withdrawal = _Entry("withdrawn.json")
    baselines = _Entry("baselines.json")
    fingerprint = _Entry("fingerprint.json")
    table_sums = _Entry("table_sums.json")
    statistics = _Entry("statistics.json")
    table_one = _Entry("table1.html")
    table_one_csv = _Entry("table1.csv")
    plan = _Entry("plan.yaml")
    checkpoints = _Entry("checkpoints")
    hub = _Entry("hub")
    report = _Entry("report.html")

    def site(self, name: str) -> Path:
        """Return the folder of one site's own state, created if it is missing."""
        folder = self.path / "sites" / name
        private_folder(folder)
        return folder

    def checkpoint(self, model: str) -> Path:
        """Return the path of a model's checkpoint, such as that of 'federated' or 'local:north'."""
        return self.checkpoints / f"{model.replace(':', '-')}.ckpt"

    def read_facts(self) -> RunFacts:
        """Return what run.json says.

        Raises:
            RunError: if this is not a run folder, or its run.json is damaged.
        """
        try:
            return msgspec.json.decode(self.facts.read_bytes(), type=RunFacts)
        except FileNotFoundError:
            raise RunError(
                f"{self.path}: not a run folder: it has no {self.facts.name}; give the folder that medfed "
                "train printed"
            ) from None
        except DECODING_ERRORS as error:
            raise RunError(f"{self.facts}: is damaged: {error}; restore the file") from None

    def write_facts(self, facts: RunFacts) -> None:
        """Replace run.json as a whole."""
        write_whole(self.facts, msgspec.json.format(msgspec.json.encode(facts), indent=2))

    def read_withdrawal(self) -> Withdrawal | None:
        """Return the withdrawal after which this run was started, or None."""
        path = self.withdrawal
        return msgspec.json.decode(path.read_bytes(), type=Withdrawal) if path.exists() else None

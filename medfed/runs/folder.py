"""A run's folder: one property per file, in plain formats that need no medfed to be read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from medfed.errors import RunError
from medfed.files import write_whole
from medfed.runs.facts import RunFacts, Withdrawal


@dataclass(frozen=True)
class RunFolder:
    """The files of one run. Those marked * show single patients and stay in the hospital.

    study.yaml      the study with every default written out; study.json without folders, for the report
    run.json        digest, versions, seeds, hardware, command
    rounds.jsonl    one line per round and site
    cases.jsonl *   measurements per patient
    rows.jsonl      measurements over groups of patients; rows.csv and curves.jsonl belong to it
    reported.jsonl  at a hub: the measurements that hospitals reported, over groups of patients
    audit.jsonl     what crossed a hospital's wall
    report.html     the report
    cases.html *    images of the best, median and worst cases and of failures
    status.json     how far a service is, for a monitor
    checkpoints/    models that Lightning and torch read
    sites/          what each site needs to resume, and its TensorBoard
    hub/            the newest rounds, to resume from
    """

    path: Path

    @property
    def study(self) -> Path:
        return self.path / "study.yaml"

    @property
    def shared_study(self) -> Path:
        return self.path / "study.json"

    @property
    def facts(self) -> Path:
        return self.path / "run.json"

    @property
    def rows(self) -> Path:
        return self.path / "rows.jsonl"

    @property
    def rows_csv(self) -> Path:
        return self.path / "rows.csv"

    @property
    def curves(self) -> Path:
        return self.path / "curves.jsonl"

    @property
    def cases(self) -> Path:
        return self.path / "cases.jsonl"

    @property
    def gallery(self) -> Path:
        return self.path / "cases.html"

    @property
    def reported(self) -> Path:
        return self.path / "reported.jsonl"

    @property
    def rounds(self) -> Path:
        return self.path / "rounds.jsonl"

    @property
    def audit(self) -> Path:
        return self.path / "audit.jsonl"

    @property
    def status(self) -> Path:
        return self.path / "status.json"

    @property
    def withdrawal(self) -> Path:
        return self.path / "withdrawn.json"

    @property
    def baselines(self) -> Path:
        return self.path / "baselines.json"

    @property
    def fingerprint(self) -> Path:
        return self.path / "fingerprint.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def hub(self) -> Path:
        return self.path / "hub"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    def site(self, name: str) -> Path:
        """Return the folder of one site's own state, created if it is missing."""
        folder = self.path / "sites" / name
        folder.mkdir(parents=True, exist_ok=True)
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
                "train "
                f"printed"
            ) from None
        except msgspec.DecodeError as error:
            raise RunError(f"{self.facts}: is damaged: {error}; restore the file") from None

    def write_facts(self, facts: RunFacts) -> None:
        """Replace run.json as a whole."""
        write_whole(self.facts, msgspec.json.format(msgspec.json.encode(facts), indent=2))

    def read_withdrawal(self) -> Withdrawal | None:
        """Return the withdrawal after which this run was started, or None."""
        path = self.withdrawal
        return msgspec.json.decode(path.read_bytes(), type=Withdrawal) if path.exists() else None

"""What the report reads from a run folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from medfed.data.label_naming import different_labels
from medfed.data.refusals import REASONS
from medfed.data.whole_images import different_units
from medfed.errors import RunError
from medfed.evaluation import histograms, patient_groups
from medfed.evaluation.histograms import ScoreHistogram
from medfed.evaluation.patient_groups import PatientGroups
from medfed.evaluation.report.formatting import round_ranges
from medfed.evaluation.row_transport import MAX_ROWS
from medfed.evaluation.rows import FEDERATED, POOLED, UNTRAINED, Row, read_rows
from medfed.evaluation.summarise import PublicStudy, read_public_study, read_run_facts
from medfed.runs.facts import RunFacts
from medfed.runs.folder import RunFolder
from medfed.runs.own_part import OwnPart, own_part
from medfed.runs.provenance import Merges, merges_in_rounds, merges_of, never_merged
from medfed.runs.rounds import (
    IMAGES_IN_MM,
    LABELS_NAMED,
    LEFT_OUT,
    WITHHELD,
    RoundLine,
    labels_by,
    last_round,
    read_rounds,
    unit_by,
)


class Run(NamedTuple):
    """The contents of a run folder, as far as they are written."""

    facts: RunFacts
    study: PublicStudy
    rows: list[Row]
    rounds: list[RoundLine]
    curves: list[ScoreHistogram]
    audit_entries: int | None
    logged_merges: Merges | None = None
    groups: Sequence[PatientGroups] = ()
    own: OwnPart | None = None

    @property
    def merges(self) -> Merges:
        """Who trained, in which rounds, by audit log or rounds.jsonl; a hospital's own folder has none."""
        return {} if self.own else self.logged_merges or merges_in_rounds(self.rounds)

    @property
    def trained(self) -> list[str]:
        """The hospitals whose updates were merged, which is who trained, whoever was planned to."""
        return sorted(self.merges)

    @property
    def never_merged(self) -> list[str]:
        """The hospitals that the study planned to train at without a merged update, if merges are known."""
        return [] if self.own else never_merged(self.merges, self.facts.sites)

    @property
    def tested_only(self) -> list[str]:
        """The hospitals that took no part in training and have a result."""
        measured = {row.site for row in self.rows if row.value is not None}
        return [site for site in self.facts.held_out if site in measured and site not in self.merges]

    def took_no_part(self, site: str) -> bool:
        """Whether a tested hospital is none of those that trained: not one most of whose patients did."""
        measured = self.facts.cases.get(site, {}).get("test", 0)
        return site in self.facts.held_out and self.facts.seen.get(site, 0) <= measured

    @property
    def training_lines(self) -> list[RoundLine]:
        """The lines of rounds in which sites could take part, without those that only report final scores."""
        last = last_round(self.rounds)
        return [line for line in self.rounds if line.round <= last and line.status != "reported"]

    @property
    def number_of_rounds(self) -> int:
        """How many rounds were merged or tried; a hospital that came later knows the last one's number."""
        return last_round(self.rounds) if self.own else len({line.round for line in self.training_lines})

    @property
    def own_updates(self) -> str:
        """What a hospital's own folder knows of who trained, as a clause; '' elsewhere."""
        if self.own is None:
            return ""
        sent = self.own.updates
        rounds = f"its updates of {round_ranges(sent)}" if sent else "no update"
        return f"{self.own.site} sent {rounds}"

    @property
    def left_out(self) -> dict[str, dict[str, int]]:
        """How many cases each site left out because they cannot be used, by reason.

        A site of this process counts itself; across hospitals each sends its counts with its updates.
        """
        sent: dict[str, dict[str, int]] = {}
        for line in self.rounds:
            for reason in REASONS.values():
                if value := line.scalars.get(f"{LEFT_OUT}{reason}"):
                    sent.setdefault(line.site, {})[reason] = int(value)
        return {**sent, **self.facts.left_out}

    @property
    def withheld(self) -> dict[str, int]:
        """How many results each site kept because they are over too few patients, as it says at the end."""
        said = {line.site: line.scalars.get(WITHHELD) for line in self.rounds}
        return {site: int(number) for site, number in said.items() if number and 1 <= number <= MAX_ROWS}

    @property
    def different_labels(self) -> str:
        """Why a number in a label may mean one class at one site and another at the next, or ''."""
        said = {
            line.site: labels_by(line.scalars[LABELS_NAMED])
            for line in self.rounds
            if LABELS_NAMED in line.scalars
        }
        return different_labels(said)

    @property
    def different_units(self) -> str:
        """Why the images of sites may differ in scale, as some have no size in mm, or ''."""
        return different_units(
            {
                line.site: unit_by(line.scalars[IMAGES_IN_MM])
                for line in self.rounds
                if IMAGES_IN_MM in line.scalars
            }
        )

    @property
    def models(self) -> list[str]:
        """The models that have rows: federated, pooled, local ones, others, and the untrained one last."""
        names = {row.model for row in self.rows if row.against is None}
        order = {FEDERATED: 0, POOLED: 1, UNTRAINED: 9}
        return sorted(names, key=lambda name: (order.get(name, 3 if name.startswith("local:") else 5), name))


def read_run(path: Path) -> Run:
    """Return a run folder's contents.

    Raises:
        RunError: if there is no such folder, it has no rows, or a file is damaged.
    """
    folder = RunFolder(path)
    if not folder.rows.is_file():
        raise RunError(
            f"{path.name}: no {folder.rows.name} in this folder; give the folder of a finished run"
        )
    facts, lines = read_run_facts(path), read_rounds(folder.rounds)
    own = own_part(folder, facts.own, lines) if facts.own else None
    return Run(
        facts,
        read_public_study(path),
        read_rows(folder.rows),
        lines if own is None else own.lines,
        histograms.read(folder.curves) if folder.curves.is_file() else [],
        sum(1 for _ in folder.audit.open("rb")) if folder.audit.is_file() else None,
        merges_of(folder) or None,
        patient_groups.read(folder.groups) if folder.groups.is_file() else (),
        own,
    )

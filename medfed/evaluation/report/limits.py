"""What a run cannot show: the limits that follow from its own records."""

from __future__ import annotations

from medfed.evaluation.report.focus import Focus
from medfed.evaluation.report.formatting import interval, model_name, site_name
from medfed.evaluation.report.rounds import LOST
from medfed.evaluation.report.run import Run
from medfed.evaluation.rows import FEDERATED, Row


def limits(run: Run, focus: Focus | None) -> list[str]:
    """Return the limits as sentences."""
    found = _held_out(run, focus)
    if focus is not None:
        if focus.split != "test":
            found.append("There is no test split: these patients were seen while the model was chosen.")
        found += _uncertain(run, focus)
    if number := suppressed_values(run):
        found.append(f"{number} values are not shown, because they would be about too few patients.")
    found += _missing(run)
    if run.study.kind("privacy") in ("none", ""):
        found.append(
            "No privacy mechanism protected the updates: whoever receives one may learn about its patients."
        )
    if any(model.startswith("local:") for model in run.models):
        found.append(
            "The best single hospital's model was picked on the patients it is reported on, which favours it."
        )
    return [*found, "Nothing here shows benefit or safety in care. The model is not a medical device."]


def suppressed_values(run: Run) -> int:
    """Return how many values are suppressed because they are of too few patients."""
    return sum(1 for row in run.rows if row.value is None and "fewer than" in (row.note or ""))


def _held_out(run: Run, focus: Focus | None) -> list[str]:
    hospitals = run.facts.held_out
    if not hospitals:
        return ["No hospital was held out: how the model does at a hospital that took no part is not known."]
    if focus is None:
        return []
    rows = focus.rows(run.rows)
    patients = sum(row.n or 0 for site in hospitals if (row := rows.get(site, FEDERATED)) is not None)
    number = f"{len(hospitals)} hospital{'s' if len(hospitals) > 1 else ''}"
    tested = f"It was tested at {number} that took no part, in {patients} patients."
    if len(hospitals) < 3:
        tested += " A difference between hospitals cannot be told from so few."
    return [tested]


def _uncertain(run: Run, focus: Focus) -> list[str]:
    """Return what is wide or missed at the hospitals that the report is about."""
    ours = [
        row
        for row in run.rows
        if row.model == FEDERATED and row.group is None and row.against is None and row.site in focus.places
    ]
    found = []
    wide = [row for row in ours if "wide" in (row.note or "") and row.metric == focus.metric]
    if wide:
        found.append(
            "The headline's interval is wide: "
            + "; ".join(f"{site_name(row.site)} {interval(row)}" for row in wide)
            + ". More patients are needed before it decides anything."
        )
    missed = [row for row in ours if row.metric == "missed" and row.value and row.split == focus.split]
    return found + [_missed(row) for row in missed]


def _missed(row: Row) -> str:
    return (
        f"The federated model missed {row.structure or 'the structure'} altogether in {row.value:.0f} "
        f"of {row.n} patients at {site_name(row.site)}; their Dice counts as 0, "
        "their distance cannot be measured."
    )


def _missing(run: Run) -> list[str]:
    """Return which contributions, measurements and models are missing."""
    found = []
    lines = run.training_lines
    lost = [line for line in lines if line.status in LOST]
    if lost:
        sites = ", ".join(sorted({line.site for line in lost}))
        found.append(
            f"{len(lost)} of {len(lines)} contributions are missing, of {sites}; the model has seen less of "
            "their patients."
        )
    unmeasured, missing = sorted(run.facts.unmeasured.items()), sorted(run.facts.missing_models.items())
    found += [f"Nothing was measured at {site}: {why}." for site, why in unmeasured]
    found += [f"There is no model to compare with of {model_name(model)}: {why}." for model, why in missing]
    return found

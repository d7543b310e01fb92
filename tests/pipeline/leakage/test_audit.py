"""The leakage audit of one hospital: rows are reconstructed without protection, and not under noise."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from click.testing import CliRunner

from medfed.cli import main
from medfed.errors import PrivacyError
from medfed.pipeline.factory import hospital_of
from medfed.pipeline.leakage.audit import audit, run_attacks
from medfed.pipeline.leakage.findings import AttackBudget, describe
from medfed.pipeline.suppress_warnings import suppress_warnings
from medfed.study.reading import read_study

STUDY = """\
name: rows
task: {kind: tabular, classes: [healthy, ill]}
network: {kind: fully_connected, hidden: [8]}
data: {kind: table, target: ill, features: [a, b, c, d, e, f, g, h], standardise: none, missing: drop}
train: {rounds: 2, epochs: 1, batch: 2, optimiser: {kind: sgd, lr: 0.1}}
sampling: {minimum: 1}
sites: {north: north.csv, south: south.csv}
"""
NOISED = "privacy: {kind: client_dp, where: site, clip: 1, noise_multiplier: 1}\n"


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    generator = np.random.default_rng(0)
    for name in ("north", "south"):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([*"abcdefgh", "ill", "patient"])
            for number in range(24):
                values = generator.normal(size=8)
                writer.writerow([*values.round(4), int(values[0] > 0), f"{name}-{number}"])
    (folder / "bare.yaml").write_text(STUDY)
    (folder / "noised.yaml").write_text(STUDY + NOISED)
    return folder


def attack(rows, study, **budget):
    attacked = read_study(rows / study)
    with suppress_warnings():
        data = hospital_of(attacked, "north", attacked.sites["north"]).data
        return run_attacks(attacked, "north", data, AttackBudget(**{"steps": 20, "shadows": 0, **budget}))


def test_a_row_comes_back_bare_and_not_under_noise(rows):
    findings = attack(rows, "noised.yaml")
    bare, _, own, _ = findings.inverted
    assert (bare.privacy, bare.cases, own.privacy, own.cases) == ("none", 1, "client_dp", 1)
    assert bare.best > 0.999
    assert own.best < 0.5
    assert bare.chance < 0.5
    assert findings.worst == max(one.best for one in findings.inverted if one.privacy == "client_dp")


@pytest.mark.parametrize(
    "privacy, note",
    [
        ("{kind: dp_sgd, epsilon: 8, accountant: rdp}", "spends the whole study's epsilon"),
        (
            "{kind: secure_sum}",
            "Single updates are hidden: the sum with other cases of this hospital was attacked.",
        ),
        ("{kind: distributed_dp, epsilon: 8, accountant: rdp}", "Single updates are hidden"),
        ("{kind: ckks}", "a hospital that gives the hub its key opens every update"),
    ],
)
def test_what_an_attacker_sees_under_each_mechanism_gives_less_away(rows, privacy, note):
    study = STUDY.replace("minimum: 1", "minimum: 3")
    study = study.replace("south: south.csv}", "south: south.csv, west: south.csv}")
    (rows / "each.yaml").write_text(study + f"privacy: {privacy}\n")
    findings = attack(rows, "each.yaml", cases=1)
    bare, protected = findings.inverted
    assert bare.best > 0.99
    assert protected.best < 0.7
    assert any(note in text for text in findings.notes)
    assert f"with {protected.privacy}" in describe(findings)


def test_the_command_gates_and_writes_its_findings_to_the_hospitals_folder(rows, tmp_path):
    arguments = ["audit", "leakage", str(rows / "bare.yaml"), "--steps", "5", "--shadows", "0"]
    run = CliRunner().invoke
    out = ["--site", "north", "--out", str(tmp_path / "out")]
    refused = run(main, [*arguments, *out, "--gate", "0.5"])
    assert refused.exit_code == 1
    assert "without protection, 1 case in the step: 100% of the best reconstructed case" in refused.output
    assert "gate: 1.00 is more than 0.5" in refused.output
    assert run(main, [*arguments, *out, "--gate", "1"]).exit_code == 0
    files = {path.name: path for path in (tmp_path / "out").iterdir()}
    assert set(files) == {"leakage.txt", "leakage.json", "leakage.png"}
    assert {path.stat().st_mode & 0o777 for path in files.values()} == {0o600}
    assert files["leakage.png"].read_bytes().startswith(b"\x89PNG")
    figures = json.loads(files["leakage.json"].read_bytes())
    assert figures["worst"] == pytest.approx(1, abs=1e-3)
    assert not any("north-" in path.read_text() for path in (files["leakage.txt"], files["leakage.json"]))
    unknown = run(main, [*arguments, "--site", "west"])
    assert "no hospital 'west'; there are north, south" in unknown.output
    assert "choose whose updates to attack with --site" in run(main, arguments).output


@pytest.mark.slow
def test_membership_is_recognised_where_few_rows_are_learned_by_heart(rows):
    study = read_study(
        rows / "bare.yaml",
        [
            "train.rounds=40",
            "train.epochs=5",
            "network.hidden=[64]",
            "train.optimiser={kind: adam, lr: 0.05}",
        ],
    )
    with suppress_warnings():
        data = hospital_of(study, "north", study.sites["north"]).data
        result = run_attacks(study, "north", data, AttackBudget(steps=1, shadows=8)).members[0]
    assert (result.models, result.cases) == (8, 24)
    assert result.by_loss > 0.6
    assert result.by_ratio is not None


def test_too_few_cases_are_refused(rows):
    lines = (rows / "north.csv").read_text().splitlines(keepends=True)
    (rows / "few.csv").write_text("".join(lines[:9]))
    study = read_study(rows / "bare.yaml", ["sites.north=few.csv"])
    data = hospital_of(study, "north", study.sites["north"]).data
    with pytest.raises(
        PrivacyError, match="site 'north': 8 cases; a leakage audit attacks 8 and compares them"
    ):
        run_attacks(study, "north", data, AttackBudget(cases=8, shadows=0))


def test_a_run_folder_serves_too(rows, tmp_path):
    from medfed.pipeline import train as run
    from medfed.pipeline.report import report_run

    done = run.train(rows / "bare.yaml", out=tmp_path / "run", overrides=["evaluation.local_models=false"])
    _, picture = audit(done.path, "south", AttackBudget(steps=2, shadows=0), None)
    assert picture == done.path / "sites" / "south" / "leakage" / "leakage.png"
    # The report, which may be passed on, knows nothing of it.
    assert "leakage.png" not in report_run(done.path).report.read_text()

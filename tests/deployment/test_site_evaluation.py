"""What a hospital reports of the final model is what it finds itself, and the hub keeps it apart from
what it is not.
"""

from __future__ import annotations

import json

import msgspec
import numpy as np
import pytest
import torch
from hospitals import STUDY, make_hospital

from medfed.deployment import site_service as hospital
from medfed.deployment.admission import parse_offer
from medfed.deployment.hub_service import _expected as expected_of
from medfed.deployment.site_file import read_site
from medfed.errors import DataError, StudyError
from medfed.evaluation.aggregate import aggregate
from medfed.evaluation.comparisons import compare
from medfed.evaluation.metrics import MetricFamily, families
from medfed.evaluation.patients import SummarySettings
from medfed.evaluation.report import headline
from medfed.evaluation.row_transport import accept_rows, scalars_of
from medfed.evaluation.rows import CaseRow, Row, read_cases, read_rows, write
from medfed.evaluation.subgroups import subgroups
from medfed.exchange.folder import Folder
from medfed.pipeline.create_run import create_run
from medfed.pipeline.evaluate import evaluate
from medfed.pipeline.factory import module_of
from medfed.pipeline.report import report_run
from medfed.runs.checkpoints import save_checkpoint
from medfed.runs.folder import RunFolder
from medfed.study.canonical import public_yaml, study_digest
from medfed.study.reading import read_study
from medfed.wire.update import GlobalModel
from medfed.wire.weights import weights_of

SEGMENT = (
    STUDY.format(rounds=3)
    .partition("sites:")[0]
    .replace("smallest_group: 1", "smallest_group: 1, local_models: false")
)
CLASSIFY = (
    SEGMENT.replace(
        "kind: segment, classes: [background, lesion]", "kind: classify, classes: [benign, malignant]"
    )
    .replace("kind: unet, channels: [4, 8], residual_units: 0", "kind: resnet, width: 4, max_pool: false")
    .replace("local_models: false", "local_models: false, temperature: true")
)


def rows_of(scalars, round, site, study=None):
    """Return the rows that the hub makes of a site's scalars, none of which it refuses."""
    rows, refused = accept_rows(scalars, round, site, 1000, study and expected_of(study).measures)
    assert refused == []
    return rows


def case(patient: str, value: float, condition: str | None = None, **more) -> CaseRow:
    known = {
        "model": "federated",
        "site": "north",
        "split": "test",
        "case": patient,
        "patient": patient,
        "metric": "dice",
        "structure": "lesion",
        "attributes": {"sex": "FM"[patient in "bd"]},
    }
    return CaseRow(**{**known, **more}, value=value, condition=condition)


PLAIN = [case("a", 0.9), case("b", 0.7), case("c", 0.8), case("d", 0.6)]
CHANGED = [
    case(name, 0.1, condition) for name in "abcd" for condition in ("noise of 10 %", "every 4th slice lost")
]
SETTINGS = SummarySettings(round=3, seed=1, min_patients=1, draws=50)
METRICS = [metric for family in families(MetricFamily) for metric in family.metrics]


def test_a_changed_case_is_in_no_row_but_those_of_robustness():
    by_metric = {row.metric: row for row in aggregate([*CHANGED, *PLAIN], SETTINGS)}
    # By hand: (0.9 + 0.7 + 0.8 + 0.6) / 4; with the changed ones it would be (0.75 + 2 * 0.1) / 3.
    assert by_metric["dice"].value == pytest.approx(0.75)
    assert by_metric["dice"].n == 4
    untrained = [msgspec.structs.replace(one, model="untrained", value=0.5) for one in PLAIN]
    for made in (compare, subgroups):
        with_changed = made([*CHANGED, *PLAIN, *untrained], SETTINGS)
        assert with_changed == made([*PLAIN, *untrained], SETTINGS)
        assert with_changed


def row(**more) -> Row:
    known = {
        "round": 3,
        "site": "north",
        "split": "test",
        "model": "federated",
        "metric": "dice",
        "value": 0.5,
        "n": 9,
    }
    return Row(**{**known, **more})


def test_rows_that_differ_in_one_field_are_distinguished():
    rows = [
        row(low=0.4, high=0.6),
        row(split="val", value=0.51),
        row(model="untrained", value=0.52),
        row(metric="nsd_voxel_2.5mm", value=0.53),
        row(structure="left/right lung, 100 %", value=0.54),
        row(structure="value", value=0.55),
        row(group="sex=F", value=0.56),
        row(group="condition=noise of 10 %", value=0.57),
        row(structure="ü", group="scanner=A/B", value=0.58),
        *(
            row(metric=metric.name, value=number % 9 + 1.0 if metric.count else 1 / (number + 3))
            for number, metric in enumerate(METRICS)
            if metric.comparable and metric.name != "dice" and metric.name[-1] not in "_@"
        ),
    ]
    read = rows_of(scalars_of(rows), 3, "north")
    assert sorted(read, key=str) == sorted(rows, key=str)


def test_two_rows_of_one_name_do_not_leave():
    with pytest.raises(DataError, match=r"two results have the same name 'row/test/federated/dice//'"):
        scalars_of([row(), row(value=0.6)])


def outcomes(data):
    """Give every second patient of each split the other outcome: of the columns of cases.csv it is the "
    "fifth."""
    lines = (data / "cases.csv").read_text().splitlines()
    parts = [line.split(",") for line in lines[1:]]
    for number, part in enumerate(parts):
        part[4] = str(number // 6 % 2)
    (data / "cases.csv").write_text("\n".join([lines[0], *(",".join(part) for part in parts)]) + "\n")
    return data


def lead_to_the_end(folder, text: str, data, more: str = "", policy: str = "smallest_group: 1"):
    """Take part as north in a study whose final model the hub has already; return north's run
    and what it sent.
    """
    (folder / "study.yaml").write_text(text + "sites: [north, south]\n")
    study = read_study(folder / "study.yaml")
    known = study_digest(study)
    hub = Folder(url=str(folder / "share"), poll_s=0.02).open_hub(known, folder / "hub" / known)
    hub.advertise_study(public_yaml(study), sorted({*study.sites, *study.held_out}))
    hub.publish(GlobalModel(3, weights_of(module_of(study)), final=True, study_digest=known))
    (folder / "site.yaml").write_text(
        f"name: north\ndata: {data}\nexchange: {{kind: folder, url: share, poll_s: 0.02}}\naccelerator: cpu\n"
        f"policy: {{{policy}}}\n{more}"
    )
    done = hospital.take_part(folder / "site.yaml", accept=known)
    (arrival,) = hub.collect(4, ["north"], 30)
    hub.close()
    assert arrival.error is None
    return study, done, arrival.update.scalars


@pytest.mark.slow
@pytest.mark.parametrize("text", [SEGMENT, CLASSIFY], ids=["segment", "classify"])
def test_each_row_that_leaves_is_the_sites_own(tmp_path, text):
    study, done, scalars = lead_to_the_end(
        tmp_path, text, outcomes(make_hospital(tmp_path / "data" / "north", 18))
    )
    left = rows_of(scalars, 3, "north", study)
    own = [
        row
        for row in read_rows(done.rows)
        if row.value is not None and row.site == "north" and row.group is None and row.against is None
    ]
    assert {one.condition is None for one in read_cases(done.cases)} == {True, False}
    assert len({one.key for one in left}) == len(left) > 5
    # What stays behind are the words: how, and a note.
    wordless = [msgspec.structs.replace(one, method=None, note=None) for one in own]
    assert sorted(left, key=str) == sorted(wordless, key=str)


@pytest.mark.slow
def test_the_hub_keeps_what_hospitals_reported_when_another_is_evaluated(tmp_path):
    north, ours = (make_hospital(tmp_path / "data" / name, 12) for name in ("north", "ours"))
    study, _, scalars = lead_to_the_end(tmp_path, SEGMENT, north)
    at_hub = RunFolder(tmp_path / "led")
    facts = create_run(at_hub, study, {})
    at_hub.write_facts(facts)
    reported = rows_of(scalars, 3, "north", study)
    write(at_hub.reported, reported)
    save_checkpoint(at_hub.checkpoint("federated"), weights_of(module_of(study)), 3)
    assert report_run(at_hub.path).report.exists()
    assert read_rows(at_hub.rows) == reported
    assert headline(at_hub.path).startswith("Federated model: Dice")

    evaluate(at_hub, ours, name="ours")
    read = read_rows(at_hub.rows)
    assert [row for row in read if row.site == "north"] == reported
    plain = {row.key[1:]: row.value for row in read if row.site == "ours" and row.group is None}
    cases = [one for one in read_cases(at_hub.cases) if one.model == "federated" and one.metric == "dice"]
    bare = [one.value for one in cases if one.condition is None]
    assert len(cases) > len(bare) > 0
    assert plain["ours", "test", "federated", "dice", "lesion", None, None] == pytest.approx(
        sum(bare) / len(bare)
    )
    assert json.loads(at_hub.facts.read_text())["held_out"] == ["ours"]
    assert [row for row in read if str(row.group).startswith("condition=") and row.site == "ours"]
    # Again, and nothing of it is lost or told twice.
    report_run(at_hub.path)
    assert read_rows(at_hub.rows) == read


TABLE = """\
name: table
seed: 1
task: {kind: TASK}
network: {kind: fully_connected, hidden: []}
data: {kind: table, features: [a, b], TARGET}
train: {rounds: 3, epochs: 1, batch: 4, optimiser: {kind: adam, lr: 0.01}}
sampling: {minimum: 1}
evaluation: {draws: 20, smallest_group: 1, local_models: LOCAL}
"""
SURVIVAL = TABLE.replace("TASK", "survival").replace("TARGET", "time: days, event: died")
OUTCOME = (
    TABLE.replace("TASK", "tabular, classes: [healthy, disease]")
    .replace("TARGET", "target: died")
    .replace("LOCAL", "false")
)


def table(path):
    """Write 240 patients, of whom two in three had the event; those with a larger `a` sooner."""
    drawn = np.random.default_rng(0)
    lines = [
        f"{a:.3f},{b:.3f},{300 * np.exp(-a) + 1:.0f},{number % 3 and 1}"
        for number, (a, b) in enumerate(drawn.normal(size=(240, 2)))
    ]
    path.write_text("\n".join(["a,b,days,died", *lines]) + "\n")
    return path


@pytest.mark.parametrize("local_models", ["false", "true"])
def test_a_brier_score_at_a_hospitals_own_times_is_computed_locally_and_stays(tmp_path, local_models):
    text = SURVIVAL.replace("LOCAL", local_models)
    study, done, scalars = lead_to_the_end(tmp_path, text, table(tmp_path / "north.csv"))
    own = {row.metric for row in read_rows(done.rows) if row.model == "federated" and row.value is not None}
    assert {metric.partition("@")[0] for metric in own} >= {"c_index", "brier", "integrated_brier"}
    assert {row.metric for row in rows_of(scalars, 3, "north", study)} == {"c_index", "events", "patients"}
    assert not any("brier" in name for name in scalars)


@pytest.mark.parametrize("similar", ["warn", "withhold"])
def test_two_studies_whose_test_patients_differ_by_one_cannot_be_subtracted_unnoticed(tmp_path, similar):
    """Both untrained models are one, so 40 times the second mean minus 39 times the first is a patient's."""
    policy, text = (
        f"smallest_group: 5, similar_results: {similar}",
        OUTCOME.replace("smallest_group: 1", "smallest_group: 5"),
    )
    data = table(tmp_path / "north.csv")
    lines = data.read_text().splitlines()
    splits = ["split", *("test" if n < 40 else "val" if n < 90 else "train" for n in range(240))]
    given = [f"{line},{split}" for line, split in zip(lines, splits, strict=True)]
    given = [f"{'patient' if not n else f'P{n}'},{line}" for n, line in enumerate(given)]
    data.write_text("\n".join(given[:1] + given[2:]) + "\n")
    study, done, first = lead_to_the_end(tmp_path, text, data, policy=policy)
    assert done.read_facts().warnings == {}
    data.write_text("\n".join(given) + "\n")
    # Another number of rounds is another study.
    _, done, second = lead_to_the_end(tmp_path, text.replace("rounds: 3", "rounds: 4"), data, policy=policy)

    (warning,) = done.read_facts().warnings["north"]
    assert f"(study {study_digest(study)[:12]}) but for 1 who came and 0 who went" in warning
    assert warning in done.report.read_text()
    assert warning.partition(": ")[0] in " ".join(done.consent.read_text().split())
    logged = [json.loads(line) for line in done.audit.read_text().splitlines()]
    assert next(line["reason"] for line in logged if line["event"] == "similar results") == warning
    assert "P1" not in done.audit.read_text()

    name = "row/test/untrained/brier///"
    assert (f"{name}value" in second) == (similar == "warn")
    assert first[f"{name}n"] == 39
    if similar == "warn":
        (single,) = [case for case in read_cases(done.cases)
                     if (case.model, case.split) == ("untrained", "test")
                     and case.structure == "disease"][:1]  # fmt: skip
        gained = 40 * second[f"{name}value"] - 39 * first[f"{name}value"]
        assert gained == pytest.approx((single.value - single.target) ** 2)
    else:
        assert not any(one.startswith("row/test/") and "/patients/" not in one for one in second)
        assert second["results/withheld"] > 0


def test_a_study_that_begins_with_given_weights_trains_from_the_hospitals_own_copy(tmp_path):
    (tmp_path / "plain.yaml").write_text(OUTCOME + "sites: [north, south]\n")
    given = {name: torch.full_like(tensor, 0.25) for name, tensor in
             weights_of(module_of(read_study(tmp_path / "plain.yaml"))).items()}  # fmt: skip
    for name in ("given.ckpt", "copy.ckpt"):
        save_checkpoint(tmp_path / name, given, 0)
    (tmp_path / "copy.ckpt").write_bytes((tmp_path / "given.ckpt").read_bytes())
    save_checkpoint(tmp_path / "another.ckpt", given, 1)
    data = table(tmp_path / "north.csv")
    text = OUTCOME + "start: given.ckpt\n"

    study, done, _ = lead_to_the_end(tmp_path, text, data, "start: copy.ckpt\n")
    known = study_digest(study)
    assert done.read_facts().is_finished
    # The untrained model that it was measured against is the one that it was given: 0.25 everywhere.
    assert {case.model for case in read_cases(done.cases)} >= {"untrained", "federated"}
    offered = parse_offer(public_yaml(study), known, read_site(tmp_path / "site.yaml"))
    assert all(torch.equal(tensor, given[name]) for name, tensor in weights_of(module_of(offered)).items())
    assert study_digest(offered) == known

    for line, told in (
        ("", "get that file .* from the coordinator and name it in the site file"),
        ("start: another.ckpt\n", "is another or damaged: SHA-256"),
        ("start: missing.ckpt\n", "cannot be used: start: missing.ckpt is missing"),
    ):
        site = (tmp_path / "site.yaml").read_text().replace("start: copy.ckpt\n", line)
        (tmp_path / "other.yaml").write_text(site)
        with pytest.raises(StudyError, match=f"study 'table' begins with the weights .*{told}"):
            parse_offer(public_yaml(study), known, read_site(tmp_path / "other.yaml"))

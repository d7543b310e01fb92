"""Studies of images with a table beside them: what each of the two teaches, and what is refused."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from medfed.cli import main
from medfed.data.own_data import OwnData
from medfed.deployment.site_file import SiteFile
from medfed.deployment.study_page import OwnPart, describe, egress_size
from medfed.errors import RunError, StudyError
from medfed.exchange.folder import Folder
from medfed.models.tasks._scores import auroc
from medfed.pipeline import train as run
from medfed.pipeline.check import check
from medfed.pipeline.drafting import draft_study, write_draft
from medfed.pipeline.export import export
from medfed.pipeline.factory import hospital_of, module_of
from medfed.pipeline.own_choices import OwnChoices
from medfed.pipeline.predict import predict
from medfed.study.canonical import study_digest
from medfed.study.reading import parse_study, read_study

torch.set_num_threads(1)

# Stands in every case's id; nothing that is written about a run may hold it.
MARK = "Meier"

STUDY = """\
name: fused
seed: 3
task: {kind: classify, classes: [benign, malignant]}
network: {kind: resnet, width: 4, norm: group, first_kernel: 3, max_pool: false}
data:
  kind: images
  spatial_dims: 2
  spacing_mm: native
  patch: [16, 16]
  augment: none
  table: {features: [age, sex], categorical: {sex: [F, M]}}
train: {rounds: 6, epochs: 2, batch: 8, optimiser: {kind: adamw, lr: 0.01}}
sampling: {minimum: 2}
evaluation: {draws: 20, smallest_group: 1, local_models: false, pooled_model: false, robustness: false}
sites: {north: north, south: south}
site_overrides: {south: {columns: {age: Alter, case: Fall}, table: Klinik.csv}}
"""


def make_hospital(folder: Path, *, told_by: str, own: bool = False) -> None:
    """Write 48 pictures and their patients' ages; only one of the two tells the class."""
    folder.mkdir()
    generator = np.random.default_rng(sum(folder.name.encode()))
    cases, rows = ["case,image,target,split"], ["Fall,Alter,sex" if own else "case,age,sex"]
    for number in range(48):
        target = number // 4 % 2
        # With more noise, so few pictures are learnt by heart, whatever the table says.
        pixels = np.linspace(50, 150, 256).reshape(16, 16) + generator.normal(0, 1, (16, 16))
        pixels[4:12, 4:12] += 80 * target * (told_by == "image")
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"p{number}.png")
        age = generator.normal(50, 5) + 30 * target * (told_by == "table")
        split = ("train", "train", "val", "test")[number % 4]
        cases.append(f"{MARK}{number},p{number}.png,{target},{split}")
        rows.append(f"{MARK}{number},{age:.1f},{'FM'[int(generator.integers(2))]}")
    (folder / "cases.csv").write_text("\n".join(cases) + "\n")
    rows[1:] = generator.permutation(rows[1:]).tolist()
    (folder / ("Klinik.csv" if own else "clinical.csv")).write_text("\n".join(rows) + "\n")


def written(folder: Path, told_by: str) -> Path:
    make_hospital(folder / "north", told_by=told_by)
    make_hospital(folder / "south", told_by=told_by, own=True)
    (folder / "study.yaml").write_text(STUDY)
    return folder / "study.yaml"


def scored(study_file: Path, *overrides: str) -> float:
    """Return the AUROC of the federated model over both hospitals' test cases, by medfed predict."""
    done = run.train(study_file, out=study_file.parent / f"run{len(overrides)}", overrides=overrides)
    scores: list[float] = []
    targets: list[bool] = []
    for site in ("north", "south"):
        folder = study_file.parent / site
        out = predict(done.path, folder, study_file.parent / f"out-{site}{len(overrides)}", name=site)
        with (folder / "cases.csv").open() as file:
            known = {row["case"]: row for row in csv.DictReader(file)}
        with (out / "stays-in-hospital.csv").open() as file:
            case_of = {row["token"]: row["case"] for row in csv.DictReader(file)}
        with (out / "predictions.csv").open() as file:
            for line in csv.DictReader(file):
                case = known[case_of[line["case"]]]
                if case["split"] == "test":
                    scores.append(float(line["probability of malignant"]))
                    targets.append(case["target"] == "1")
    score = auroc(np.array(scores), np.array(targets))
    assert score is not None
    return score


@pytest.mark.slow
def test_what_only_the_table_tells_is_learnt_from_the_table(tmp_path: Path) -> None:
    study = written(tmp_path, "table")
    assert scored(study) > 0.95
    # 24 test cases that nothing tells apart: the deviation of an AUROC is about 0.12.
    assert scored(study, "data.table=null", "site_overrides={}") < 0.8


@pytest.mark.slow
def test_what_only_the_image_tells_is_learnt_from_the_image(tmp_path: Path) -> None:
    assert scored(written(tmp_path, "image")) > 0.95


def test_sites_with_other_headings_and_files_give_the_same_inputs(tmp_path: Path) -> None:
    study = read_study(written(tmp_path, "table"))
    for site in ("north", "south"):
        data = hospital_of(study, site, str(tmp_path / site)).data
        (batch, *_) = data.val_dataloader()
        assert batch["tabular"].shape == (8, 3)
        ages = np.array([data.dataset("train")[k]["tabular"][0] for k in range(24)])
        assert ages.mean() == pytest.approx(0, abs=1e-6)
        assert ages.std() == pytest.approx(1, abs=1e-6)


def own_words(folder: Path) -> None:
    """A hospital outside the study, whose site file says how its table and columns are called."""
    shutil.copytree(folder / "south", folder / "elsewhere")
    (folder / "site.yaml").write_text(
        "name: elsewhere\ndata: elsewhere\ntable: elsewhere/Klinik.csv\n"
        "exchange: {kind: folder, url: shared}\ncolumns: {age: Alter, case: Fall}\n"
    )


def test_a_prediction_needs_the_table(tmp_path: Path) -> None:
    study = written(tmp_path, "table")
    done = run.train(study, out=tmp_path / "run", overrides=("train.rounds=1", "train.epochs=1"))
    written_files = [path for path in done.path.rglob("*") if path.is_file()]
    assert written_files
    assert not [path.name for path in written_files if MARK.encode() in path.read_bytes()]
    assert "table.features" in done.report.read_text()
    rows = (tmp_path / "north" / "clinical.csv").read_text().splitlines()
    (tmp_path / "north" / "clinical.csv").write_text("\n".join(rows[:-1]) + "\n")
    out = predict(done.path, tmp_path / "north", tmp_path / "out")
    with (out / "predictions.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["note"] for line in lines if line.get("note")] == ["not predicted: no row in the table"]
    assert sum(bool(line["probability of malignant"]) for line in lines) == 47
    own_words(tmp_path)
    told = CliRunner().invoke(
        main,
        ["predict", str(done.path), "--site", str(tmp_path / "site.yaml"), "--out", str(tmp_path / "own")],
    )
    assert told.exit_code == 0, told.output
    with (tmp_path / "own" / "predictions.csv").open() as file:
        assert sum(bool(line["probability of malignant"]) for line in csv.DictReader(file)) == 48
    folder = export(done.path, tmp_path / "ts", format="torchscript")
    about = json.loads((tmp_path / "ts" / "model.json").read_text())
    assert about["tabular"] == ["age", "sex is F", "sex is M"]
    loaded = torch.jit.load(str(tmp_path / "ts" / "model.ts"))
    assert loaded(torch.zeros(3, 1, 16, 16), torch.zeros(3, 3)).sum(1).tolist() == pytest.approx([1.0] * 3)
    with pytest.raises(
        RunError, match="MONAI's inference takes images alone, and this model also takes age, "
    ):
        export(done.path, tmp_path / "bundle", format="bundle")
    assert folder


def test_the_page_that_is_agreed_to_names_the_columns_and_counts_the_wrapper(tmp_path: Path) -> None:
    study = parse_study(STUDY)
    site = SiteFile(name="north", data="", exchange=Folder(url="share"))
    text = describe(OwnPart(study, site), study_digest(study))
    assert "beside each image, of a table: age, sex" in text
    plain = msgspec.structs.replace(study, data=msgspec.structs.replace(study.data, table=None))
    assert study_digest(plain) != study_digest(study)
    # 3 columns to 16 numbers, and a head of 32 + 16 instead of 32 inputs, for two classes.
    assert egress_size(study)[1] - egress_size(plain)[1] == (3 * 16 + 16) + 16 * 2
    assert egress_size(study)[1] == sum(p.numel() for p in module_of(study).parameters())


def test_the_head_that_stays_is_the_one_that_sees_both() -> None:
    study = parse_study(STUDY.replace("batch: 8,", "batch: 8, keep_local: [head],"))
    assert study.keep_local == ("network.head",)
    assert module_of(study).get_submodule("network.head").in_features == 32 + 16


DP = "privacy: {kind: dp_sgd}\n"
REFUSED = {
    "another task": (
        ("classify, classes: [benign", "segment, classes: [benign"),
        (
            "kind: resnet, width: 4, norm: group, first_kernel: 3, max_pool: false",
            "kind: unet, channels: [4, 8]",
        ),
        r"data\.table: task 'segment' does not learn from columns beside images",
    ),
    "the answer": (("[age, sex]", "[age, sex, target]"), r"data\.table: features lists 'target'"),
    "an identifier": (("[age, sex]", "[mrn, age, sex]"), r"features lists 'mrn', which says whose a row is"),
    "dp_sgd with means": (("sampling:", f"{DP}sampling:"), r"data\.table\.standardise: site scales each"),
    "dp_sgd with medians": (
        ("sampling:", f"{DP}sampling:"),
        ("{features:", "{standardise: none, features:"),
        r"data\.table\.missing: median fills gaps",
    ),
    "combat": (("{features:", "{standardise: combat, features:"), r"data\.table\.standardise"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_is_refused_when_the_study_is_read(what: str) -> None:
    *changes, words = REFUSED[what]
    text = STUDY
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    with pytest.raises(StudyError, match=words):
        parse_study(text)


def test_a_draft_proposes_the_columns_that_all_hospitals_have(tmp_path: Path) -> None:
    for site in ("north", "south"):
        make_hospital(tmp_path / site, told_by="table")
    draft = draft_study("drafted", {site: tmp_path / site for site in ("north", "south")}, {})
    write_draft(tmp_path / "drafted.yaml", draft)
    table = read_study(tmp_path / "drafted.yaml").data.table
    assert (table.features, table.categorical) == (("age", "sex"), {"sex": ("F", "M")})
    assert any("column 'case' was left out" in warning for warning in draft.warnings)


def test_check_passes_what_the_site_file_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = written(tmp_path, "table")
    own = OwnData(str(tmp_path / "south" / "Klinik.csv"), {"age": "Alter", "case": "Fall"})
    shutil.copytree(tmp_path / "south", tmp_path / "elsewhere")
    assert check(tmp_path / "elsewhere", study, lambda _: False, None) == 2
    assert "the folder has none of clinical.csv" in capsys.readouterr().out
    assert check(tmp_path / "elsewhere", study, lambda _: False, None, OwnChoices(data=own)) < 2
    said = capsys.readouterr().out
    assert "has a row for 48 of 48 cases" in said
    assert "age, sex" in said

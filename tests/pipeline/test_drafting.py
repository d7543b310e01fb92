"""`medfed new`: the study file that is drafted from folders, and the errors for folders it cannot use."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
from click.testing import CliRunner
from hospitals import make_hospital

from medfed.cli import main
from medfed.errors import DataError, StudyError
from medfed.pipeline.drafting import draft_study, parse_sites, write_draft
from medfed.study.reading import read_study

SAMPLES = Path(__file__).resolve().parents[2] / "sample_data"


def new(*words: object) -> tuple[int, str]:
    done = CliRunner().invoke(main, ["new", *map(str, words)])
    return done.exit_code, done.output


def test_image_folders_become_a_segmentation(tmp_path: Path) -> None:
    file = tmp_path / "ours.yaml"
    code, output = new(
        file, SAMPLES / "north", f"b={SAMPLES / 'south'}", "--held-out", SAMPLES / "university"
    )
    assert code == 0, output
    assert "north: cases.csv, 18 cases of 16 patients, 18 with a label, 18 with a class; CT" in output
    study = read_study(file)
    assert study.name == "ours"
    assert set(study.sites) == {"north", "b"}
    assert set(study.held_out) == {"university"}
    assert study.task.classes == ("background", "lesion")
    assert (
        study.data.plan.intensity_bins == "relative"
    )  # one of the two says it is CT, the other says nothing
    assert study.minimum == 2


def test_folders_of_ct_alone_are_planned_in_hounsfield_units(tmp_path: Path) -> None:
    made = draft_study("ours", {"north": SAMPLES / "north"}, {})
    write_draft(tmp_path / "ours.yaml", made)
    study = read_study(tmp_path / "ours.yaml")
    assert study.data.plan.intensity_bins == "hu"
    assert study.minimum == 1


def test_a_fingerprint_is_asked_of_patients_and_not_of_cases(tmp_path: Path) -> None:
    folder = make_hospital(tmp_path / "north", cases=8)
    table = folder / "cases.csv"
    heading, *lines = [line.split(",") for line in table.read_text().splitlines()]
    for number, line in enumerate(lines):  # two cases of each patient, the first three patients train
        line[heading.index("patient")] = f"p{number // 2}"
        line[heading.index("split")] = "train" if number < 6 else "test"
    table.write_text("\n".join(",".join(line) for line in (heading, *lines)))
    made = draft_study("ours", {"north": folder}, {})
    write_draft(tmp_path / "ours.yaml", made)
    assert read_study(tmp_path / "ours.yaml").data.plan.min_patients == 3


def test_nifti_images_with_the_hu_of_air_are_taken_for_ct(tmp_path: Path) -> None:
    folder = make_hospital(tmp_path / "north", cases=12)
    for path in folder.glob("*-image.nii.gz"):
        image = nibabel.load(path)
        nibabel.save(nibabel.Nifti1Image(image.get_fdata() * 50 - 900, image.affine), path)
    made = draft_study("ours", {"north": folder}, {})
    write_draft(tmp_path / "ours.yaml", made)
    assert read_study(tmp_path / "ours.yaml").data.plan.intensity_bins == "hu"


def test_a_classifier_sees_the_whole_image(tmp_path: Path) -> None:
    code, output = new(tmp_path / "c.yaml", SAMPLES / "north", SAMPLES / "east", "--task", "classify")
    assert code == 0, output
    study = read_study(tmp_path / "c.yaml")
    # By hand: north 41 x 41 x 26 voxels of 2.75 x 2.75 x 4 mm, east 45 x 42 x 32 of 2.5 x 2.5 x 3.5 mm: at
    # most 112.75 x 112.75 x 112 mm, at the finest 45.1 x 45.1 x 32 voxels, rounded up to multiples of 8.
    assert study.data.spacing_mm == (2.5, 2.5, 3.5)
    assert study.data.patch == (48, 48, 32)


@pytest.mark.parametrize(("side", "first_stride", "width"), [(48, 1, 64), (49, 2, 32)])
def test_a_classifier_of_large_images_halves_them_at_once(
    tmp_path: Path, side: int, first_stride: int, width: int
) -> None:
    """At full resolution its first layer takes most of the time: hours where minutes are enough."""
    for number in range(4):
        image = nibabel.Nifti1Image(np.full((side, 48, 48), number, np.int16), np.eye(4))
        nibabel.save(image, tmp_path / f"{number}.nii.gz")
    rows = [f"{number},p{number},{number}.nii.gz,{number % 2}" for number in range(4)]
    (tmp_path / "cases.csv").write_text("\n".join(["case,patient,image,target", *rows]) + "\n")
    write_draft(tmp_path / "c.yaml", draft_study("c", {"north": tmp_path}, {}, task="classify"))
    study = read_study(tmp_path / "c.yaml")
    # By hand: 48 x 48 x 48 voxels are the most at full resolution; 49 are rounded up to 56.
    assert study.data.patch == (side if side == 48 else 56, 48, 48)
    assert (study.network.first_stride, study.network.width) == (first_stride, width)
    study.network.check_size(study.data.patch)


def test_tables_become_a_study_of_their_columns(tmp_path: Path) -> None:
    tables = SAMPLES / "tabular"
    code, output = new(tmp_path / "h.yaml", tables / "north.csv", tables / "east.csv", "--target", "disease")
    assert code == 0, output
    data = read_study(tmp_path / "h.yaml").data
    assert data.target == "disease"
    assert "patient" not in data.features
    assert "split" not in data.features
    assert data.categorical["sex"] == ("F", "M")
    assert "age" in data.numbers


def test_names_of_people_never_become_a_category(tmp_path: Path) -> None:
    for site in ("a", "b"):
        rows = "\n".join(f"{40 + n % 7},Jane Doe {site}{n},{n % 2}" for n in range(20))
        (tmp_path / f"{site}.csv").write_text(f"age,who,target\n{rows}\n")
    code, output = new(tmp_path / "s.yaml", tmp_path / "a.csv", tmp_path / "b.csv", "--target", "target")
    assert code == 0, output
    assert "Doe" not in (tmp_path / "s.yaml").read_text() + output
    assert "column 2 was left out: it holds values that nearly every row has alone" in output
    assert "who" not in output


def test_what_does_not_follow_from_the_folders_is_asked_for(tmp_path: Path) -> None:
    table = SAMPLES / "tabular" / "north.csv"
    code, output = new(tmp_path / "s.yaml", table)
    assert code == 1
    assert "give --target COLUMN, or --time COLUMN and --event COLUMN" in output
    code, output = new(tmp_path / "s.yaml", table, "--target", "diseese")
    assert code == 1
    assert "no column 'diseese'; all hospitals have age" in output
    code, output = new(tmp_path / "s.yaml", table, SAMPLES / "east", "--target", "disease")
    assert code == 1
    assert "a study has either tables or images" in output
    code, output = new(tmp_path / "s.yaml", tmp_path / "nowhere")
    assert code == 1
    assert "nowhere: there is no such folder" in output
    assert not (tmp_path / "s.yaml").exists()


def test_without_labels_or_classes_there_is_nothing_to_learn(tmp_path: Path) -> None:
    for site in ("a", "b"):
        make_hospital(tmp_path / site, cases=2)
        table = (tmp_path / site / "cases.csv").read_text().splitlines()
        heading = table[0].split(",")
        keep = [n for n, column in enumerate(heading) if column not in ("label", "target")]
        rows = [",".join(line.split(",")[n] for n in keep) for line in table]
        (tmp_path / site / "cases.csv").write_text("\n".join(rows) + "\n")
    with pytest.raises(StudyError, match="no case has a label at a, b; no case has a class at a, b"):
        draft_study("s", {"a": tmp_path / "a", "b": tmp_path / "b"}, {})


def test_no_file_is_written_over_and_no_hospital_named_twice(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("mine\n")
    code, output = new(tmp_path / "s.yaml", SAMPLES / "north")
    assert code == 1
    assert "the file exists" in output
    assert (tmp_path / "s.yaml").read_text() == "mine\n"
    with pytest.raises(StudyError, match="two hospitals would be named 'north'"):
        parse_sites([str(SAMPLES / "north"), "/elsewhere/North"])
    with pytest.raises(StudyError, match="gives no name"):
        parse_sites(["/data/42"])


def test_a_folder_that_cannot_be_listed_is_refused_with_its_own_reason(tmp_path: Path) -> None:
    make_hospital(tmp_path / "a", cases=2)
    table = tmp_path / "a" / "cases.csv"
    good = table.read_text()
    table.write_text(good.replace("image", "picture", 1))
    with pytest.raises(DataError, match=r"^a: cases\.csv has no column 'image'"):
        draft_study("s", {"a": tmp_path / "a"}, {})
    table.write_text(good.replace("train", "nowhere", 1))
    with pytest.raises(DataError, match=r"^a: cases\.csv row 2 .*split"):
        draft_study("s", {"a": tmp_path / "a"}, {})
    table.unlink()
    with pytest.raises(DataError, match=r"^a: .*holds nothing that medfed knows .*--layout"):
        draft_study("s", {"a": tmp_path / "a"}, {})


def test_folders_without_a_readable_case_are_refused(tmp_path: Path) -> None:
    shutil.copytree(SAMPLES / "south", tmp_path / "south")
    for path in (tmp_path / "south").rglob("*.nii.gz"):
        path.write_bytes(b"nothing")
    with pytest.raises(DataError, match="south: none of its 18 cases can be read"):
        draft_study("s", {"south": tmp_path / "south"}, {})


@pytest.mark.slow
def test_what_is_written_trains(tmp_path: Path) -> None:
    import medfed

    write_draft(tmp_path / "s.yaml", draft_study("s", {s: SAMPLES / s for s in ("north", "east")}, {}))
    small = ["data.plan.voxels=4096", "train.rounds=1", "train.epochs=1", "network.channels=[4,8]"]
    small += ["evaluation.local_models=false", "evaluation.pooled_model=false", "evaluation.robustness=false"]
    done = medfed.train(tmp_path / "s.yaml", out=tmp_path / "run", overrides=small)
    assert done.report.exists()


def planes_of(folder: Path, side: int, spacing_mm: float, cases: int = 12) -> Path:
    """Write a hospital's planes (X, Y, 1) as NIfTI, with masks and classes."""
    folder.mkdir()
    rows = ["case,patient,image,label,target"]
    generator = np.random.default_rng(0)
    for number in range(cases):
        image = generator.normal(0, 1, (side, 2 * side, 1)).astype(np.float32)
        label = np.zeros(image.shape, np.uint8)
        label[4:8, 6:9] = 1
        for array, kind in ((image, "image"), (label, "label")):
            nibabel.save(
                nibabel.Nifti1Image(array, np.diag([spacing_mm, spacing_mm, 1, 1])),
                folder / f"{number}-{kind}.nii.gz",
            )
        rows.append(f"{number},p{number},{number}-image.nii.gz,{number}-label.nii.gz,{number % 2}")
    (folder / "cases.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.mark.parametrize("task", ["segment", "classify"])
def test_planes_become_a_2d_study_at_one_scale(tmp_path: Path, task: str) -> None:
    north = planes_of(tmp_path / "north", 20, 0.5)
    south = planes_of(tmp_path / "south", 40, 1.0)
    code, output = new(tmp_path / "p.yaml", north, south, "--task", task)
    assert code == 0, output
    study = read_study(tmp_path / "p.yaml")
    # By hand: at most 40 x 80 mm, at the finest 0.5 mm: 80 x 160 pixels, rounded up to multiples of 32.
    assert study.data.spatial_dims == 2
    assert study.data.spacing_mm == (0.5, 0.5)
    assert study.data.patch == (96, 160)
    assert study.task.needs == task


def test_small_planes_of_one_size_keep_their_pixels(tmp_path: Path) -> None:
    folder = planes_of(tmp_path / "north", 14, 1.0)
    write_draft(tmp_path / "p.yaml", draft_study("p", {"north": folder}, {}, task="classify"))
    data = read_study(tmp_path / "p.yaml").data
    assert (data.spacing_mm, data.patch) == ("native", (32, 32))


def test_planes_and_volumes_do_not_mix(tmp_path: Path) -> None:
    planes = planes_of(tmp_path / "north", 20, 0.5)
    with pytest.raises(DataError, match=r"north: images of one plane, and east: volumes"):
        draft_study("p", {"north": planes, "east": make_hospital(tmp_path / "east")}, {})

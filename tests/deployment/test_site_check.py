"""`medfed check --site FILE --study FILE` decides as the hospital's own training does."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from hospitals import make_hospital

from medfed.cli import main
from medfed.deployment.site_file import read_site, secret_of
from medfed.deployment.site_service import _open_hospital
from medfed.errors import DataError
from medfed.pipeline.factory import require_training_cases, screen_hospital
from medfed.study.reading import read_study

STUDY = """\
name: marked
seed: 1
task: {kind: segment, classes: [background, liver]}
network: {kind: unet, channels: [4, 8], residual_units: 0}
data: {kind: images, spacing_mm: [2, 2, 2], patch: [16, 16, 16]}
train: {rounds: 1, epochs: 1, batch: 2}
sites: {north: null, south: null}
held_out: {west: null}
"""
SITE = "name: north\ndata: images\nexchange: {kind: folder, url: shared}\n"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_hospital(tmp_path_factory.mktemp("site") / "images")


def placed(tmp_path: Path, images: Path, site: str) -> tuple[Path, Path]:
    (tmp_path / "images").symlink_to(images)
    (tmp_path / "study.yaml").write_text(STUDY)
    (tmp_path / "site.yaml").write_text(site)
    return tmp_path / "study.yaml", tmp_path / "site.yaml"


def check(study: Path, site: Path) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["check", "--site", str(site), "--study", str(study)])
    assert not isinstance(result.exception, Exception), result.exception
    return result.exit_code, " ".join(result.output.split())


def trained(study_file: Path, site_file: Path) -> str:
    """Return why the hospital's own training refuses its data, or ''."""
    site = read_site(site_file)
    try:
        hospital = _open_hospital(read_study(study_file), site, secret_of(Path(site.secret)))
        screen_hospital(hospital, site.policy.unreadable, site.cache)
        require_training_cases(hospital)
    except DataError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("", ""),
        ("layout: cases_csv\n", ""),
        ("layout: nnunet_raw\n", "nnU-Net"),
        ("read: {max_bytes: 1000}\n", "6 of 6 cases cannot be used"),
        ("read: {max_bytes: 1000}\npolicy: {unreadable: {skip: false}}\n", "unreadable.skip is false"),
        ("classes: {1: spleen}\n", "none of 6 labels names a class of the study (liver)"),
        ("classes: {1: liver}\n", ""),
    ],
)
def test_what_the_site_file_says_decides(tmp_path: Path, images: Path, more: str, words: str) -> None:
    study, site = placed(tmp_path, images, SITE + more)
    refusal = trained(study, site)
    code, text = check(study, site)
    assert (code == 2) == bool(refusal) == bool(words), text + refusal
    assert words in refusal
    assert words in text


def test_how_many_damaged_cases_the_policy_bears_decides(tmp_path: Path) -> None:
    folder = make_hospital(tmp_path / "own")
    for path in sorted(folder.glob("*-image.nii.gz"))[:2]:
        path.write_bytes(b"")
    for share, taken in (("0.05", False), ("0.5", True)):
        where = tmp_path / share
        where.mkdir()
        study, site = placed(where, folder, SITE + f"policy: {{unreadable: {{max_share: {share}}}}}\n")
        assert (trained(study, site) == "") is taken
        assert (check(study, site)[0] != 2) is taken


@pytest.mark.parametrize(
    ("site", "words"),
    [
        (SITE + "policy: {minimum_cases: 5}\n", "minimum_cases"),
        (SITE + "policy: {networks: [resnet]}\n", "policy.networks"),
        (SITE + "policy: {privacy: [client_dp]}\n", "policy.privacy"),
        (SITE.replace("north", "east"), "study 'marked' has no site 'east'"),
    ],
)
def test_what_the_policy_refuses_is_said_before_training(
    tmp_path: Path, images: Path, site: str, words: str
) -> None:
    code, text = check(*placed(tmp_path, images, site))
    assert code == 2
    assert words in text
    assert "This hospital can't take part in 'marked': its own site file refuses the study." in text


def test_a_hospital_that_is_held_out_needs_no_training_case(tmp_path: Path) -> None:
    folder = make_hospital(tmp_path / "own")
    table = folder / "cases.csv"
    table.write_text(table.read_text().replace(",train", ",test").replace(",val", ",test"))
    for name, code in (("north", 2), ("west", 1)):
        where = tmp_path / name
        where.mkdir()
        exit_code, text = check(*placed(where, folder, SITE.replace("north", name)))
        assert exit_code == code, text


def test_a_site_of_a_simulation_is_checked_with_its_own_overrides_and_splits(tmp_path: Path) -> None:
    folder = make_hospital(tmp_path / "own", cases=3)
    table = folder / "cases.csv"
    table.write_text(table.read_text().replace(",split", ",was"))
    study = tmp_path / "study.yaml"
    text = STUDY.replace("north: null", "north: own") + "site_overrides: {north: {layout: nnunet_raw}}\n"
    study.write_text(text)
    command = ["check", str(folder), "--study", str(study)]
    refused = CliRunner().invoke(main, command)
    assert refused.exit_code == 2
    assert "nnU-Net" in " ".join(refused.output.split())
    study.write_text(text.replace("nnunet_raw", "cases_csv"))
    # The splits are those of training, the same every time.
    assert len({CliRunner().invoke(main, [*command, "--json"]).output for _ in range(3)}) == 1


def test_a_folder_or_a_site_file_is_needed() -> None:
    result = CliRunner().invoke(main, ["check"])
    assert result.exit_code == 1
    assert "name the hospital's folder or table, or its site file with --site" in result.output


def test_a_study_that_takes_undrawn_structures_as_absent_is_refused_with_the_line_it_needs(
    tmp_path: Path, images: Path
) -> None:
    study, site = placed(tmp_path, images, SITE + "labelled: [liver]\n")
    assert "labelled" not in check(study, site)[1]
    study.write_text(STUDY.replace("[background, liver]", "[background, liver, spleen]"))
    status, said = check(study, site)
    assert status == 2
    assert "would learn that there is none; ask for `task.labelled: {north: [liver]}`" in said
    study.write_text(
        STUDY.replace("[background, liver]}", "[background, liver, spleen], labelled: {north: [liver]}}")
    )
    assert "would learn" not in check(study, site)[1]

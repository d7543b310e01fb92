from __future__ import annotations

import json
from pathlib import Path

import pytest

from medfed.errors import StudyError
from medfed.study.canonical import study_digest, to_dict
from medfed.study.reading import parse_study, read_study
from medfed.study.schema import schema

ROOT = Path(__file__).parents[2]
STUDY = """\
name: small
task: {kind: segment, classes: [background, lesion]}
network: {kind: unet}
data: {kind: images}
train:
  rounds: 3
  optimiser: {kind: adamw, lr: 1e-3}
sites:
  north: data/north
  south: ../south
"""


def write(folder: Path, text: str = STUDY) -> Path:
    path = folder / "study.yaml"
    path.write_text(text)
    return path


def test_folders_are_relative_to_the_file_and_every_default_is_resolved(tmp_path):
    study = read_study(write(tmp_path))
    assert study.sites == {"north": str(tmp_path / "data/north"), "south": str(tmp_path.parent / "south")}
    assert study.train.optimiser.lr == 0.001
    assert to_dict(study)["rule"]["kind"] == "fedavg"
    assert (study.minimum, study.epochs) == (1, 3)


def test_a_digest_is_of_the_study_and_not_of_where_data_lie(tmp_path):
    one = study_digest(read_study(write(tmp_path)))
    assert one == study_digest(read_study(write(tmp_path, STUDY.replace("data/north", "/elsewhere"))))
    assert one != study_digest(read_study(write(tmp_path), ["train.rounds=4"]))
    assert one != study_digest(read_study(write(tmp_path, STUDY.replace("south:", "west:"))))


def test_overrides_replace_one_key(tmp_path):
    study = read_study(write(tmp_path), ["train.epochs=3", "rule={kind: fedavg}", "task.loss.kind=dice"])
    assert study.train.epochs == 3
    assert type(study.task.loss).__name__ == "Dice"


WRONG = {
    "rule.kind": (
        "rule: {kind: fedagv}",
        r"study\.yaml:11: rule\.kind: no 'fedagv'; did you mean 'fedavg'\?; there are ",
    ),
    "a key": (
        "trian: 3",
        r"study\.yaml:11: trian: no such key; did you mean 'train'\?; there are compress, data, ",
    ),
    "a nested key": (
        "sampling: {fractoin: 1}",
        r"study\.yaml:11: sampling\.fractoin: no such key; did you mean 'fraction'",
    ),
    "a type": ("seed: many", r"study\.yaml:11: seed: found 'many'; expected a whole number"),
    "a bound": (
        "sampling: {fraction: 1.5}",
        r"study\.yaml:11: sampling\.fraction: found 1\.5; expected a number <= 1",
    ),
    "no kind": ("rule: {}", r"study\.yaml:11: rule: which kind\? Write kind: and one of "),
    "a key twice": ("name: again", r"study\.yaml:11: not valid YAML: 'name' is there twice, first in line 1"),
    "broken YAML": ("rule: {kind: [", r"study\.yaml:\d+: not valid YAML"),
    "one in both": ("held_out: {north: x}", r"'north' is in sites and in held_out"),
    "quorum": ("sampling: {minimum: 3}", r"sampling\.minimum: 3 sites must answer, but the study has 2"),
}


@pytest.mark.parametrize("line, message", WRONG.values(), ids=WRONG.keys())
def test_an_error_says_file_line_key_what_was_found_and_what_is_allowed(tmp_path, line, message):
    with pytest.raises(StudyError, match=message):
        read_study(write(tmp_path, STUDY + line + "\n"))


def test_a_study_that_names_no_site(tmp_path):
    with pytest.raises(StudyError, match="sites: names no site; a study needs at least one"):
        read_study(write(tmp_path, STUDY.partition("sites:")[0]))


def test_a_missing_key_is_named(tmp_path):
    with pytest.raises(StudyError, match=r"study\.yaml: 'task' is missing; it has no default"):
        read_study(write(tmp_path, STUDY.replace("task:", "#")))


@pytest.mark.parametrize(
    "override, message",
    [
        ("train.epochz=3", r"--set train\.epochz: no such key; did you mean 'epochs'"),
        ("train.rounds", r"--set train\.rounds: expected key=value"),
        ("name.x=1", r"'name' holds 'small', no keys below it"),
        ("network.kind=resnet", r"network\.kind: 'resnet' does not serve task 'segment'; there are .*unet"),
        ("data.kind=table", r"data: 'features' is missing"),
    ],
)
def test_an_override_that_does_not_fit(tmp_path, override, message):
    with pytest.raises(StudyError, match=message):
        read_study(write(tmp_path), [override])


def test_a_file_that_is_not_there(tmp_path):
    write(tmp_path)
    with pytest.raises(StudyError, match=r"stduy\.yaml: no such file; did you mean 'study\.yaml'\?"):
        read_study(tmp_path / "stduy.yaml")


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_loads(path):
    study = read_study(path)
    assert study.name == path.stem
    assert all(
        Path(where).exists() for where in {**study.sites, **study.held_out}.values() if "sample_data" in where
    )


def test_the_committed_schema_is_that_of_the_code():
    committed = json.loads((ROOT / "configs" / "study.schema.json").read_text())
    assert committed == json.loads(json.dumps(schema())), (
        "write it again: medfed kinds --schema > configs/study.schema.json"
    )


@pytest.mark.parametrize(
    "text, words",
    [
        # Ten lines, each ten times the one before: 10^9 values, were they written out.
        (
            "a0: &a0 [x]\n"
            + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)),
            "aliases",
        ),
        ("a: &a [*a]\n", "aliases"),
        ("a: " + "[" * 5000 + "]" * 5000, "it is nested too deeply to be a study"),
        ("a: '" + "x" * (1 << 20) + "'", "has at most 1048576"),
    ],
    ids=["a billion laughs", "itself", "nested", "long"],
)
def test_a_bomb_in_yaml_is_refused_at_once(text, words):
    with pytest.raises(StudyError, match=words) as caught:
        parse_study(text)
    assert len(str(caught.value)) < 300

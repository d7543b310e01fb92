from __future__ import annotations

from pathlib import Path

import pytest

from medfed.errors import StudyError
from medfed.study._explain import RENAMED_KEYS
from medfed.study.canonical import to_dict
from medfed.study.reading import read_study

ROOT = Path(__file__).parents[2]


def test_folders_are_relative_to_the_file_and_every_default_is_resolved(write, tmp_path):
    study = read_study(write())
    assert study.sites == {"north": str(tmp_path / "data/north"), "south": str(tmp_path.parent / "south")}
    assert study.train.optimiser.lr == 0.001
    assert to_dict(study)["rule"]["kind"] == "fedavg"
    assert (study.minimum, study.epochs) == (1, 3)


def test_overrides_replace_one_key(write):
    study = read_study(write(), ["train.epochs=3", "rule={kind: fedavg}", "task.loss.kind=dice"])
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
    "a renamed key": (
        "privacy: {kind: secure_sum, least: 3}",
        r"study\.yaml:11: privacy\.least: no such key; it is now called 'min_sites': write min_sites",
    ),
    "a type": ("seed: many", r"study\.yaml:11: seed: found 'many'; expected a whole number"),
    "a bound": (
        "sampling: {fraction: 1.5}",
        r"study\.yaml:11: sampling\.fraction: found 1\.5; expected a number <= 1",
    ),
    "no kind": ("rule: {}", r"study\.yaml:11: rule: which kind\? Write kind: and one of "),
    "a key twice": ("name: again", r"study\.yaml:11: not valid YAML: 'name' occurs twice, first in line 1"),
    "broken YAML": ("rule: {kind: [", r"study\.yaml:\d+: not valid YAML"),
}


@pytest.mark.parametrize("line, message", WRONG.values(), ids=WRONG.keys())
def test_an_error_says_file_line_key_what_was_found_and_what_is_allowed(write, study_text, line, message):
    with pytest.raises(StudyError, match=message):
        read_study(write(study_text + line + "\n"))


def test_a_sites_override_that_does_not_fit_is_named_by_a_star(write, study_text):
    expected = r"study\.yaml:\d+: site_overrides\.\*\.layout: found another value; expected text"
    with pytest.raises(StudyError, match=expected):
        read_study(write(study_text + "site_overrides: {north: {layout: 3}}\n"))


def test_a_missing_key_is_named(write, study_text):
    with pytest.raises(StudyError, match=r"study\.yaml: 'task' is missing; it has no default"):
        read_study(write(study_text.replace("task:", "#")))


@pytest.mark.parametrize(
    "override, message",
    [
        ("train.epochz=3", r"--set train\.epochz: no such key; did you mean 'epochs'"),
        ("train.rounds", r"--set train\.rounds: expected key=value"),
        ("name.x=1", r"'name' holds 'small', no keys below it"),
        ("data.kind=table", r"data: 'features' is missing"),
    ],
)
def test_an_override_that_does_not_fit(write, override, message):
    with pytest.raises(StudyError, match=message):
        read_study(write(), [override])


def test_a_file_that_is_not_there(write, tmp_path):
    write()
    with pytest.raises(StudyError, match=r"stduy\.yaml: no such file; did you mean 'study\.yaml'\?"):
        read_study(tmp_path / "stduy.yaml")


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_loads(path):
    study = read_study(path)
    assert study.name == path.stem
    assert all(
        Path(where).exists() for where in {**study.sites, **study.held_out}.values() if "sample_data" in where
    )


def test_every_renamed_key_is_answered_with_a_key_that_exists():
    """In whichever section the old key stood; in another one its nearest name is given as for any other."""
    answered = {}
    for section, old in (
        ("data.plan", "fewest"), ("data.plan", "grid"), ("data.unreadable", "most"),
        ("privacy", "least"), ("privacy", "most_examples"),
    ):  # fmt: skip
        study = [] if section.startswith("data") else ["privacy.kind=secure_sum"]
        with pytest.raises(StudyError, match=rf"--set {section}\.{old}: no such key; it is now called") as e:
            read_study(ROOT / "configs" / "quickstart.yaml", [*study, f"{section}.{old}=3"])
        answered[old] = str(e.value).split("'")[1]
    assert answered == RENAMED_KEYS
    with pytest.raises(StudyError, match=r"train\.least: no such key; (did|there)"):
        read_study(ROOT / "configs" / "quickstart.yaml", ["train.least=3"])

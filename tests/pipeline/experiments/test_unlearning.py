"""A hospital withdraws: the model is trained again from before it joined, and both runs say so."""

from __future__ import annotations

import json

import msgspec
import pytest
import torch
from click.testing import CliRunner
from hospitals import make_hospital, write_study
from safetensors.torch import load_file

from medfed.cli import main
from medfed.errors import RunError, StudyError
from medfed.federation import membership
from medfed.pipeline import train as run
from medfed.pipeline.experiments import unlearning
from medfed.runs.facts import RunFacts
from medfed.runs.folder import RunFolder
from medfed.study.canonical import study_digest
from medfed.study.reading import read_study
from medfed.wire.audit_log import entries, verify
from medfed.wire.weights import digest as weights_digest

FAST = ["evaluation.local_models=false"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("withdrawal")
    for name in ("east", "north", "south", "west"):
        make_hospital(folder / name, 6)
    study = write_study(folder, rounds=3)
    study.write_text(
        study.read_text()
        .replace("{north: north, south: south}", "{east: east, north: north, south: south}")
        .replace("sampling: {minimum: 2}", "sampling: {minimum: 1}")
    )
    return folder


def study_of(place, *overrides):
    return read_study(place / "tiny.yaml", [*FAST, *overrides])


def final(folder) -> str:
    return weights_digest(torch.load(folder.checkpoint("federated"), weights_only=True)["state_dict"])


def lines(folder) -> list[dict]:
    return [json.loads(line) for line in folder.rounds.read_text().splitlines()]


@pytest.fixture(scope="module")
def in_turn(place):
    """A run in which a site at a time trains: east in round 1, north in 2, south in 3."""
    return run.train(study_of(place, "rule.kind=cyclic"), out=place / "in-turn")


def test_the_model_from_before_each_site_joined_is_kept(in_turn):
    assert membership.first_rounds(in_turn.hub) == {"east": 1, "north": 2, "south": 3}
    kept = sorted(path.name for path in (in_turn.hub / membership.FOLDER).iterdir())
    assert kept == ["round-00001.safetensors", "round-00002.safetensors"]


def test_training_goes_on_from_the_round_before_the_site_joined(place, in_turn):
    study = study_of(place, "rule.kind=cyclic")
    before = load_file(in_turn.hub / membership.FOLDER / "round-00002.safetensors")
    again = run.train(study, out=place / "without-south", without="south", former=in_turn.path)
    record = again.read_withdrawal()
    assert (record.site, record.joined, record.retrained_from) == ("south", 3, 2)
    assert again.read_facts().withdrawn == record
    assert again.read_facts().sites == ["east", "north"]
    assert record.study_before == study_digest(study)
    assert (
        record.study == again.read_facts().digest == study_digest(unlearning.remaining_study(study, "south"))
    )
    # The model that went out first is the one of round 2, to the bit; round 3 was trained by who is left.
    received = [entry for entry in entries(again.audit) if entry["event"] == "received"]
    weights = {name.removeprefix("weights/"): t for name, t in before.items() if name.startswith("weights/")}
    assert (received[0]["round"], received[0]["sha256"]) == (2, weights_digest(weights))
    rounds = lines(again)
    assert {line["site"] for line in rounds} == {"east", "north"}
    assert [line["round"] for line in rounds if line["status"] == "merged"] == [1, 2, 3]
    for folder in (again, in_turn):
        (entry,) = [entry for entry in entries(folder.audit) if entry["event"] == "withdrawn"]
        assert (entry["site"], entry["retrained_from"]) == ("south", 2)
        verify(folder.audit)


def test_a_second_withdrawal_goes_back_over_the_first(place, in_turn):
    study = study_of(place, "rule.kind=cyclic")
    smaller = unlearning.remaining_study(study, "south")
    first = RunFolder(place / "first")
    first.path.mkdir()
    unlearning.prepare(study, "south", in_turn, first)
    first.write_facts(RunFacts(digest=study_digest(smaller)))
    second = RunFolder(place / "second")
    second.path.mkdir()
    record = unlearning.prepare(smaller, "north", first, second)
    assert (record.joined, record.retrained_from) == (2, 1)
    assert [path.name for path in second.hub.glob("round-*")] == ["round-00001.safetensors"]


@pytest.mark.slow
def test_a_site_that_was_there_from_the_start_costs_everything(place):
    study = study_of(place)
    together = run.train(study, out=place / "together")
    again = run.train(study, out=place / "without-east", without="east", former=together.path)
    assert again.read_withdrawal().retrained_from == 0
    never = run.train(unlearning.remaining_study(study, "east"), out=place / "never-there")
    assert final(again) == final(never)
    assert final(again) != final(together)


def test_a_site_that_never_merged_costs_nothing(place, in_turn):
    study = study_of(place, "rule.kind=cyclic")
    more = msgspec.structs.replace(study, sites={**study.sites, "west": str(place / "west")})
    in_turn.write_facts(msgspec.structs.replace(in_turn.read_facts(), digest=study_digest(more)))
    new = RunFolder(place / "never-merged")
    new.path.mkdir()
    record = unlearning.prepare(more, "west", in_turn, new)
    in_turn.write_facts(msgspec.structs.replace(in_turn.read_facts(), digest=study_digest(study)))
    assert (record.joined, record.retrained_from) == (None, 3)


def test_a_checkpoint_that_was_cut_short_is_passed_over(place, in_turn):
    path = in_turn.hub / membership.FOLDER / "round-00002.safetensors"
    whole = path.read_bytes()
    other = in_turn.hub / "round-00002.safetensors"
    spare = other.read_bytes()
    path.write_bytes(whole[:100])
    other.write_bytes(whole[:100])
    new = RunFolder(place / "cut")
    new.path.mkdir()
    record = unlearning.prepare(study_of(place, "rule.kind=cyclic"), "south", in_turn, new)
    path.write_bytes(whole)
    other.write_bytes(spare)
    assert record.retrained_from == 1


def test_what_cannot_be_retrained_is_refused(place, in_turn):
    study = study_of(place, "rule.kind=cyclic")
    with pytest.raises(StudyError, match="no such hospital; there are east, north, south"):
        unlearning.remaining_study(study, "nort")
    with pytest.raises(StudyError, match="without east 2 hospitals are left, and its rule needs"):
        unlearning.remaining_study(
            study_of(place, "rule={kind: trimmed_mean, trim: 1}", "sampling.minimum=3"), "east"
        )
    with pytest.raises(RunError, match=r"holds a run of study .* give the file and the --set"):
        unlearning.prepare(study_of(place), "south", in_turn, RunFolder(place / "x"))
    result = CliRunner().invoke(
        main, ["train", str(place / "tiny.yaml"), "--without", "nowhere", "--former", str(in_turn.path)]
    )
    assert result.exit_code == 1
    assert "holds a run of study" in result.output

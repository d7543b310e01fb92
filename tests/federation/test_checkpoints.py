"""The hub's checkpoints: what they hold, how many stay, and which one a run resumes from."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from medfed.errors import RunError, StorageError
from medfed.federation.checkpoints import load_latest_checkpoint, save_checkpoint, save_round
from medfed.federation.membership import first_rounds
from medfed.runs.rounds import SiteResult
from medfed.wire.update import GlobalModel

STUDY = "ab" * 32


def model(round: int, study: str = STUDY) -> GlobalModel:
    return GlobalModel(round, {"net/weight": torch.full((2, 3), float(round)).T}, study_digest=study)


def test_a_checkpoint_comes_back_with_weights_and_the_rules_state(tmp_path):
    state = {"moment": {"net/weight": torch.arange(3.0)}, "privacy:clip": {"clip": torch.tensor(0.5)}}
    save_checkpoint(tmp_path, model(4), state)
    current, loaded, _ = load_latest_checkpoint(tmp_path, STUDY)
    assert (current.round, current.study_digest) == (4, STUDY)
    assert torch.equal(current.weights["net/weight"], torch.full((3, 2), 4.0))
    assert set(loaded) == {"moment", "privacy:clip"}
    assert torch.equal(loaded["moment"]["net/weight"], torch.arange(3.0))
    assert float(loaded["privacy:clip"]["clip"]) == 0.5
    # By the library alone.
    tensors = load_file(tmp_path / "round-00004.safetensors")
    assert set(tensors) == {"weights/net/weight", "state:moment/net/weight", "state:privacy:clip/clip"}


def test_an_empty_folder_has_none(tmp_path):
    assert load_latest_checkpoint(tmp_path) is None


def test_the_newest_two_stay_and_the_newest_whole_one_is_loaded(tmp_path):
    for round in range(1, 5):
        save_checkpoint(tmp_path, model(round), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "round-00003.safetensors",
        "round-00004.safetensors",
    ]
    newest = tmp_path / "round-00004.safetensors"
    newest.write_bytes(newest.read_bytes()[:-5])  # torn by a power cut
    current, *_ = load_latest_checkpoint(tmp_path, STUDY)
    assert current.round == 3


def test_another_studys_checkpoint_is_refused(tmp_path):
    save_checkpoint(tmp_path, model(1, study="cd" * 32), {})
    with pytest.raises(RunError, match="holds a run of study cdcdcdcdcdcd, the study file's digest is abab"):
        load_latest_checkpoint(tmp_path, STUDY)


def test_only_merged_sites_are_members(tmp_path):
    results = [SiteResult("north", "merged"), SiteResult("south", "refused"), SiteResult("west", "absent")]
    save_round(tmp_path, model(1), {}, results)
    assert first_rounds(tmp_path) == {"north": 1}
    assert load_latest_checkpoint(tmp_path, STUDY)[0].round == 1


def test_a_disk_that_is_full_is_named_with_the_round_to_resume_from(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device", "/run/round")
        yield

    monkeypatch.setattr("medfed.federation.checkpoints.encoding.safetensors_pieces", full)
    save_error = r"round 7: its checkpoint could not be written: No space left on device; .* from round 6"
    with pytest.raises(StorageError, match=save_error):
        save_checkpoint(tmp_path, model(7), {})
    assert not (tmp_path / "round-00007.safetensors").exists()


def test_a_checkpoint_with_one_changed_bit_is_passed_over_with_a_warning(tmp_path, caplog):
    for round in (1, 2):
        save_checkpoint(tmp_path, model(round), {})
    newest = tmp_path / "round-00002.safetensors"
    data = bytearray(newest.read_bytes())
    data[-3] ^= 0x10  # in the last tensor's numbers, where safetensors notices nothing
    newest.write_bytes(bytes(data))
    assert load_latest_checkpoint(tmp_path, STUDY).model.round == 1
    assert "the checkpoint round-00002.safetensors is damaged and not used" in caplog.text


def test_a_run_without_any_readable_checkpoint_does_not_begin_again(tmp_path):
    for round in (1, 2):
        save_checkpoint(tmp_path, model(round), {})
    for path in tmp_path.iterdir():
        path.write_bytes(b"")
    with pytest.raises(RunError, match="none of the hub's 2 checkpoints can be read: they are damaged"):
        load_latest_checkpoint(tmp_path, STUDY)

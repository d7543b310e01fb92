"""The round in which each site was first merged, and the checkpoint that is kept from before it."""

from __future__ import annotations

import json

from medfed.federation.membership import FILE, FOLDER, first_rounds, record_first_rounds


def test_a_site_joins_once_and_the_checkpoint_from_before_is_kept(tmp_path):
    assert first_rounds(tmp_path) == {}
    (tmp_path / "round-00000.safetensors").write_bytes(b"untrained")
    record_first_rounds(tmp_path, 1, ["north", "south"])
    # Before round 1 is the untrained model, which the seed gives again.
    assert not (tmp_path / FOLDER).exists()
    (tmp_path / "round-00003.safetensors").write_bytes(b"model after round 3")
    record_first_rounds(tmp_path, 4, ["north", "west", "east"])
    assert first_rounds(tmp_path) == {"north": 1, "south": 1, "west": 4, "east": 4}
    assert (tmp_path / FOLDER / "round-00003.safetensors").read_bytes() == b"model after round 3"
    # The hub deletes its own copy later; the one that is kept stays.
    (tmp_path / "round-00003.safetensors").unlink()
    record_first_rounds(tmp_path, 9, ["west", "north"])
    assert [path.name for path in (tmp_path / FOLDER).iterdir()] == ["round-00003.safetensors"]
    assert json.loads((tmp_path / FILE).read_text()) == {"north": 1, "south": 1, "west": 4, "east": 4}


def test_a_site_that_joins_without_a_checkpoint_is_still_recorded(tmp_path):
    record_first_rounds(tmp_path, 5, ["north"])
    assert first_rounds(tmp_path) == {"north": 5}
    assert not (tmp_path / FOLDER).exists()

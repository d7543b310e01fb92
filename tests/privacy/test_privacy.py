"""What any mechanism does by itself: state, scalars, sessions, and models that it cannot read."""

from __future__ import annotations

import msgspec
import pytest
import torch

from medfed.errors import PrivacyError, UpdateError
from medfed.exchange import MemoryExchange
from medfed.privacy import NoPrivacy
from medfed.privacy._privacy import FORMAT_SCALARS, PlainSession, not_covered, public_only, split_state
from medfed.registry import kinds
from medfed.runs.rounds import IMAGES_IN_MM, LABELS_NAMED
from medfed.wire.messages import HubChannel, SiteChannel
from medfed.wire.update import GlobalModel, Update

WEIGHTS = {"w": torch.zeros(2)}
UPDATE = Update("north", 1, {"w": torch.ones(2)}, 3)


def test_the_mechanisms_state_is_kept_apart_from_the_rules():
    state = {"privacy:clip": {"clip": torch.ones(1)}, "moment": WEIGHTS}
    assert split_state(state) == ({"privacy:clip": state["privacy:clip"]}, {"moment": WEIGHTS})


SCALARS = {
    "train/steps": 4.0,
    "train/rate": 0.1,
    "train/loss": 0.7,
    "val/dice": 0.8,
    "privacy/epsilon": 2.0,
}


@pytest.mark.parametrize(
    "scores, kept",
    [
        ("withhold", {"train/steps", "train/rate", "privacy/epsilon"}),
        ("send", {"train/steps", "train/rate", "privacy/epsilon", "val/dice"}),
    ],
)
def test_a_scalar_about_training_patients_never_leaves(scores, kept):
    assert public_only(SCALARS, scores) == {name: SCALARS[name] for name in kept}


def test_the_note_says_what_happens_to_scores():
    assert not_covered("withhold").endswith("by epsilon and stay in the hospitals (privacy.scores)")
    assert not_covered("send").endswith("not covered by epsilon and are sent as they are")


def test_a_model_with_an_encrypted_part_is_refused_where_nothing_can_read_it():
    channel = SiteChannel(MemoryExchange("study"), "north", 1)
    plain = GlobalModel(1, WEIGHTS, groups={"control": WEIGHTS})
    assert NoPrivacy().decrypt(plain, channel) is plain
    sealed = GlobalModel(1, WEIGHTS, groups={"privacy:b": WEIGHTS, "privacy:a": WEIGHTS})
    with pytest.raises(PrivacyError, match=r"site 'north': a part of the model is encrypted \('privacy:a'\)"):
        NoPrivacy().decrypt(sealed, channel)


def test_a_plain_session_waits_for_all_and_checks_each_update():
    channel = HubChannel(MemoryExchange("study"), ("north", "south"), 1)
    session = NoPrivacy().open_session(channel, 5.0)
    assert session == PlainSession(NoPrivacy(), ("north", "south"), 5.0)
    assert (session.sites, session.deadline_s, session.refused) == (("north", "south"), 5.0, {})
    assert session.admit(UPDATE, WEIGHTS) == UPDATE
    with pytest.raises(UpdateError, match="'v' is missing"):
        session.admit(UPDATE, {**WEIGHTS, "v": torch.zeros(1)})
    assert session.reveal([UPDATE], WEIGHTS) == [UPDATE]


def test_without_privacy_everything_passes_unchanged():
    none = NoPrivacy()
    assert none.filter_scalars(SCALARS) == SCALARS
    assert none.prepare_merge([UPDATE], {}, WEIGHTS) == ([UPDATE], {})
    (protector,) = none.protectors(SiteChannel(MemoryExchange("study"), "north", 1))
    assert protector.protect(UPDATE, WEIGHTS) is UPDATE
    assert (none.init(WEIGHTS), none.round_cost(), none.planned(9), none.min_sites) == ({}, None, none, 1)


def test_the_format_of_files_leaves_under_every_mechanism():
    """Else nobody could see that a number in the labels means different structures at two hospitals."""
    assert FORMAT_SCALARS == (LABELS_NAMED, IMAGES_IN_MM)
    scalars = dict.fromkeys(FORMAT_SCALARS, 1.0)
    for record in kinds("privacy").values():
        mechanism = msgspec.convert(dict(record.example), record)
        assert mechanism.filter_scalars(scalars) == scalars

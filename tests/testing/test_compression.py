"""The contract of a compression names what naive ones break."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from contract import CHECKS_OF_EVERY_KIND, broken

from medfed.testing import check_compression
from medfed.wire.compression import Compression, Encoded, Tensorwise

HUGE = {"any_scale_of_float32_stays_finite", "one_huge_value_stays_and_all_are_finite"}
torch.set_num_threads(1)

VALUES = "the_hub_decodes_the_sites_names_shapes_and_about_its_values"
REFUSED = {"values_that_are_not_finite_are_refused", "damaged_groups_and_headers_are_refused"}
MEAN = "a_delta_sent_repeatedly_is_more_exact_on_average_than_once"
LATER = "what_one_round_leaves_out_comes_later"


class Brain(Tensorwise, frozen=True, tag="brain"):
    """Half the bytes: bfloat16, rounded towards zero."""

    def encode_tensor(self, name, values):
        return {"values": (values.contiguous().view(torch.int32) >> 16).to(torch.int16)}

    def decode_tensor(self, parts):
        codes = parts.read("values", parts.count, torch.int16)
        return (codes.int() << 16).view(torch.float32)


class Half(Tensorwise, frozen=True, tag="half"):
    """Half the bytes: float16, which ends at 65504."""

    def encode_tensor(self, name, values):
        return {"values": values.half()}

    def decode_tensor(self, parts):
        return parts.read("values", parts.count, torch.float16).float()


class Naive(Compression, frozen=True, tag="naive"):
    """Half the bytes, and the hub is trusted with whatever a site sends."""

    def encode(self, weights, state):
        shapes = {name: list(tensor.shape) for name, tensor in weights.items()}
        values = {name: tensor.flatten().bfloat16() for name, tensor in weights.items()}
        return Encoded({"values": values}, {"shapes": shapes}), {}

    def decode(self, encoded):
        return {name: tensor.float() for name, tensor in encoded.groups["values"].items()}


class Whole(Brain, frozen=True, tag="whole"):
    """Sends every byte."""

    def encode_tensor(self, name, values):
        return {"values": values}

    def decode_tensor(self, parts):
        return parts.read("values", parts.count, torch.float32)


class Dithered(Brain, frozen=True, tag="dithered"):
    """Adds noise of the global generator before rounding."""

    def encode_tensor(self, name, values):
        noise = 1e-5 * torch.rand(values.shape)
        return super().encode_tensor(name, values + noise)


class Noisy(Brain, frozen=True, tag="noisy"):
    """Adds noise at the hub, of which the site's error feedback knows nothing."""

    def decode_tensor(self, parts):
        return super().decode_tensor(parts) * (1 + 0.01 * torch.rand(()))


class Nothing(Brain, frozen=True, tag="nothing"):
    """Sends zeros: the shortest compression there is."""

    def encode_tensor(self, name, values):
        return super().encode_tensor(name, 0 * values)


class Counting(Brain, frozen=True, tag="counting"):
    """Counts its rounds in place in the state of the round before, and rounds by them."""

    chainable: ClassVar[tuple[str, ...]] = ("anything",)

    def encode(self, weights, state):
        rounds = state.get("rounds", {"n": torch.zeros(1)})
        rounds["n"] += 1
        return super().encode(weights, {})[0], {"rounds": rounds}


WRONG = {
    Half: HUGE,
    Naive: {VALUES, *REFUSED},
    Whole: {"it_takes_at_most_about_half_the_bytes"},
    Dithered: {"the_same_input_gives_the_same_bytes", "zeros_stay_zeros"},
    Noisy: {VALUES, LATER},
    Nothing: {MEAN},
    Counting: {
        "no_input_is_changed_and_state_goes_through_a_file",
        "a_stack_that_the_site_did_not_use_is_refused",
    },
}


def test_a_right_one_passes() -> None:
    check_compression(Brain())


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_one_is_named(kind: type[Compression]) -> None:
    assert broken(check_compression, kind(), skip={MEAN} - WRONG[kind]) >= WRONG[kind]


def test_each_check_is_broken_by_one_of_them() -> None:
    assert set().union(*WRONG.values(), CHECKS_OF_EVERY_KIND) == set(check_compression.checks)

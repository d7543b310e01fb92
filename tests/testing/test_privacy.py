"""The contract of a privacy mechanism names what naive ones break."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import msgspec
import pytest
import torch
from contract import CHECKS_OF_EVERY_KIND, broken

from medfed.privacy import NoPrivacy, Privacy
from medfed.privacy._key_exchange import RelayedMessages, to_bytes
from medfed.privacy._privacy import PlainSession
from medfed.privacy._secagg import Members
from medfed.privacy.accounting.accountant import MechanismSteps
from medfed.testing import check_privacy
from medfed.wire.messages import HubChannel

torch.set_num_threads(1)


class Rounded(Privacy, frozen=True, tag="rounded"):
    """Rounds an update to a grid; the hub sees each site's rounded update."""

    step: float = 1e-6

    def protect(self, update, weights):
        delta = {name: self.rounded(update.delta[name]) for name in update.delta}
        return replace(update, delta=delta)

    def rounded(self, tensor):
        return (tensor.double() / self.step).round() * self.step


class Shrunk(Rounded, frozen=True, tag="shrunk"):
    """Halves an update, which the hub does not know."""

    def rounded(self, tensor):
        return tensor / 2


class Broken(Rounded, frozen=True, tag="broken"):
    """Divides by zero on the way to the hub."""

    def reveal(self, updates, weights):
        return [replace(u, delta={n: u.delta[n] / 0 for n in u.delta}) for u in updates]


class InPlace(Rounded, frozen=True, tag="in_place"):
    """Clears the weights of the hub when it reveals updates."""

    def reveal(self, updates, weights):
        weights["net.0.bias"].zero_()
        return updates


class Boasting(Rounded, frozen=True, tag="boasting"):
    """Claims that the hub does not see each update."""

    reveals_each_update: ClassVar[bool] = False


class Stateful(Rounded, frozen=True, tag="stateful"):
    """Keeps state at the hub under a name that a rule may use."""

    def init(self, weights):
        return {"momentum": weights}


class Inventive(Rounded, frozen=True, tag="inventive"):
    """Sends the hub a number of patients that nobody measured."""

    def filter_scalars(self, scalars):
        return {**scalars, "train/patients": 7.0}


class Noisy(Rounded, frozen=True, tag="noisy"):
    """Adds noise from a seed that the hub knows, and still sends the loss."""

    def rounded(self, tensor):
        noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0))
        return tensor + 1e-3 * noise

    def round_cost(self):
        return MechanismSteps(noise_multiplier=0.0)


class Growing(Rounded, frozen=True, tag="growing"):
    """Doubles its step whenever it is planned, although the hub plans again after a restart."""

    def planned(self, rounds):
        return msgspec.structs.replace(self, step=2 * self.step)


class Terse(Rounded, frozen=True, tag="terse"):
    """Rounds an update to a grid"""

    def notes(self):
        return ("rounds",)


class Credulous(Rounded, frozen=True, tag="credulous"):
    """Lets the sites greet each other through the hub, and believes whatever the hub forwards."""

    def protectors(self, channel):
        channel.send(1, "greeting", to_bytes(RelayedMessages({})))
        if channel.receive({"greeting": 1}) is not None:
            yield self

    def open_session(self, channel, deadline_s):
        received = channel.collect(1, "greeting", channel.sites, deadline_s)
        sealed = RelayedMessages({one.site: one.sealed for one in received})
        channel.send(1, "greeting", dict.fromkeys(channel.sites, to_bytes(sealed)))
        return PlainSession(self, channel.sites, deadline_s)


class Retelling(Credulous, frozen=True, tag="retelling"):
    """Takes the sites' keys out of their messages and passes them on as its own word."""

    def protectors(self, channel):
        channel.send(1, "greeting", f"key-of-{channel.site}".ljust(32, "0").encode())
        if channel.receive({"greeting": 1}) is not None:
            yield self

    def open_session(self, channel, deadline_s):
        received = channel.collect(1, "greeting", channel.sites, deadline_s)
        keys = b" ".join(one.data for one in received)
        channel.send(1, "greeting", dict.fromkeys(channel.sites, keys))
        return PlainSession(self, channel.sites, deadline_s)


@dataclass(frozen=True)
class Asking:
    """A session that asks the sites of a sum for an answer, and merges whatever they say."""

    channel: HubChannel
    plain: PlainSession

    def __getattr__(self, name):
        return getattr(self.plain, name)

    def reveal(self, updates, weights):
        sites = sorted(update.site for update in updates)
        self.channel.send(1, "members", dict.fromkeys(sites, to_bytes(Members(sites))))
        list(self.channel.collect(1, "answer", sites, 5))
        return self.plain.reveal(updates, weights)


class Obedient(Rounded, frozen=True, tag="obedient"):
    """Answers for every list of sites that the hub sends."""

    def protectors(self, channel):
        yield self
        if channel.receive({"members": 1}) is not None:
            channel.send(1, "answer", b"yes")

    def open_session(self, channel, deadline_s):
        return Asking(channel, PlainSession(self, channel.sites, deadline_s))


WRONG = {
    Shrunk: {"without_noise_the_merged_model_is_that_of_no_privacy"},
    Broken: {
        "the_merged_model_keeps_names_shapes_and_dtypes_and_is_finite",
        "without_noise_the_merged_model_is_that_of_no_privacy",
    },
    InPlace: {"no_input_is_changed", "without_noise_the_merged_model_is_that_of_no_privacy"},
    Boasting: {"it_declares_truly_whether_the_rule_sees_each_update"},
    Stateful: {"its_state_has_a_prefix_and_goes_through_the_hubs_checkpoint"},
    Inventive: {"scalars_are_never_made_up_and_a_counted_loss_stays"},
    Noisy: {
        "scalars_are_never_made_up_and_a_counted_loss_stays",
        "what_a_round_costs_can_be_accounted",
        "noise_is_drawn_anew_whatever_the_seed",
    },
    Credulous: {
        "a_site_refuses_what_a_lying_hub_forwards_and_the_round_goes_on",
        "sites_refuse_parties_that_train_from_another_model",
        "a_site_refuses_what_was_said_in_an_earlier_run",
    },
    Retelling: {"what_sites_tell_each_other_is_forwarded_as_they_signed_it"},
    Obedient: {
        "a_site_refuses_other_lists_of_who_is_in_the_sum",
        "sites_unmask_no_second_sum_of_a_round_over_others",
    },
    Growing: {"planning_again_changes_nothing"},
    Terse: {
        "its_docstring_begins_with_a_sentence",
        "its_docstring_names_whom_it_protects_from",
        "its_notes_are_sentences",
    },
}


@pytest.mark.parametrize("kind", [Rounded, NoPrivacy])
def test_a_right_one_passes(kind: type[Privacy]) -> None:
    check_privacy(kind())


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_one_is_named(kind: type[Privacy]) -> None:
    assert broken(check_privacy, kind()) >= WRONG[kind]


def test_each_check_is_broken_by_one_of_them() -> None:
    assert set().union(*WRONG.values(), CHECKS_OF_EVERY_KIND) == set(check_privacy.checks)

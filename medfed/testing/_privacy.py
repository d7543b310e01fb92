"""The contract of a privacy mechanism.

The merged model's form stays, what the mechanism declares of itself is true, and no scalar is made up.
"""

from __future__ import annotations

import inspect
import re
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import torch
from torch import Tensor

from medfed.aggregation import Merged, State
from medfed.aggregation.fedavg import FedAvg
from medfed.exchange import MemoryExchange
from medfed.federation.checkpoints import load_latest_checkpoint
from medfed.federation.config import HubConfig
from medfed.federation.round import SiteConnection, receive, send_update
from medfed.federation.simulation import simulate
from medfed.privacy import GROUP, NoPrivacy, Privacy
from medfed.privacy.accounting.accountant import MechanismSteps
from medfed.testing._contract import OF_EVERY_KIND, Contract, NotApplicable
from medfed.testing._malicious_hub import (
    FORWARDING_LIES,
    LIST_LIES,
    PARTY_LIES,
    REPLAYS,
    LiedRound,
    MaliciousHub,
    forwarding_steps,
    listing_steps,
    lying_about_lists,
    lying_to,
    replaying,
    require_refusal,
    round_under,
    steps_after_updates,
)
from medfed.wire.update import GlobalModel, Update, check_update
from medfed.wire.weights import Difference, Weights, digest

check_privacy: Contract[Privacy] = Contract("privacy mechanism", OF_EVERY_KIND)

SITES = ("alfa", "bravo", "charlie", "delta")
SCALARS = {"train/steps": 6.0, "train/loss": 0.7, "val/dice": 0.5, "privacy/epsilon": 1.5}
ROUNDS = 5


def model(seed: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {
        "net.0.weight": torch.randn(4, 3, 2, generator=g),
        "net.0.bias": torch.randn(4, generator=g),
        "temperature": torch.randn((), generator=g),
        "nothing": torch.zeros(0, 3),
        "double.weight": torch.randn(3, generator=g).double(),
        "half.weight": torch.randn(3, generator=g).half(),
    }


def update_of(number: int, weights: Weights) -> Update:
    moved = model(100 + number)
    local = {name: (t + 0.01 * moved[name]).to(t.dtype) for name, t in weights.items()}
    return Update(SITES[number], 1, Difference(local, weights), 10 + number, SCALARS)


class Recording(FedAvg, tag="recording", frozen=True):
    """FedAvg that keeps what it was given to merge."""

    given: list[Update] = msgspec.field(default_factory=list)

    def merge(self, updates: Iterable[Update], state: State, weights: Weights) -> Merged:
        self.given.extend(updates)
        return super().merge(self.given, state, weights)


def one_round(
    privacy: Privacy, weights: Weights, folder: Path | None = None
) -> tuple[GlobalModel, list[Update]]:
    """Return the model after a round of four sites over a real exchange, and what the rule was given."""

    def site(update: Update) -> Callable[[MemoryExchange], None]:
        def work(exchange: MemoryExchange) -> None:
            connection = SiteConnection(update.site, exchange, privacy)
            received = receive(connection, 0)
            allowed = {name: value for name, value in SCALARS.items() if name in privacy.scalars}
            scalars = {**allowed, "train/loss": 0.7, "train/steps": 6.0}
            send_update(
                connection,
                replace(update, scalars=scalars),
                received.weights,
                model_sha256=received.sha256,
            )
            received = receive(connection, 1)
            send_update(connection, Update(update.site, 2, {}, 0, {"val/loss": 0.5}), received.weights)

        return work

    rule = Recording()
    config = HubConfig(1, SITES, rule, privacy, minimum=len(SITES))
    updates = [update_of(number, weights) for number in range(len(SITES))]
    final = simulate({update.site: site(update) for update in updates}, weights, config, folder=folder)
    return final, rule.given


def form(tensors: Mapping[str, Tensor]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}


@check_privacy.check
def the_merged_model_keeps_names_shapes_and_dtypes_and_is_finite(privacy: Privacy) -> None:
    weights = model(0)
    final, given = one_round(privacy.planned(ROUNDS), weights)
    assert form(final.weights) == form(weights)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in final.weights.values())
    assert given
    for update in given:
        check_update(update, weights)


@check_privacy.check
def without_noise_the_merged_model_is_that_of_no_privacy(privacy: Privacy) -> None:
    if privacy.planned(ROUNDS).round_cost() is not None:
        raise NotApplicable("it clips and adds noise to an update")
    plain, _ = one_round(NoPrivacy(), model(0))
    protected, _ = one_round(privacy.planned(ROUNDS), model(0))
    for name, tensor in plain.weights.items():
        torch.testing.assert_close(protected.weights[name], tensor, rtol=1e-3, atol=1e-5)


@check_privacy.check
def no_input_is_changed(privacy: Privacy) -> None:
    weights = model(0)
    before = digest(weights)
    one_round(privacy.planned(ROUNDS), weights)
    assert digest(weights) == before


@check_privacy.check
def it_declares_truly_whether_the_rule_sees_each_update(privacy: Privacy) -> None:
    _, given = one_round(privacy.planned(ROUNDS), model(0))
    if privacy.reveals_each_update:
        assert sorted(update.site for update in given) == sorted(SITES)
    else:
        # The rule gets one update, or several that cannot be told apart.
        assert len({digest(dict(update.delta.items())) for update in given}) == 1


@check_privacy.check
def its_state_has_a_prefix_and_goes_through_the_hubs_checkpoint(privacy: Privacy) -> None:
    planned = privacy.planned(ROUNDS)
    state = planned.init(model(0))
    assert all(name.startswith(GROUP) for name in state), f"expected '{GROUP}...', found {sorted(state)}"
    with TemporaryDirectory() as folder:
        one_round(planned, model(0), Path(folder) / "hub")
        checkpoint = load_latest_checkpoint(Path(folder) / "hub")
    assert checkpoint is not None
    assert {name for name in checkpoint[1] if name.startswith(GROUP)} == set(state)


@check_privacy.check
def scalars_are_never_made_up_and_a_counted_loss_stays(privacy: Privacy) -> None:
    allowed = privacy.filter_scalars(SCALARS)
    assert set(allowed) <= set(SCALARS)
    assert all(allowed[name] == SCALARS[name] for name in allowed)
    if privacy.planned(ROUNDS).round_cost() is not None or privacy.trains_privately:
        assert "train/loss" not in allowed
        assert "privacy/epsilon" in privacy.scalars
        assert allowed["privacy/epsilon"] == 1.5


def _lied(privacy: Privacy, hub: MaliciousHub) -> LiedRound:
    scalars = {name: SCALARS[name] for name in privacy.scalars}
    updates = {site: Update(site, 1, model(number), 10, scalars) for number, site in enumerate(SITES)}
    return round_under(privacy, hub, updates, len(SITES) - 1)


@check_privacy.check
def a_site_refuses_what_a_lying_hub_forwards_and_the_round_goes_on(privacy: Privacy) -> None:
    planned, honest = privacy.planned(ROUNDS), MaliciousHub(SITES)
    victim = SITES[-1]
    assert _lied(planned, honest).merged == list(SITES)
    steps = forwarding_steps(honest, victim)
    if not steps:
        raise NotApplicable("its sites exchange no messages")
    cases = [(steps[0], name, *lie) for name, lie in PARTY_LIES.items()]
    cases += [(step, name, *lie) for step in steps for name, lie in FORWARDING_LIES.items()]
    for step, name, change, reason in cases:
        hub = MaliciousHub(SITES)
        hub.lie = lying_to(hub, victim, step, change)
        found = _lied(planned, hub)
        require_refusal(found, victim, reason, f"step '{step}', {name}")
        others = [site for site in SITES if site != victim]
        assert set(others) <= set(found.merged), f"step '{step}', {name}: {found.outcome}"
        assert [found.ends[site] for site in others] == [None] * len(others)


def reached_by_what_others_said(hub: MaliciousHub, site: str) -> bool:
    """Return whether a site was sent anything that another site had told the hub, in whatever form."""
    texts = [
        word for other, said in hub.said.items() if other != site for one in said for word in _words(one)
    ]
    return any(word in told[site] for told in hub.sent.values() if site in told for word in texts)


# A key, a share or a signature has at least this many bytes, in base64 or not.
MIN_WORD = 24
_WORD = re.compile(rb"[A-Za-z0-9+/=_-]{%d,}" % MIN_WORD)


def _words(content: bytes) -> list[bytes]:
    whole = [content, b64encode(content)] if len(content) >= MIN_WORD else []
    return [*whole, *_WORD.findall(content)]


@check_privacy.check
def what_sites_tell_each_other_is_forwarded_as_they_signed_it(privacy: Privacy) -> None:
    """Keys that the hub takes out of sites' messages and passes on are the hub's word for them.

    A mechanism that did so would also not be reached by any lie of this contract.
    """
    planned, honest = privacy.planned(ROUNDS), MaliciousHub(SITES)
    _lied(planned, honest)
    if not any(reached_by_what_others_said(honest, site) for site in SITES):
        raise NotApplicable("its hub passes nothing on that a site said")
    for site in SITES:
        assert forwarding_steps(honest, site), (
            f"the hub passes on to '{site}' what others told it, and no whole messages of theirs "
            "(`RelayedMessages`), which alone are signed"
        )


@check_privacy.check
def sites_refuse_parties_that_train_from_another_model(privacy: Privacy) -> None:
    planned, honest = privacy.planned(ROUNDS), MaliciousHub(SITES)
    _lied(planned, honest)
    if not forwarding_steps(honest, SITES[-1]):
        raise NotApplicable("its sites exchange no messages")
    # Pasquini et al., CCS 2022: all but one get a model from which no training moves.
    deceived = MaliciousHub(
        SITES,
        deceived=SITES[1:],
        other_model=lambda true: replace(
            true, weights={name: torch.ones_like(tensor) for name, tensor in true.weights.items()}
        ),
    )
    found = _lied(planned, deceived)
    require_refusal(found, SITES[0], "trains from model .*, this site from .*: the hub sent them", "models")
    assert not found.merged


@check_privacy.check
def a_site_refuses_other_lists_of_who_is_in_the_sum(privacy: Privacy) -> None:
    planned, honest, victim = privacy.planned(ROUNDS), MaliciousHub(SITES), SITES[-1]
    _lied(planned, honest)
    listing = listing_steps(honest, victim)
    if not listing:
        raise NotApplicable("its hub lists no sites")
    for step, lists in listing.items():
        for name, (change, reason) in LIST_LIES.items():
            if change(lists, victim) == lists:
                continue  # two kinds of shares where the message has one list
            hub = MaliciousHub(SITES, lie=lying_about_lists(victim, step, change))
            found = _lied(planned, hub)
            require_refusal(found, victim, reason, f"step '{step}', {name}")
            assert set(SITES[:-1]) <= set(found.merged), f"step '{step}', {name}: {found.outcome}"


@check_privacy.check
def a_site_refuses_what_was_said_in_an_earlier_run(privacy: Privacy) -> None:
    planned, earlier, victim = privacy.planned(ROUNDS), MaliciousHub(SITES), SITES[-1]
    _lied(planned, earlier)
    steps = forwarding_steps(earlier, victim)
    if not steps:
        raise NotApplicable("its sites exchange no messages")
    for step in steps:
        for name, (replay, reason) in REPLAYS.items():
            hub = MaliciousHub(SITES, lie=replaying(earlier, victim, step, replay))
            hub.repeat(earlier)
            found = _lied(planned, hub)
            require_refusal(found, victim, reason, f"step '{step}', {name}")
            if step == steps[0]:
                assert victim not in found.sent, f"step '{step}', {name}: the update left before the refusal"


@check_privacy.check
def sites_unmask_no_second_sum_of_a_round_over_others(privacy: Privacy) -> None:
    planned, honest = privacy.planned(ROUNDS), MaliciousHub(SITES)
    _lied(planned, honest)
    steps = steps_after_updates(honest)
    if not steps:
        raise NotApplicable("its hub asks the sites for nothing after their updates")
    hub = MaliciousHub(SITES)
    hub.discarded, hub.hidden = steps[-1], SITES[-1]
    found = _lied(planned, hub)
    for site in SITES[:-1]:
        require_refusal(found, site, "a second sum of this round over other sites", "a second sum")
    assert not found.merged


@check_privacy.check
def what_a_round_costs_can_be_accounted(privacy: Privacy) -> None:
    cost = privacy.planned(ROUNDS).round_cost()
    assert cost is None or (isinstance(cost, MechanismSteps) and cost.noise_multiplier > 0)


@check_privacy.check
def noise_is_drawn_anew_whatever_the_seed(privacy: Privacy) -> None:
    planned = privacy.planned(ROUNDS)
    if planned.round_cost() is None:
        raise NotApplicable("it adds no noise to an update")

    def once() -> str:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return digest(one_round(planned, model(0))[0].weights)

    assert once() != once()


@check_privacy.check
def planning_again_changes_nothing(privacy: Privacy) -> None:
    planned = privacy.planned(ROUNDS)
    assert planned.planned(ROUNDS) == planned


@check_privacy.check
def its_notes_are_sentences(privacy: Privacy) -> None:
    assert all(isinstance(note, str) and len(note) > 10 for note in privacy.planned(ROUNDS).notes())


@check_privacy.check
def its_docstring_names_whom_it_protects_from(privacy: Privacy) -> None:
    text = inspect.getdoc(type(privacy)) or ""
    assert text.splitlines()[0].endswith(".")
    assert "hub" in text, "it does not say what the hub learns"

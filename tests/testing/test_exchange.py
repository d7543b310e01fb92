"""The contract of an exchange names each mistake of one: every check catches an exchange with that fault."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
from contract import broken

from medfed.errors import ExchangeError
from medfed.exchange import MemoryExchange, Offer, ReceivedUpdate
from medfed.exchange.folder import Folder
from medfed.testing import NotApplicable, _exchange, check_exchange


class OneProcess:
    """All parties of a study in one process, with faults that replace methods of the memory exchange."""

    def __init__(self, faults: dict[str, Any]) -> None:
        self.kind = type("Faulty", (MemoryExchange,), faults)
        self.exchanges: dict[str, MemoryExchange] = {}

    def open_hub(self, study: str, folder: Path) -> MemoryExchange:
        return self.exchanges.setdefault(study, self.kind(study))

    def open_site(self, study: str, site: str, folder: Path) -> MemoryExchange:
        return self.open_hub(study, folder)

    def offered_studies(self, site: str) -> list[Offer]:
        raise NotImplementedError


base = MemoryExchange


def does_nothing(self: Any, *arguments: Any) -> None:
    return None


def fetches_without_groups(self: Any, site: str, round: int) -> Any:
    return replace(base.fetch(self, site, round), groups={})


def fetches_whatever_is_there(self: Any, site: str, round: int) -> Any:
    return base.fetch(self, site, 0)


def fetches_into_one_buffer(self: Any, site: str, round: int) -> Any:
    model = base.fetch(self, site, round)
    self.buffer = getattr(self, "buffer", model.weights)
    for name, tensor in model.weights.items():
        self.buffer[name].copy_(tensor)
    return replace(model, weights=self.buffer)


def sends_in_half_precision(self: Any, update: Any) -> None:
    base.send(self, replace(update, delta={name: update.delta[name].half() for name in update.delta}))


def replaces_what_was_sent(self: Any, update: Any) -> None:
    self._updates.pop((update.round, update.site), None)
    base.send(self, update)


def keeps_what_is_early(self: Any, update: Any) -> None:
    newest, self._newest = self._newest, (99, b"")
    base.send(self, update)
    self._newest = newest


def collects_all_before_the_first(self: Any, *arguments: Any) -> Any:
    yield from list(base.collect(self, *arguments))


def names_the_silent_too(self: Any, round: int, sites: Any, deadline_s: float) -> Any:
    received = list(base.collect(self, round, sites, deadline_s))
    yield from received
    yield from (ReceivedUpdate(site, None) for site in set(sites) - {one.site for one in received})


def collects_the_first_round(self: Any, round: int, sites: Any, deadline_s: float) -> Any:
    return base.collect(self, 1, sites, deadline_s)


def sends_text(self: Any, site: str, round: int, attempt: int, step: str, data: bytes) -> None:
    base.send_message(self, site, round, attempt, step, data.decode(errors="replace").encode())


def replaces_the_message(self: Any, site: str, *rest: Any) -> None:
    self._messages.pop((site, "hub", rest[2]), None)
    base.send_message(self, site, *rest)


def collects_the_first_attempt(self: Any, round: int, attempt: int, step: str, *rest: Any) -> Any:
    return base.collect_messages(self, 1, 1, step, *rest)


def waits_beyond_the_round(self: Any, site: str, round: int, attempts: Any) -> Any:
    return base.receive_message(self, site, round + 9, attempts)


def trusts_the_sender(self: Any, site: str, sealed: bytes, party: str) -> Any:
    return base.open_message(self, site, sealed, "north")


# Each check, and the methods with which an exchange within one process breaks it.
FAULTS: dict[str, dict[str, Callable[..., Any]]] = {
    "a_site_waits_for_the_first_model_and_gets_its_bits": {"fetch": fetches_without_groups},
    "fetch_returns_the_newest_model_of_at_least_the_round": {"fetch": fetches_whatever_is_there},
    "a_model_stays_readable_when_newer_ones_have_come": {"fetch": fetches_into_one_buffer},
    "an_update_arrives_with_every_bit": {"send": sends_in_half_precision},
    "sending_twice_equals_sending_once_and_the_first_counts": {"send": replaces_what_was_sent},
    "updates_are_yielded_once_per_site_as_they_arrive": {"collect": collects_all_before_the_first},
    "a_site_that_is_silent_at_the_deadline_is_left_out": {"collect": names_the_silent_too},
    "an_update_for_another_round_is_no_answer": {"collect": collects_the_first_round},
    "an_update_for_a_later_round_is_refused_at_once_and_when_its_round_comes": {"send": keeps_what_is_early},
    "a_site_that_drops_out_is_not_waited_for": {"drop_out": does_nothing},
    "closing_lets_a_waiting_site_go": {"close": does_nothing},
    "messages_go_both_ways_and_a_site_waits_for_its_own": {"send_message": sends_text},
    "the_first_message_of_a_step_counts_on_both_sides": {"send_message": replaces_the_message},
    "a_message_of_another_step_attempt_or_round_is_not_the_one": {
        "collect_messages": collects_the_first_attempt
    },
    "a_site_stops_waiting_for_a_message_when_the_round_is_over": {"receive_message": waits_beyond_the_round},
    "closing_lets_a_site_go_that_waits_for_a_message": {"close": does_nothing},
    "a_site_that_drops_out_is_not_waited_for_in_a_step": {"drop_out": does_nothing},
    "a_forwarded_message_shows_who_wrote_it": {"open_message": trusts_the_sender},
    "a_retracted_update_can_be_replaced": {"retract": does_nothing},
}


STALE_LOCK = "a lock that outlives its process"


@dataclass
class Shared:
    """A shared folder, with a fault in how its sides are opened."""

    url: str
    fault: str = ""
    opened: set[str] = field(default_factory=set)

    @property
    def exchange(self) -> Folder:
        return Folder(url=self.url, poll_s=0.02)

    def open_hub(self, study: str, folder: Path) -> Any:
        if self.fault == "one folder for every run":
            folder = folder.with_name("hub")
        return self.exchange.open_hub(study, self._folder(folder))

    def open_site(self, study: str, site: str, folder: Path) -> Any:
        if self.fault == STALE_LOCK and (study + site) in self.opened:
            raise ExchangeError(f"site '{site}' already runs")
        self.opened.add(study + site)
        return self.exchange.open_site(study, site, self._folder(folder))

    def offered_studies(self, site: str) -> list[Offer]:
        return [one._replace(digest="") for one in self.exchange.offered_studies(site)]

    def _folder(self, folder: Path) -> Path:
        return Path(mkdtemp(dir=folder.parent)) if self.fault == "a new folder each time" else folder


OPENING = {
    "a_hub_that_restarts_finds_what_was_sent_meanwhile": "a new folder each time",
    "a_site_that_restarts_goes_on_in_the_current_round": STALE_LOCK,
    "a_site_that_restarts_after_its_update_left_may_train_the_round_again": STALE_LOCK,
    "a_new_run_of_a_study_takes_nothing_from_the_one_before": "one folder for every run",
    "a_site_that_knows_no_study_is_shown_the_one_that_is_offered_to_it": "",  # it never says which
    "a_second_process_of_one_site_is_refused": "a new folder each time",
    "both_sides_know_their_messages_after_a_restart": STALE_LOCK,
}


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_exchange, "PATIENCE_S", 0.5)


def test_each_check_is_here() -> None:
    assert FAULTS.keys() | OPENING.keys() == check_exchange.checks.keys()


@pytest.mark.parametrize("check", FAULTS)
def test_a_faulty_method_is_found(check: str) -> None:
    check_exchange.checks[check](OneProcess({}))
    with pytest.raises((AssertionError, ExchangeError, LookupError, ValueError)):
        check_exchange.checks[check](OneProcess(FAULTS[check]))


@pytest.mark.slow
@pytest.mark.parametrize("check", OPENING)
def test_a_faulty_restart_is_found(check: str, tmp_path: Path) -> None:
    with pytest.raises((AssertionError, ExchangeError, LookupError, ValueError)):
        check_exchange.checks[check](Shared(str(tmp_path / "share"), OPENING[check]))


def test_an_exchange_within_one_process_need_not_restart() -> None:
    with pytest.raises(NotApplicable, match="it ends with its process"):
        check_exchange.checks["a_second_process_of_one_site_is_refused"](OneProcess({}))
    check_exchange(OneProcess({}), skip=["a_message_of_another_step_attempt_or_round_is_not_the_one"])


def test_the_report_names_the_faults() -> None:
    exchange = OneProcess({"retract": does_nothing, "drop_out": does_nothing})
    assert broken(check_exchange, exchange) == {
        "a_retracted_update_can_be_replaced",
        "a_site_that_drops_out_is_not_waited_for",
        "a_site_that_drops_out_is_not_waited_for_in_a_step",
    }

"""A run's state as metrics in Prometheus' text format.

configs/monitoring/ has a dashboard and alerts of these names. Each page has a registry of its own, so that
what else this process might count does not appear.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

import medfed
from medfed.deployment.live_page.view import View, seconds_of
from medfed.runs.status import SiteStatus

LIVES = ("running", "finished", "stopped", "interrupted", "lost", "unknown")


def metrics(view: View) -> bytes:
    """Return the metrics of a view in Prometheus' text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(view))
    return generate_latest(registry)


class _Collector(Collector):
    def __init__(self, view: View) -> None:
        self._view = view

    def collect(self) -> Iterable[Metric]:
        yield from _of_run(self._view)
        yield from _of_sites(self._view)


def _of_run(view: View) -> Iterator[Metric]:
    status = view.status
    info = GaugeMetricFamily(
        "medfed_run_info", "The run, always 1", labels=("study", "digest", "role", "version")
    )
    texts = (str(one or "") for one in (status.study, status.digest, status.role, medfed.__version__))
    info.add_metric(list(texts), 1)
    yield info
    state = GaugeMetricFamily(
        "medfed_run_state", "1 for the state that the run is in, 0 for the others", labels=("state",)
    )
    for life in LIVES:
        state.add_metric([life], float(life == view.life))
    yield state
    numbers: dict[str, tuple[str, object]] = {
        "medfed_round": ("The last merged round", view.round),
        "medfed_rounds": ("The study's rounds", view.rounds),
        "medfed_round_seconds": ("The duration of the last round", status.last_round_s),
        "medfed_round_ends_in_seconds": (
            "Until the hub goes on without the sites it awaits",
            status.round_ends_in_s,
        ),
        "medfed_awaited_sites": ("Sites whose update is awaited", _length(status.awaited)),
        "medfed_unreadable_files": (
            "Files of the run folder that cannot be read",
            len(view.unreadable),
        ),
        "medfed_status_written_timestamp_seconds": ("The last sign of life of the process", view.seen_s),
        "medfed_moved_timestamp_seconds": (
            "The last step, merged round or change of state",
            seconds_of(status.moved),
        ),
        "medfed_hub_contact_timestamp_seconds": (
            "At a site: when it last reached the hub",
            seconds_of(status.last_contact if isinstance(status.last_contact, str) else None),
        ),
    }
    for name, (text, value) in numbers.items():
        if isinstance(value, (int, float)):
            yield GaugeMetricFamily(name, text, value=value)
    if isinstance(status.stored_bytes, dict):
        stored = GaugeMetricFamily("medfed_stored_bytes", "Stored at the broker", labels=("store",))
        for store, count in status.stored_bytes.items():
            stored.add_metric([store], count)
        yield stored


def _length(value: object) -> int | None:
    return len(value) if isinstance(value, list) else None


def _of_sites(view: View) -> Iterator[Metric]:
    for name, (text, values) in _gauges(view.sites).items():
        family = GaugeMetricFamily(name, text, labels=("site",))
        for site, value in values.items():
            if value is not None:
                family.add_metric([site], value)
        yield family
    state = GaugeMetricFamily("medfed_site_state", "1 for the site's state", labels=("site", "state"))
    for site, one in view.sites.items():
        state.add_metric([site, one.state], 1)
    yield state
    for name, text, totals in (
        ("medfed_site_sent_bytes", "Sent to the hub", {s: one.bytes_up for s, one in view.sites.items()}),
        ("medfed_site_received_bytes", "Models", {s: one.bytes_down for s, one in view.sites.items()}),
    ):
        counter = CounterMetricFamily(name, text, labels=("site",))
        for site, count in totals.items():
            counter.add_metric([site], count)
        yield counter
    rounds = CounterMetricFamily(
        "medfed_site_rounds", "Rounds by what became of them", labels=("site", "status")
    )
    outcomes = Counter((line.site, line.status) for line in view.lines)
    for (site, status), count in sorted(outcomes.items()):
        rounds.add_metric([site, status], count)
    yield rounds


def _gauges(sites: Mapping[str, SiteStatus]) -> dict[str, tuple[str, dict[str, float | None]]]:
    """Return each gauge of sites by its name: its help, and the values by site."""
    return {
        "medfed_site_connected": (
            "1 if the hub hears the site",
            {site: None if one.connected is None else float(one.connected) for site, one in sites.items()},
        ),
        "medfed_site_last_seen_timestamp_seconds": (
            "The site's last sign of life",
            {site: seconds_of(one.last_seen) for site, one in sites.items()},
        ),
        "medfed_site_round": (
            "The last round that merged the site's update",
            {site: one.round for site, one in sites.items()},
        ),
        "medfed_site_loss": ("Training loss", {site: one.loss for site, one in sites.items()}),
        "medfed_site_score": (
            "The study's validation score, such as Dice",
            {site: one.score for site, one in sites.items()},
        ),
        "medfed_site_epsilon": ("Epsilon spent", {site: one.epsilon for site, one in sites.items()}),
    }

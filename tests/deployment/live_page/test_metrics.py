"""The metrics' values, and that dashboard and alerts name no metric that there is not."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from deployment.live_page.runs import make_run, written_s
from prometheus_client.parser import text_string_to_metric_families

from medfed.deployment.live_page.metrics import metrics
from medfed.deployment.live_page.view import read_view

MONITORING = Path(__file__).parents[3] / "configs/monitoring"


def samples(text: bytes) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


@pytest.fixture(scope="module")
def values(shown_run) -> dict[tuple[str, ...], float]:
    return samples(metrics(read_view(shown_run, written_s(shown_run) + 2)))


def test_the_run(values, shown_run):
    states = {key[1]: value for key, value in values.items() if key[0] == "medfed_run_state"}
    assert states == {
        "running": 1, "finished": 0, "stopped": 0, "interrupted": 0, "lost": 0, "unknown": 0,
    }  # fmt: skip
    assert values["medfed_round",] == 4
    assert values["medfed_rounds",] == 10
    assert values["medfed_round_seconds",] == 41.2
    assert values["medfed_awaited_sites",] == 2
    assert values["medfed_unreadable_files",] == 0
    assert values["medfed_status_written_timestamp_seconds",] == written_s(shown_run)
    assert values["medfed_stored_bytes", "models"] == 80_000_000


def test_the_sites(values):
    assert values["medfed_site_connected", "north"] == 1
    assert values["medfed_site_connected", "south"] == 0
    assert values["medfed_site_sent_bytes_total", "south"] == 120_000_000
    assert values["medfed_site_received_bytes_total", "south"] == 200_000_000
    assert values["medfed_site_rounds_total", "south", "merged"] == 3
    assert values["medfed_site_rounds_total", "south", "refused"] == 1
    assert values["medfed_site_score", "north"] == 0.875
    assert values["medfed_site_epsilon", "north"] == 1.0
    assert values["medfed_site_state", "south", "not connected"] == 1


def test_a_name_with_a_quote_forges_no_line(tmp_path):
    run = make_run(tmp_path / "run")
    path = run / "status.json"
    path.write_text(path.read_text().replace('"study": "lungs"', '"study": "a\\"} 1\\nforged 2"'))
    values = samples(metrics(read_view(run)))
    assert "forged" not in {key[0] for key in values}
    assert any('a"} 1\\nforged 2' in key or 'a"} 1\nforged 2' in key for key in values)


def names_in(text: str) -> set[str]:
    return set(re.findall(r"medfed_[a-z_]+", text))


# What only a site's own page has.
OF_A_SITE = {"medfed_hub_contact_timestamp_seconds", "medfed_site_last_seen_timestamp_seconds"}


def test_dashboard_and_alerts_name_metrics_that_there_are(values):
    known = {key[0] for key in values} | OF_A_SITE | {"medfed_moved_timestamp_seconds"}
    dashboard = json.loads((MONITORING / "grafana-dashboard.json").read_text())
    asked = {target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())}
    assert asked
    assert names_in(" ".join(asked)) <= known
    rules = yaml.safe_load((MONITORING / "prometheus-alerts.yaml").read_text())["groups"][0]["rules"]
    assert {rule["alert"] for rule in rules} >= {"MedfedRunLost", "MedfedSiteSilent", "MedfedNoProgress"}
    for rule in rules:
        assert names_in(rule["expr"]) <= known, rule["alert"]
        assert rule["annotations"]["summary"]
    scraped = yaml.safe_load((MONITORING / "prometheus.yaml").read_text())["scrape_configs"]
    assert scraped[0]["job_name"] == "medfed"

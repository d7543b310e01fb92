"""What leaves for a tracker: numbers and names, nothing of account or machine, and nothing for its makers."""

from __future__ import annotations

import getpass
import json
import os
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from medfed.runs.trackers import TrackedRun
from medfed.runs.trackers.mlflow import QUIET, MLflow
from medfed.runs.trackers.wandb import WandB

RUN = {"info": {"run_id": "r", "run_uuid": "r", "experiment_id": "7", "status": "RUNNING"}, "data": {}}
ANSWERS = {
    "experiments/create": {"experiment_id": "7"},
    "runs/create": {"run": RUN},
    "runs/get": {"run": RUN},
    "runs/update": {"run_info": RUN["info"]},
    "runs/log-batch": {},
}


@pytest.fixture
def server():
    """A server that answers as MLflow's does and keeps what it was sent, as (path, headers and body)."""
    asked: list[tuple[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            what = self.path.partition("mlflow/")[2].partition("?")[0]
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            asked.append((what, f"{self.path} {self.headers} {body.decode()}"))
            answer = ANSWERS.get(what, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "none"})
            content = json.dumps(answer).encode()
            self.send_response(200 if what in ANSWERS else 404)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET

        def log_message(self, *words: object) -> None:
            """Nothing is printed."""

    serving = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=serving.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{serving.server_port}", asked
    serving.shutdown()
    thread.join()
    serving.server_close()


def test_a_run_says_nothing_of_the_account_or_the_machine(tmp_path, server, monkeypatch):
    pytest.importorskip("mlflow", reason="needs the extra mlflow")
    monkeypatch.setenv("LOGNAME", "dr-secret-name")  # what MLflow takes for the account
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    url, asked = server
    logger = MLflow(url=url).open(TrackedRun(tmp_path, "lungs", "north"))
    logger.log_metrics({"val/dice": 0.5}, step=1)
    logger.save()
    logger.finalize("success")
    assert {"runs/create", "runs/log-batch", "runs/update"} <= {what for what, _ in asked}
    sent = "\n".join(text for _, text in asked)
    assert "val/dice" in sent
    assert getpass.getuser() == "dr-secret-name"
    for secret in ("dr-secret-name", socket.gethostname(), os.getcwd(), str(tmp_path), "mlflow.source"):
        assert secret not in sent


# What opens a tracker in a process of its own: MLflow reports nothing where it finds pytest or a CI.
OPENING = """
import socket, sys, time
from pathlib import Path
from medfed.runs.trackers import TrackedRun
from medfed.runs.trackers.mlflow import MLflow

def look(host, *rest, real=socket.getaddrinfo, **more):
    if host != "127.0.0.1":
        print("asked for", host, flush=True)
        raise socket.gaierror("no name is resolved here")
    return real(host, *rest, **more)

socket.getaddrinfo = look
logger = MLflow(url=sys.argv[1]).open(TrackedRun(Path("."), "lungs", "north"))
logger.log_metrics({"val/dice": 0.5}, step=1)
logger.finalize("success")
time.sleep(1)
"""


def open_in_a_process(tmp_path, url: str) -> str:
    """Return what a process prints that opens the tracker and logs a number."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", OPENING, url],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_mlflow_asks_no_public_service_and_prints_nothing_where_a_command_prints_its_result(tmp_path, server):
    pytest.importorskip("mlflow", reason="needs the extra mlflow")
    url, asked = server
    assert open_in_a_process(tmp_path, url) == ""
    assert "runs/log-batch" in {what for what, _ in asked}


@pytest.mark.parametrize(
    "package, record, names",
    [
        ("mlflow", MLflow(url="http://127.0.0.1:1"), list(QUIET)),
        ("wandb", WandB(), ["WANDB_ERROR_REPORTING"]),
    ],
)
def test_reports_to_the_packages_makers_are_off_before_it_is_imported(
    tmp_path, monkeypatch, package, record, names
):
    (tmp_path / f"{package}.py").write_text(
        f"import os\nraise ImportError('; '.join(str(os.environ.get(name)) for name in {names}))\n"
    )
    for name in names:
        monkeypatch.setenv(name, "as the account has it")
    monkeypatch.delitem(sys.modules, package, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    expected = {"mlflow": "true; true", "wandb": "false"}[package]
    with pytest.raises(ImportError, match=f"^{expected}$"):
        record.open(TrackedRun(tmp_path, "lungs", "north"))

"""What leaves for an MLflow server: numbers and names, and nothing of the account or the machine."""

from __future__ import annotations

import getpass
import json
import os
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from medfed.runs.trackers import TrackedRun
from medfed.runs.trackers.mlflow import MLflow

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

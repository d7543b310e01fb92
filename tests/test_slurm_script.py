"""The job script of docs/how-to/slurm.md: which ends of a site it gives back to the scheduler."""

from __future__ import annotations

import os
import signal
import subprocess
import textwrap
import time
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[1] / "docs" / "how-to" / "slurm.md"


@pytest.fixture
def job(tmp_path):
    """Return what starts the page's script with a `medfed` that does as it is told, and a `scontrol`."""
    lines = PAGE.read_text().splitlines()
    first = lines.index("    #!/bin/bash")
    last = lines.index("    exit $code")
    (tmp_path / "job.sh").write_text(textwrap.dedent("\n".join(lines[first : last + 1])))
    programs = tmp_path / "bin"
    programs.mkdir()

    def start(site: str) -> subprocess.Popen[bytes]:
        for name, does in (("medfed", site), ("scontrol", 'echo "$@" >> requeued')):
            (programs / name).write_text(f"#!/bin/bash\n{does}\n")
            (programs / name).chmod(0o755)
        path = f"{programs}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "SLURM_JOB_ID": "7"}
        return subprocess.Popen(["bash", "job.sh"], cwd=tmp_path, env=environment)

    return start


def requeued(tmp_path: Path) -> str:
    path = tmp_path / "requeued"
    return path.read_text() if path.exists() else ""


def wait_for(path: Path) -> None:
    while not path.exists():
        time.sleep(0.01)


@pytest.mark.parametrize("code", [0, 3, 4, 130])
def test_an_end_that_another_start_does_not_mend_ends_the_job(job, tmp_path, code):
    assert job(f"exit {code}").wait() == code
    assert requeued(tmp_path) == ""


def test_a_site_that_ends_before_the_script_looks_at_it_is_requeued(job, tmp_path):
    assert job("exit 75").wait() == 75
    assert requeued(tmp_path) == "requeue 7\n"


@pytest.mark.parametrize("signals", [1, 2])
def test_a_signal_before_the_limit_reaches_the_site_and_its_end_requeues_the_job(job, tmp_path, signals):
    # The site takes a while to end, as it does after a step of its training.
    site = "trap 'touch told' USR1; touch ready; until [ -e told ] && [ -e end ]; do sleep 0.1; done; exit 75"
    running = job(site)
    wait_for(tmp_path / "ready")
    for _ in range(signals):
        running.send_signal(signal.SIGUSR1)
        wait_for(tmp_path / "told")
    (tmp_path / "end").touch()
    assert running.wait() == 75
    assert requeued(tmp_path) == "requeue 7\n"


def test_a_signal_that_ends_a_site_before_it_listens_for_one_requeues_the_job(job, tmp_path):
    running = job("touch ready; exec sleep 60")
    wait_for(tmp_path / "ready")
    running.send_signal(signal.SIGUSR1)
    assert running.wait() == 128 + signal.SIGUSR1
    assert requeued(tmp_path) == "requeue 7\n"

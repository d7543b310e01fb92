from __future__ import annotations

import sys
from importlib.metadata import version

import msgspec
import torch

from medfed.runs.facts import (
    RunFacts,
    hardware,
    package_versions,
    with_missing_model,
    with_unmeasured,
)


def test_what_does_not_apply_yet_is_absent() -> None:
    running, finished = RunFacts(), RunFacts(seconds=2.0, finished="2026-01-01T00:00:00Z")
    assert not {"withdrawn", "seconds", "finished"} & set(msgspec.to_builtins(running))
    assert (running.is_finished, finished.is_finished) == (False, True)


def test_versions_and_hardware_of_this_machine() -> None:
    versions = package_versions()
    assert versions["torch"] == version("torch")
    assert versions["python"] == sys.version.split()[0]
    assert f"cores, {torch.get_num_threads()} threads" in hardware()
    assert "cores, 2 worker processes of 1 threads, " in hardware("2 worker processes of 1 threads")


def test_reasons_are_added() -> None:
    facts = with_missing_model(RunFacts(), "pooled_model", ValueError("no cases"))
    facts = with_unmeasured(with_unmeasured(facts, {"north": "silent"}), {"south": "absent"})
    assert facts.missing_models == {"pooled_model": "no cases"}
    assert facts.unmeasured == {"north": "silent", "south": "absent"}

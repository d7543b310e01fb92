"""A run folder with known merges, weights and rows, for dossiers to be made of."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import torch
from evaluation.fake_runs import SITES, write

from medfed.runs.checkpoints import save_checkpoint
from medfed.runs.folder import RunFolder
from medfed.wire.audit_log import AuditLog
from medfed.wire.signing import Identity
from medfed.wire.weights import digest

ROUNDS, DIGEST = 3, "ab" * 32
WEIGHTS = {"net.weight": torch.arange(6.0).reshape(2, 3)}
# Coast was absent in round 3 (`fake_runs`).
MERGED = {1: SITES, 2: SITES, 3: ("north", "south", "east")}


def dossier_run(path: Path, identity: Identity | None = None) -> RunFolder:
    """Write a finished run of four hospitals whose last merge is `WEIGHTS`."""
    write(path, rounds=ROUNDS, patients=6)
    folder = RunFolder(path)
    facts = folder.read_facts()
    folder.write_facts(msgspec.structs.replace(facts, digest=DIGEST, finished="2026-01-05T09:40:00+00:00"))
    study = json.loads(folder.study.read_text())
    folder.public_study.write_text(json.dumps({**study, "sites": list(SITES)}))
    folder.report.write_text("<html>a report</html>")
    save_checkpoint(folder.checkpoint("federated"), WEIGHTS, ROUNDS)
    folder.audit.unlink()
    log = AuditLog(folder.audit, identity)
    log.write("began", study=DIGEST, sites=list(SITES), resumed=False)
    for number, sites in MERGED.items():
        weights = {name: tensor + (ROUNDS - number) for name, tensor in WEIGHTS.items()}
        log.write("merged", round=number, sites=list(sites), sha256=digest(weights))
    return folder

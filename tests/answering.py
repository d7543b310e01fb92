"""Sites that take part in a study without training and send random updates, for privacy tests."""

from __future__ import annotations

import torch

from medfed.federation.round import SiteConnection, receive, send_update
from medfed.wire.audit_log import AuditLog
from medfed.wire.update import Update
from medfed.wire.weights import Difference

STUDY = "5e" * 32
SITES = ("north", "south", "west")


def model() -> dict[str, torch.Tensor]:
    return {"a": torch.arange(6000.0).reshape(200, 30) / 100, "b": torch.zeros(())}


def answer(exchange, privacy, name: str, audit: AuditLog | None = None, stops: int | None = None) -> None:
    """Take part in a study to its end, or until the round `stops`."""
    parties = exchange.parties or SITES
    channel = SiteConnection(name, exchange, privacy, audit=audit or AuditLog(None), parties=parties)
    received = receive(channel, 0)
    while not received.final:
        generator = torch.Generator().manual_seed(sum(name.encode()) + received.round)
        local = {
            key: tensor + torch.randn(tensor.shape, generator=generator)
            for key, tensor in sorted(received.weights.items())
        }
        number = received.round + 1
        if number == stops:
            raise RuntimeError("killed")
        update = Update(name, number, Difference(local, received.weights), 10 + len(name), {"val/loss": 0.5})
        send_update(channel, update, received.weights, model_sha256=received.sha256)
        received = receive(channel, number)
    closing = Update(name, received.round + 1, {}, 0, {"val/loss": 0.7})
    send_update(channel, closing, received.weights)

"""Hub and site of a federation in scripts of your own, over shared storage or a NATS broker.

    hub       config = HubConfig(rounds=3, sites=("north", "south"), rule=FedAvg())
              Hub(Folder(url="/mnt/share"), config, study="lesions", folder="hub").run(weights_of(Model()))
    a site    with open_site(Folder(url="/mnt/share"), "north", study="lesions", folder="north") as exchange:
                  Trainer(max_epochs=3, callbacks=[FederatedCallback("north", exchange)]).fit(Model(), data)

The records are those that a study file is turned into. Nobody approves a study here, and no policy is asked:
whoever runs a script decides; between hospitals take `medfed hub` and `medfed train --site`.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from medfed.errors import StudyError
from medfed.exchange import DropOut, Exchange, Transmission
from medfed.exchange.memory import Memory
from medfed.federation.config import HubConfig
from medfed.federation.hub import ModelCallback, RoundCallback, run_hub
from medfed.files import private_folder
from medfed.runs.notebook import notebook_progress
from medfed.runs.progress import Progress
from medfed.runs.rounds import RoundReport
from medfed.wire.audit_log import AuditLog
from medfed.wire.messages import Message
from medfed.wire.update import GlobalModel, Update
from medfed.wire.weights import Weights

# How long a hub waits by default for the sites in one round, and a site for the hub's next model.
DEFAULT_WAIT_S = 24 * 3600.0

_DIGEST = re.compile(r"[0-9a-f]{64}")


def study_key(study: str) -> str:
    """Return the digest under which hub and sites meet: that of a study file, or of a name of your own.

    Raises:
        StudyError: if there is no name.
    """
    if not study:
        raise StudyError(
            "study: hub and sites of one federation meet under its name; give all the same, such as "
            "study='lesions-2026'"
        )
    return study if _DIGEST.fullmatch(study) else hashlib.sha256(study.encode()).hexdigest()


@dataclass(frozen=True)
class Hub:
    """A federation's hub in a script or notebook of your own.

    exchange: how sites reach it, `Folder` or `Nats`.  config: as for every hub; a `deadline_s` of None is 24
    hours here.  study: the federation's name, the same at every site.  folder: what a hub that was stopped
    resumes from; one folder holds one run.

    Raises:
        StudyError: if the exchange connects one process only, or the federation has no name.
    """

    exchange: Exchange
    config: HubConfig
    study: str
    folder: str | Path

    def __post_init__(self) -> None:
        _check_across(self.exchange)
        study_key(self.study)

    def run(
        self,
        weights: Weights,
        *,
        on_round: RoundCallback = lambda report: None,
        on_model: ModelCallback = lambda current: None,
        audit: AuditLog | None = None,
        progress: Progress | None = None,
    ) -> GlobalModel:
        """Run every round and return the final model; a run found in the folder is resumed.

        `weights` are the untrained model's (`weights_of`). `progress` shows the rounds: by default a live
        table in a notebook, and nothing elsewhere. If this raises, start it again: the sites wait. A round
        waits for its sites at most `config.deadline_s`, by default 24 hours.

        Raises:
            QuorumError: if too few sites sent a valid update in time.
        """
        folder, config = Path(self.folder), self.config
        deadline = DEFAULT_WAIT_S if config.deadline_s is None else config.deadline_s
        config = replace(config, study_digest=study_key(self.study), deadline_s=deadline)
        private_folder(folder)
        side: Any = self.exchange.open_hub(config.study_digest, folder)
        shown = progress or notebook_progress()

        def round_finished(report: RoundReport) -> None:
            shown.round(report)
            on_round(report)

        try:
            side.monitored_sites = (*config.sites, *config.evaluating)
            side.admit(side.monitored_sites)
            score = config.selection.score if config.selection is not None else "val/loss"
            shown.start(self.study, dict.fromkeys(config.sites, 0), config.rounds, score)
            final = run_hub(
                config, side, weights, folder=folder, on_round=round_finished, on_model=on_model, audit=audit
            )
        except BaseException:
            side.disconnect()  # not closed: the sites wait for a hub that is started again
            raise
        finally:
            shown.stop()
        side.close()
        return final


def open_site(
    exchange: Exchange, site: str, *, study: str, folder: str | Path, timeout_s: float = DEFAULT_WAIT_S
) -> ScriptSite:
    """Return a site's side of an exchange, for a `FederatedCallback` in a script or notebook of your own.

    `study` is the federation's name, `folder` holds what a restarted site needs. It connects when the
    callback first uses it, which only rank 0 does: under DDP every process may open a site. After `timeout_s`
    (by default 24 hours) without a new model a wait for the hub ends.

    Raises:
        StudyError: if the exchange connects one process only, or the federation has no name.
        ExchangeError: from the callback: if the hub cannot be believed, has closed, or nothing comes in time.
    """
    _check_across(exchange)
    key, place = study_key(study), Path(folder)

    def connect() -> Any:
        private_folder(place)
        side: Any = exchange.open_site(key, site, place)
        side.max_wait_s = timeout_s
        return side

    return ScriptSite(connect, exchange.own_hub)


def _check_across(exchange: Exchange) -> None:
    if isinstance(exchange, Memory):
        raise StudyError(
            "exchange: 'memory' connects sites of one process, with medfed.run_federation; across processes "
            "and machines give medfed.Folder(url=...) or medfed.Nats(credentials=...)"
        )


class ScriptSite:
    """A site's side that connects at its first use, and is closed at the end of a `with` block."""

    # Whoever trains is said by `CallbackOptions.parties`, not by what the hub or the store says.
    parties: tuple[str, ...] = ()

    def __init__(self, connect: Callable[[], Any], own_hub: bool = True) -> None:
        self._connect, self._lock = connect, threading.Lock()
        # Whether medfed's hub merges, as the exchange's record says.
        self.own_hub = own_hub
        self._side: Any = None

    @property
    def is_open(self) -> bool:
        """Whether this process has connected."""
        return self._side is not None

    @property
    def closed(self) -> bool:
        """Whether the study is known to have ended early."""
        return self._side is not None and bool(self._side.closed)

    @property
    def signed(self) -> bool:
        """Whether every message is signed by its sender."""
        return bool(self._connected().signed)

    def _connected(self) -> Any:
        with self._lock:
            if self._side is None:
                self._side = self._connect()
            return self._side

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Disconnect; what was sent remains, and a site that is opened again with its folder goes on."""
        with self._lock:
            if self._side is not None:
                self._side.close()

    # -- the site's side, unchanged

    def fetch(self, site: str, round: int) -> GlobalModel:
        model: GlobalModel = self._connected().fetch(site, round)
        return model

    def transmission(self, update: Update) -> Transmission:
        described: Transmission = self._connected().transmission(update)
        return described

    def send(self, update: Update) -> None:
        self._connected().send(update)

    def drop_out(self, site: str, reason: DropOut, detail: str = "") -> None:
        self._connected().drop_out(site, reason, detail)

    def send_message(self, site: str, round: int, attempt: int, step: str, data: bytes) -> None:
        self._connected().send_message(site, round, attempt, step, data)

    def sent_message(self, site: str, step: str) -> Message | None:
        message: Message | None = self._connected().sent_message(site, step)
        return message

    def receive_message(self, site: str, round: int, min_attempts: Mapping[str, int]) -> Message | None:
        message: Message | None = self._connected().receive_message(site, round, min_attempts)
        return message

    def open_message(self, site: str, sealed: bytes, party: str) -> Message:
        message: Message = self._connected().open_message(site, sealed, party)
        return message

    def retract(self, site: str, round: int) -> None:
        self._connected().retract(site, round)

    def store_secret(self, site: str, name: str, secret: bytes) -> None:
        self._connected().store_secret(site, name, secret)

    def load_secret(self, site: str, name: str) -> bytes | None:
        secret: bytes | None = self._connected().load_secret(site, name)
        return secret

"""A site in an NVFlare network (https://nvflare.readthedocs.io), which others lead and whose FedAvg merges.

NVFlare 2.9 lets a process that it did not start attach to a job (`ClientAPIExecutor(execution_mode="attach")`),
so the trainer speaks to the site's NVFlare client itself, by the Client API and a profile that the site's
administrator writes. Torch, model and data live in the trainer for the whole job.
"""

from __future__ import annotations

import logging
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NoReturn

import msgspec

from medfed.errors import ExchangeError, StudyError
from medfed.exchange._handoff import EXAMPLES, Answer, Task
from medfed.exchange._record import Exchange, no_hub, no_study

if TYPE_CHECKING:
    from collections.abc import Mapping

    from medfed.exchange._network_site import NetworkSite

log = logging.getLogger("medfed.exchange")


class Nvflare(Exchange, frozen=True, tag="nvflare"):
    """An NVFlare network that others lead: this site trains in its job, and the network's FedAvg merges.

    `profile` is the file by which a trainer attaches to the site's NVFlare client (`execution_mode: attach`).
    `rounds` is the number of rounds that the job runs, on which site and leader agree. `prefix` is what this
    module's tensor names have before the network's; `unchanged` are tensors of the network that this site
    returns as they came, by a part of their name (integers always are); `metrics` are the numbers sent with
    every update, such as train/loss.
    """

    own_hub: ClassVar[bool] = False

    rounds: Annotated[int, msgspec.Meta(ge=1)]
    profile: str
    prefix: str = ""
    unchanged: tuple[str, ...] = ("num_batches_tracked",)
    metrics: tuple[str, ...] = ()

    def addresses(self) -> tuple[str, ...]:
        return (self.profile,)

    def open_hub(self, study_digest: str, folder: Path) -> NoReturn:
        raise ExchangeError(no_hub("nvflare", "an NVFlare server and its job"))

    def open_site(self, study_digest: str, site: str, folder: Path) -> NetworkSite:
        from medfed.exchange._network_site import Agreement, NetworkSite

        agreement = Agreement(self.rounds, self.prefix, self.unchanged, self.metrics)
        return NetworkSite(_Attached(self.profile, self.rounds, site), site, folder, agreement)

    def advertised_study(self) -> NoReturn:
        raise ExchangeError(no_study("nvflare"))


class _Attached:
    """A trainer that is attached to the site's NVFlare client."""

    network = "the NVFlare network"

    def __init__(self, profile: str, rounds: int, site: str) -> None:
        try:
            import nvflare.client as client
        except ImportError:
            raise StudyError(
                "exchange.kind: 'nvflare' needs the package nvflare, which is not installed here; run "
                "`pip install 'medfed[nvflare]'`"
            ) from None
        if not Path(profile).is_file():
            raise StudyError(
                f"site '{site}': exchange.profile names no file; it is the JSON by which a trainer attaches to "
                "the site's NVFlare client, which its administrator writes (docs/how-to/other-networks.md)"
            )
        self._client, self._rounds, self.ended = client, rounds, False
        self._context: Any = None
        self._profile = profile

    def next_task(self, timeout_s: float) -> tuple[Task, Mapping[str, Any]] | None:
        deadline = time.monotonic() + timeout_s
        try:
            if self._context is None:  # waits for the job, as long as the profile says
                self._context = self._client.init(rank="0", config_file=self._profile)
            model = self._client.receive(timeout=timeout_s, ctx=self._context)
        except RuntimeError as error:  # the session was ended or never began
            log.warning("%s: %s", self.network, type(error).__name__)
            self.ended = True
            return None
        if model is None or model.params is None:
            self.ended = time.monotonic() < deadline
            return None
        return self._task(model), model.params

    def _task(self, model: Any) -> Task:
        run = str(self._client.get_job_id(ctx=self._context))
        if self._client.is_train(ctx=self._context):
            first = model.start_round or 0
            return Task(uuid.uuid4().hex, run, "train", model.current_round - first + 1)
        # NVFlare's evaluations follow its rounds and state none: they are of the merged model.
        return Task(uuid.uuid4().hex, run, "evaluate", self._rounds)

    def is_open(self, task: Task) -> bool:
        return not self.ended

    def answer(self, task: Task, answer: Answer) -> None:
        from nvflare.app_common.abstract.fl_model import FLModel, MetaKey, ParamsType

        numbers = dict(answer.numbers)
        meta = {MetaKey.NUM_STEPS_CURRENT_ROUND: int(numbers.pop(EXAMPLES, 1))}
        if answer.error:
            log.error("the NVFlare network is told: %s", answer.error)
            self.stop(answer.error)
            return
        params = dict(answer.arrays) or None
        full = ParamsType.FULL if params else None
        self._client.send(
            FLModel(params_type=full, params=params, metrics=numbers or None, meta=meta), ctx=self._context
        )

    def stop(self, reason: str) -> None:
        self.close()

    def close(self) -> None:
        if self._context is not None and not self.ended:
            self.ended = True
            self._client.shutdown(ctx=self._context)

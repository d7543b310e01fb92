"""A site in an NVFlare network (https://nvflare.readthedocs.io), which others lead and whose FedAvg merges.

NVFlare 2.9 lets a process that it did not start attach to a job (`ClientAPIExecutor` in its mode `attach`).
So the trainer speaks to the site's NVFlare client itself, by the Client API and a profile that the site's
administrator writes. Torch, model and data live in the trainer for the whole job.
"""

from __future__ import annotations

import logging
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NoReturn

import msgspec

from medfed.errors import DECODING_ERRORS, ExchangeError, StudyError
from medfed.exchange._handoff import EXAMPLES, Answer, Task
from medfed.exchange._record import Exchange, no_hub, no_study
from medfed.files import write_whole
from medfed.wire.untrusted_text import for_log

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
        return NetworkSite(_Attached(Path(self.profile), self.rounds, site, folder), site, folder, agreement)

    def offered_studies(self, site: str, **waiting: Any) -> NoReturn:
        raise ExchangeError(no_study("nvflare"))


class _Attached:
    """A trainer that is attached to the site's NVFlare client; it attaches when it first waits for a task."""

    network = "the NVFlare network"

    def __init__(self, profile: Path, rounds: int, site: str, folder: Path) -> None:
        try:
            import nvflare.client as client
        except ImportError:
            raise StudyError(
                "exchange.kind: 'nvflare' needs the package nvflare, which is not installed here; run "
                "`pip install 'medfed[nvflare]'`"
            ) from None
        self._client, self._rounds, self._site = client, rounds, site
        self._profile, self._folder = profile, folder
        self._context: Any = None
        self._tensors = False
        self.ended = False

    def next_task(self, timeout_s: float) -> tuple[Task, Mapping[str, Any]] | None:
        deadline = time.monotonic() + timeout_s
        try:
            if self._context is None:
                self._context = self._attach(timeout_s)
            model = self._client.receive(timeout=max(0.0, deadline - time.monotonic()), ctx=self._context)
        except TimeoutError:
            return None
        except RuntimeError as error:  # NVFlare ended the session, or never began it
            log.warning("site '%s': %s: %s", self._site, self.network, for_log(str(error), 200))
            self.ended = self._context is not None
            return None
        if model is None or model.params is None:
            self.ended = time.monotonic() < deadline
            return None
        return self._task(model), {name: self._array(name, value) for name, value in model.params.items()}

    def _attach(self, timeout_s: float) -> Any:
        """Attach by the profile, in which no wait is longer than this one's."""
        try:
            profile = msgspec.json.decode(self._profile.read_bytes(), type=dict[str, Any])
            given = profile.get("job_wait_timeout")
            profile["job_wait_timeout"] = timeout_s if given is None else min(timeout_s, given)
            own = self._folder / "exchange" / "nvflare.json"
            write_whole(own, msgspec.json.encode(profile))
            return self._client.init(rank="0", config_file=str(own))
        except (OSError, ValueError, *DECODING_ERRORS) as error:
            if isinstance(error, TimeoutError):
                raise
            raise StudyError(
                f"site '{self._site}': exchange.profile cannot be used ({type(error).__name__}): it is the "
                "JSON by which a trainer attaches to the site's NVFlare client, which its administrator "
                "writes (docs/how-to/other-networks.md)"
            ) from error

    def _task(self, model: Any) -> Task:
        run = str(self._client.get_job_id(ctx=self._context))
        if self._client.is_train(ctx=self._context):
            return Task(uuid.uuid4().hex, run, "train", model.current_round - (model.start_round or 0) + 1)
        # NVFlare's evaluations follow its rounds and state none: they are of the merged model.
        return Task(uuid.uuid4().hex, run, "evaluate", self._rounds)

    def _array(self, name: str, value: Any) -> Any:
        """Return a parameter as a NumPy array; a job may send torch's tensors, and then gets such back."""
        self._tensors = hasattr(value, "detach")
        if not self._tensors:
            return value
        try:
            return value.detach().cpu().numpy()
        except TypeError:  # NumPy has no bfloat16
            raise StudyError(
                f"site '{self._site}': '{for_log(name, 80)}' of {self.network}'s model is a tensor of "
                f"{value.dtype}, expected float16, float32 or float64; ask its leader for one of these"
            ) from None

    def _sent(self, value: Any) -> Any:
        if not self._tensors:
            return value
        import torch

        return torch.from_numpy(value)

    def is_open(self, task: Task) -> bool:
        return not self.ended

    def answer(self, task: Task, answer: Answer) -> None:
        from nvflare.app_common.abstract.fl_model import FLModel, MetaKey, ParamsType

        if answer.error:
            # NVFlare's Client API has no word for it: the network sees that the trainer has left.
            log.error("site '%s' leaves %s: %s", self._site, self.network, answer.error)
            self.close()
            return
        numbers = dict(answer.numbers)
        meta = {MetaKey.NUM_STEPS_CURRENT_ROUND: int(numbers.pop(EXAMPLES))}
        params = {name: self._sent(value) for name, value in answer.arrays.items()} or None
        kind = ParamsType.FULL if params else None
        # An answer without any number is none to NVFlare.
        metrics = numbers or ({} if params else {EXAMPLES: answer.numbers[EXAMPLES]})
        model = FLModel(params_type=kind, params=params, metrics=metrics or None, meta=meta)
        try:
            self._client.send(model, ctx=self._context)
        except RuntimeError as error:
            self.ended = True
            raise ExchangeError(
                f"site '{self._site}': {self.network} did not take the answer to {task}: "
                f"{for_log(str(error), 200)}; ask its leader whether the job goes on"
            ) from error

    def stop(self, reason: str) -> None:
        self.close()

    def close(self) -> None:
        if self._context is not None and not self.ended:
            self.ended = True
            self._client.shutdown(ctx=self._context)

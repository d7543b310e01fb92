"""NVFlare's exchange without NVFlare: what the Client API is given and what its tasks become, by value."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from medfed.errors import ExchangeError, StudyError
from medfed.exchange import DropOut
from medfed.exchange.nvflare import Nvflare
from medfed.wire.update import Update
from medfed.wire.weights import Difference


class ClientApi(ModuleType):
    """The functions of nvflare.client that a trainer calls, over a list of models that a job sends."""

    def __init__(self):
        super().__init__("nvflare.client")
        self.models, self.sent, self.profile = [], [], None
        self.is_shut_down, self.is_silent, self.error = False, False, None

    def init(self, rank, config_file):
        self.profile = json.loads(Path(config_file).read_text())
        if self.error is not None:
            raise self.error
        return "context"

    def receive(self, timeout, ctx):
        assert ctx == "context"
        if self.error is not None:
            raise self.error
        if not self.models and self.is_silent:
            time.sleep(timeout)
        return self.models[0] if self.models else None

    def send(self, model, ctx):
        if self.error is not None:
            raise self.error
        self.models.pop(0)
        self.sent.append(model)

    def get_job_id(self, ctx):
        return "job-1"

    def is_train(self, ctx):
        return self.models[0].current_round is not None

    def shutdown(self, ctx):
        self.is_shut_down = True


@pytest.fixture
def api(monkeypatch):
    """Nothing of NVFlare is installed where most tests run."""
    client, fl_model = ClientApi(), ModuleType("nvflare.app_common.abstract.fl_model")
    fl_model.FLModel = SimpleNamespace
    fl_model.MetaKey = SimpleNamespace(NUM_STEPS_CURRENT_ROUND="NUM_STEPS_CURRENT_ROUND")
    fl_model.ParamsType = SimpleNamespace(FULL="FULL")
    package = ModuleType("nvflare")
    package.client = client
    for name in ("nvflare.app_common", "nvflare.app_common.abstract"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "nvflare", package)
    monkeypatch.setitem(sys.modules, "nvflare.client", client)
    monkeypatch.setitem(sys.modules, fl_model.__name__, fl_model)
    return client


def model(round=None, w=1.0, start=0, tensors=False):
    value = np.full(2, w, np.float32)
    return SimpleNamespace(
        params={"w": torch.from_numpy(value) if tensors else value}, current_round=round, start_round=start
    )


def open_site(tmp_path, wait_s=5.0, profile=None, **settings):
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(profile or {"attach_id": "medfed", "job_wait_timeout": None}))
    side = Nvflare(profile=str(path), rounds=2, **settings).open_site("", "north", tmp_path / "north")
    side.max_wait_s = wait_s
    return side


def update(round, examples=12, **scalars):
    start = {"w": torch.ones(2)}
    return Update("north", round, Difference({"w": torch.tensor([0.5, 3.0])}, start), examples, scalars)


def test_rounds_count_from_zero_there_and_from_one_here(api, tmp_path):
    api.models = [model(0), model(1, 2.0), model(None, 4.0)]
    side = open_site(tmp_path, metrics=("loss",))
    assert side.fetch("north", 0).round == 0
    side.send(update(1, loss=0.25))
    (sent,) = api.sent
    np.testing.assert_array_equal(sent.params["w"], np.array([0.5, 3.0], np.float32))
    assert (sent.params_type, sent.metrics) == ("FULL", {"loss": 0.25})
    assert sent.meta == {"NUM_STEPS_CURRENT_ROUND": 12}
    second = side.fetch("north", 1)
    assert (second.round, float(second.weights["w"][0])) == (1, 2.0)
    side.send(update(2, loss=0.5))
    final = side.fetch("north", 2)
    assert (final.round, final.final, float(final.weights["w"][0])) == (2, True, 4.0)
    side.send(Update("north", 3, {}, 0, {"loss": 0.125}))
    assert (api.sent[-1].params, api.sent[-1].metrics) == (None, {"loss": 0.125})
    side.close()
    assert api.is_shut_down


def test_a_job_that_begins_at_a_later_round_counts_from_there(api, tmp_path):
    api.models = [model(5, start=5)]
    assert open_site(tmp_path).fetch("north", 0).round == 0


def test_a_job_that_sends_tensors_gets_tensors(api, tmp_path):
    api.models = [model(0, tensors=True)]
    side = open_site(tmp_path)
    side.fetch("north", 0)
    side.send(update(1))
    assert torch.equal(api.sent[0].params["w"], torch.tensor([0.5, 3.0]))
    api.models = [model(1, tensors=True)]
    api.models[0].params["w"] = api.models[0].params["w"].bfloat16()
    with pytest.raises(StudyError, match="'w' of the NVFlare network's model is a tensor of torch"):
        side.fetch("north", 1)


def test_an_evaluation_without_scores_is_answered_by_the_examples(api, tmp_path):
    api.models = [model(None)]
    side = open_site(tmp_path)
    side.fetch("north", 2)
    side.close()
    assert (api.sent[0].params, api.sent[0].metrics) == (None, {"num-examples": 1})


@pytest.mark.parametrize(("given", "expected"), [(None, 5.0), (2.0, 2.0), (60.0, 5.0)])
def test_no_wait_for_a_job_is_longer_than_the_sites(api, tmp_path, given, expected):
    api.models = [model(0)]
    profile = {"attach_id": "medfed", "job_wait_timeout": given}
    open_site(tmp_path, profile=profile).fetch("north", 0)
    assert api.profile["job_wait_timeout"] == pytest.approx(expected, abs=0.5)
    assert api.profile["attach_id"] == "medfed"


def test_a_job_that_ends_and_one_that_never_comes_are_told_apart(api, tmp_path):
    with pytest.raises(ExchangeError, match="has ended its run without sending it: the merged model is with"):
        open_site(tmp_path).fetch("north", 2)
    api.is_silent = True
    with pytest.raises(ExchangeError, match="waited 0 s for the model of round 2; nothing came from"):
        open_site(tmp_path, wait_s=0.05).fetch("north", 2)
    api.error = TimeoutError("no endpoint")
    with pytest.raises(ExchangeError, match="waited 0 s for the model of round 2; nothing came from"):
        open_site(tmp_path, wait_s=0.05).fetch("north", 2)
    api.error = RuntimeError("no session was opened")
    with pytest.raises(ExchangeError, match="nothing came from the NVFlare network"):
        open_site(tmp_path).fetch("north", 2)
    api.models, api.error = [model(0)], None
    side = open_site(tmp_path)
    side.fetch("north", 0)
    side.send(update(1))
    api.error = RuntimeError("session aborted")
    with pytest.raises(ExchangeError, match="has ended its run"):
        side.fetch("north", 1)


def test_an_answer_that_is_not_taken_is_told(api, tmp_path):
    api.models = [model(0)]
    side = open_site(tmp_path)
    side.fetch("north", 0)
    api.error = RuntimeError("result was rejected")
    with pytest.raises(ExchangeError, match="did not take the answer to train of round 1: result was"):
        side.send(update(1))


def test_a_site_that_stops_leaves_the_job(api, tmp_path):
    api.models = [model(0)]
    side = open_site(tmp_path)
    side.fetch("north", 0)
    side.drop_out("north", DropOut.DATA)
    assert api.is_shut_down
    assert api.sent == []


def test_a_profile_that_cannot_be_used_is_refused_without_its_path(api, tmp_path):
    side = Nvflare(profile=str(tmp_path / "no.json"), rounds=2).open_site("", "north", tmp_path / "north")
    with pytest.raises(StudyError, match=r"exchange\.profile cannot be used \(FileNotFoundError\)") as caught:
        side.fetch("north", 0)
    assert "no.json" not in str(caught.value)


def test_without_the_package_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "nvflare.client", None)
    with pytest.raises(StudyError, match=r"needs the package nvflare, .*pip install 'medfed\[nvflare\]'"):
        Nvflare(profile="p", rounds=2).open_site("", "north", tmp_path)

"""Personal models trained beside the federated one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from quadratics import Quadratic, federated, fit

import medfed
from medfed.errors import StudyError
from medfed.federation.callback import FederatedCallback
from medfed.local_training.apfl import APFL
from medfed.local_training.ditto import Ditto
from medfed.local_training.fedper import FedPer
from medfed.local_training.fine_tune import FineTune
from medfed.testing._local_training import federate, net, personal_models
from medfed.wire.weights import digest

torch.set_num_threads(1)


@pytest.mark.parametrize("method", [Ditto(), APFL(), FineTune()], ids=lambda m: type(m).__name__)
def test_what_is_trained_beside_the_federation_changes_no_bit_of_it(method, tmp_path: Path) -> None:
    assert digest(federate(tmp_path / "a", method).weights) == digest(federate(tmp_path / "b", None).weights)
    assert set(personal_models(tmp_path / "a")) == {"north", "south"}
    assert personal_models(tmp_path / "b") == {}


def test_the_module_gets_its_own_training_step_back() -> None:
    module = Quadratic(1.0, 1.0)
    callback = FederatedCallback("a", medfed.MemoryExchange(), 2, local=Ditto())
    with pytest.raises(StudyError, match="must be a multiple"):
        fit(module, callback, 3)
    federated(Ditto())
    assert "training_step" not in vars(module)
    assert net().training_step.__func__ is type(net()).training_step


@pytest.mark.parametrize("method", [Ditto(), FedPer(), APFL()], ids=lambda m: type(m).__name__)
def test_a_site_that_was_down_when_the_study_ended_still_gets_its_own_model(method, tmp_path: Path) -> None:
    final = federate(tmp_path, method)
    models = personal_models(tmp_path)
    for path in tmp_path.glob("*/personal.safetensors"):
        path.unlink()
    again = federate(tmp_path, method, resume=True)
    assert digest(again.weights) == digest(final.weights)
    assert personal_models(tmp_path) == models

"""Whether a site's model is the hub's, by name, shape and classes, before a site trains its first epoch."""

from __future__ import annotations

from collections.abc import Sequence

from medfed.errors import StudyError
from medfed.wire.untrusted_text import for_log
from medfed.wire.update import GlobalModel
from medfed.wire.weights import Weights

# How many tensors that differ are named; the rest is counted.
MAX_NAMED = 8


def check_same_model(site: str, own: Weights, received: GlobalModel, classes: Sequence[str] = ()) -> None:
    """Check that the tensors a site exchanges are those of the hub's model, and that both mean the same.

    `own` are the site's tensors that are exchanged, `classes` the names of its model's outputs, in order.

    Raises:
        StudyError: naming the tensors that are not at both sides, or of other shapes, with both shapes; or
            both lists of classes.
    """
    different = [
        f"'{name}' is {_shape(own, name)} here and {_shape(received.weights, name)} at the hub"
        for name in sorted({*own, *received.weights})
        if _shape(own, name) != _shape(received.weights, name)
    ]
    if different:
        more = f"; and {len(different) - MAX_NAMED} more" if len(different) > MAX_NAMED else ""
        raise StudyError(
            f"site '{site}': its model is not the hub's, {len(different)} tensors differ: "
            f"{for_log('; '.join(different[:MAX_NAMED]))}{more}. Build the same network at site and hub, "
            "with the same keep_local and trained_only; nothing was trained"
        )
    if tuple(classes) != received.classes:
        raise StudyError(
            f"site '{site}': the classes of its model are {_listed(classes)}, the hub's are "
            f"{_listed(received.classes)}; give the same names in the same order to "
            "FederatedCallback(classes=) and run_federation or HubConfig (classes=...); nothing is trained"
        )


def _shape(weights: Weights, name: str) -> str:
    return str(tuple(weights[name].shape)) if name in weights else "missing"


def _listed(classes: Sequence[str]) -> str:
    return for_log(", ".join(classes)) if classes else "not given"

"""Whether a site's model and method are the hub's, before a site trains its first epoch.

Models are compared by the names and shapes of their tensors and by classes, methods by what the hub's rule
and the site's local method need of each other.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from medfed.errors import StudyError
from medfed.federation.merged_scores import holds
from medfed.federation.round import SiteConnection
from medfed.local_training import LocalMethod
from medfed.privacy import NoPrivacy, Privacy
from medfed.registry import kind_of
from medfed.study.own_hub import needs_own_hub
from medfed.wire.untrusted_text import for_log
from medfed.wire.update import GlobalModel
from medfed.wire.weights import Weights, own_tensors, unexchanged

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


def check_own_module(connection: SiteConnection, module: nn.Module, names: Collection[str]) -> None:
    """Check that the parameters a site trains are its own, where several sites train in one process.

    Raises:
        StudyError: if another site trains them, too.
    """
    claim = getattr(connection.exchange, "claim", None)
    if claim is None:
        return
    parameters = own_tensors(getattr(module, "_orig_mod", module))[0]
    trained = {name: one for name, one in parameters.items() if name in names and one.requires_grad}
    others = {name: other for name, one in trained.items() if (other := claim(connection.site, one))}
    if others:
        raise StudyError(
            f"site '{connection.site}': its module shares {len(others)} parameters with that of site "
            f"'{others[min(others)]}': {_named(sorted(others))}; both would train the same tensors. Build a "
            "module in each site's function; nothing was trained"
        )


def check_method(
    connection: SiteConnection, method: LocalMethod | None, reported: Collection[str], received: GlobalModel
) -> None:
    """Check that hub and site run both halves of one method and one privacy mechanism.

    Raises:
        StudyError: see `check_halves` and `check_privacy`.
    """
    check_halves(connection.site, method, reported, received)
    check_privacy(connection.site, connection.privacy, received)


def check_privacy(site: str, own: Privacy, received: GlobalModel) -> None:
    """Check that hub and site run both halves of one privacy mechanism, before either waits for the other.

    A mechanism that is the site's alone, such as DP-SGD, holds under a hub without one, too.

    Raises:
        StudyError: with what both sides run and where to give it.
    """
    kind = kind_of(own)
    hub = received.privacy or kind_of(NoPrivacy())
    if not received.rule or kind == hub or (own.site_only and not received.privacy):
        return
    raise StudyError(
        f"site '{site}': its privacy mechanism is '{kind}', the hub's is '{for_log(hub)}'; give the same to "
        "FederatedCallback(privacy=...) and to run_federation or HubConfig (privacy=...); nothing was trained"
    )


def check_optimisers(site: str, module: nn.Module, optimisers: Iterable[Optimizer]) -> None:
    """Check that what the optimisers train are the module's own parameters: no other tensor is exchanged.

    Layers in a plain list or dict are not registered in a module, and copies that an optimiser trains in
    place of the parameters do not follow a merge.

    Raises:
        StudyError: with how many there are and their shapes.
    """
    own = {id(parameter) for parameter in own_tensors(module)[0].values()}
    trained = [one for optimiser in optimisers for group in optimiser.param_groups for one in group["params"]]
    others = [tuple(one.shape) for one in trained if one.requires_grad and id(one) not in own]
    if others:
        shapes = ", ".join(map(str, others[:MAX_NAMED])) + (", ..." if len(others) > MAX_NAMED else "")
        raise StudyError(
            f"site '{site}': its optimisers train {len(others)} tensors that are none of the module's "
            f"parameters, of shapes {shapes}; they would never be exchanged. Register layers as attributes "
            "or in an nn.ModuleList (a list or dict registers nothing), and give optimisers the module's own "
            "parameters; nothing was trained"
        )


def check_epoch(
    site: str, module: nn.Module, optimisers: Iterable[Optimizer], own: Weights, trained: GlobalModel | None
) -> None:
    """Check before an epoch's first step that what trains is what is exchanged.

    `own` are the site's exchanged tensors, `trained` the hub's model under `trained_only`.

    Raises:
        StudyError: see `check_optimisers` and `check_still_trained`.
    """
    check_optimisers(site, module, optimisers)
    if trained is not None:
        check_still_trained(site, own, trained)


def check_halves(
    site: str, method: LocalMethod | None, reported: Collection[str], received: GlobalModel
) -> None:
    """Check that hub and site run both halves of one method, and the site reports what the rule needs.

    `reported` are the names of the numbers that go with each update.

    Raises:
        StudyError: with what both sides run and what to give to which.
    """
    own = "" if method is None else kind_of(method)
    rules = method.rules if method is not None and received.rule else ()
    if rules and received.rule not in rules and own not in received.needs_local:
        raise StudyError(
            f"site '{site}': the local method '{own}' is half of a method whose hub runs the rule "
            f"'{rules[0]}', and this hub runs '{for_log(received.rule)}'; give the hub "
            f"rule='{rules[0]}', or leave local= out; nothing was trained"
        )
    if received.needs_local and own not in received.needs_local:
        needed = for_log(" or ".join(received.needs_local))
        raise StudyError(
            f"site '{site}': the hub's rule '{for_log(received.rule)}' merges sites that train by the local "
            f"method '{needed}', this site trains {f'by {own!r}' if own else 'without one'}; give "
            f"FederatedCallback(local='{needed}'); nothing was trained"
        )
    if missing := sorted(set(received.needs_scalars) - set(reported)):
        names = for_log(", ".join(missing))
        raise StudyError(
            f"site '{site}': the hub's rule '{for_log(received.rule)}' needs {names} of each site; give "
            f"FederatedCallback(options=CallbackOptions(required_scalars={missing!r})); nothing was trained"
        )


def check_merges_elsewhere(connection: SiteConnection, method: LocalMethod | None) -> None:
    """Check that nothing of a site needs medfed's half at the hub, where another network's hub merges.

    Raises:
        StudyError: naming the first part that does.
    """
    if getattr(connection.exchange, "own_hub", True):
        return
    for problem in needs_own_hub(connection.privacy, connection.compress, method):
        raise StudyError(f"site '{connection.site}': {problem}; nothing was trained")


def check_still_trained(site: str, own: Weights, received: GlobalModel) -> None:
    """Check that the parameters that train are those that are exchanged, under `trained_only`.

    Raises:
        StudyError: naming those that were frozen or unfrozen since the fit began.
    """
    changed = sorted(set(own) ^ set(received.weights))
    if changed:
        raise StudyError(
            f"site '{site}': with trained_only the exchanged parameters are those that trained as fit began; "
            f"frozen or unfrozen since: {_named(changed)}. Leave trained_only out, or unfreeze between two "
            "studies; this round was not trained"
        )


def other_start(own: Weights, received: GlobalModel | None) -> str:
    """Return a sentence on a round that does not train from the hub's model, or '' if it does."""
    wanted = {} if received is None else received.weights
    changed = sorted(name for name in wanted if not holds(own, {name: wanted[name]}))
    if not changed:
        return ""
    return (
        f"trains from other weights than the hub's: {_named(changed)} changed between the merge and the "
        "first step, by a hook of the module or a callback, and no longer hold what the sites have learned "
        "together. What it sends is the whole difference to the hub's model"
    )


def kept_copies(optimisers: Iterable[Optimizer], at_merge: str) -> str:
    """Return a sentence on an optimiser that keeps a copy of the weights in its state, or ''.

    `at_merge` is what happens to its state at a merge: with `reset` the copy is dropped.
    """
    if at_merge == "reset":
        return ""
    for optimiser in optimisers:
        trained = {id(one): one for group in optimiser.param_groups for one in group["params"]}
        copies = [_copies(one, optimiser.state[one]) for one in trained.values() if optimiser.state.get(one)]
        # A parameter and a moment of zeros are equal by chance; in all of them they are not.
        if copies and (names := frozenset.intersection(*copies)):
            return (
                f"its optimiser {type(optimiser).__name__} keeps a copy of the weights "
                f"({_named(sorted(names))}), which a merge leaves as it is: if it steps from that copy, this "
                "site trains on without the others. FederatedCallback(optimiser_state='reset') drops the "
                "copy at each merge"
            )
    return ""


def _copies(parameter: Tensor, state: Mapping[str, Any]) -> frozenset[str]:
    own = parameter.detach()
    return frozenset(
        str(name)
        for name, value in state.items()
        if isinstance(value, Tensor) and value.shape == own.shape and torch.equal(value.to(own.dtype), own)
    )


def stays_here(module: nn.Module, keep_local: Iterable[str]) -> str:
    """Return a sentence on what of a module's state is never exchanged although nobody chose that, or ''."""
    names = unexchanged(module, keep_local)
    if not names:
        return ""
    listed = _named([f"{name} ({reason})" for name, reason in sorted(names.items())])
    return f"can't be exchanged, so each site keeps its own: {listed}"


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return for_log(", ".join(names[:MAX_NAMED])) + more


# Lightning's strategies of whose processes each holds a part of the model.
_SHARDING = {"FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy"}


def refuse_shards(site: str, strategy: object) -> None:
    """Refuse a Trainer's strategy under which no process holds the whole model.

    Raises:
        StudyError: if it is one of Lightning's.
    """
    if names := _SHARDING & {base.__name__ for base in type(strategy).__mro__}:
        raise StudyError(
            f"site '{site}': under {names.pop()} each process holds a part of the model, and the exchange "
            "needs the whole; use strategy='ddp', or one device"
        )


def _shape(weights: Weights, name: str) -> str:
    return str(tuple(weights[name].shape)) if name in weights else "missing"


def _listed(classes: Sequence[str]) -> str:
    return for_log(", ".join(classes)) if classes else "not given"

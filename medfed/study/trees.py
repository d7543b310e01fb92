"""What a study of boosted trees demands of its other parts, which else would change its sums unseen."""

from __future__ import annotations

from collections.abc import Iterator

from medfed.aggregation._tree_growing import SKETCHES
from medfed.aggregation.boosted_trees import BoostedTrees as Rule
from medfed.data.settings import Table
from medfed.models.networks.boosted_trees import BoostedTrees as Network
from medfed.privacy import NoPrivacy
from medfed.privacy.secure_sum import SecureSum
from medfed.registry import kind_of
from medfed.study.study import Study


def tree_problems(study: Study) -> Iterator[str]:
    """Yield what does not fit in a study of boosted trees, each sentence beginning with the key."""
    network, rule = study.network, study.rule
    if isinstance(study.data, Table) and study.data.missing == "keep" and not network.takes_missing:
        yield (
            f"data.missing: keep sends empty cells to the network, and '{kind_of(network)}' takes none; take "
            "median or drop, or network boosted_trees"
        )
    if network.grows_from_sums != isinstance(rule, Rule):
        yield (
            f"network.kind: '{kind_of(network)}' with rule '{kind_of(rule)}': trees grow at the hub, by "
            "`rule: {kind: boosted_trees}` and the network of that kind together; set both, or neither"
        )
    if isinstance(network, Network) and isinstance(rule, Rule):
        yield from _rounds(study, network)
        yield from _training(study)
        yield from _protection(study, network)
        if rule.min_patients < study.evaluation.smallest_group:
            yield (
                f"rule.min_patients: {rule.min_patients}, and results of fewer than "
                f"{study.evaluation.smallest_group} patients are withheld (evaluation.smallest_group); "
                "a leaf is one; set it at least as high"
            )


def rounds_of(network: Network) -> int:
    """Return how many rounds all trees of a network take."""
    return SKETCHES + network.trees * network.depth


def _rounds(study: Study, network: Network) -> Iterator[str]:
    needed = rounds_of(network)
    if study.train.rounds != needed:
        yield (
            f"train.rounds: {study.train.rounds}, and {network.trees} trees of depth {network.depth} take "
            f"{needed}: {SKETCHES} choose the bins, and each level of each tree is one; set train.rounds to "
            f"{needed}, or change network.trees or network.depth"
        )


def _training(study: Study) -> Iterator[str]:
    """Check that every training row is summed once in a round, and the sums leave as they are."""
    train, problem = (
        study.train,
        "has no meaning for boosted_trees, which sum every training row once a round",
    )
    wrong = {
        "epochs": train.epochs != 1,
        "steps": train.steps is not None,
        "accumulate": train.accumulate != 1,
        "clip": train.clip is not None,
        "precision": train.precision != 32,
        "keep_local": bool(train.keep_local),
        "only": bool(train.only),
        "lora": train.lora is not None,
        "local": train.local is not None,
        "average": train.average != 1,
    }
    yield from (f"train.{key}: {problem}; leave it out" for key, is_wrong in wrong.items() if is_wrong)
    for site in sorted(study.site_overrides):
        if study.at(site).train.epochs != 1:
            yield f"site_overrides: {site}: epochs {problem}; leave it out"
    if study.compress:
        yield f"compress: {problem}, of which rounding would change the trees; leave it out"
    if study.start is not None:
        yield "start: boosted_trees grow from nothing; leave it out"
    if study.sampling.fraction < 1:
        yield (
            f"sampling.fraction: {study.sampling.fraction:g}; each level of a tree would be chosen by "
            "other hospitals; set it to 1"
        )
    loss = getattr(study.task, "loss", None)
    if loss is None or not loss.grows_trees:
        found = "" if loss is None else f"'{kind_of(loss)}' with these settings "
        yield (
            f"task.loss: {found}says nothing to grow trees from; take cross_entropy or binary_cross_entropy "
            "without weights or smoothing, or cox"
        )


def _protection(study: Study, network: Network) -> Iterator[str]:
    kind = kind_of(study.privacy)
    if not isinstance(study.privacy, NoPrivacy | SecureSum):
        yield (
            f"privacy.kind: '{kind}' rounds, clips or noises updates, and trees grow from exact sums; take "
            "secure_sum, or none with network.reveal_sums"
        )
    elif isinstance(study.privacy, SecureSum) and study.privacy.bits != 64:
        yield f"privacy.bits: {study.privacy.bits} round the sums too coarsely to grow trees from; set 64"
    elif study.privacy.reveals_each_update and not network.reveal_sums:
        yield (
            "privacy.kind: without secure_sum the hub reads each hospital's sums, and a bin or node with one "
            "patient says what that patient's values and outcome are; set privacy: {kind: secure_sum}, or "
            "network.reveal_sums: true if every hospital may show the hub that"
        )

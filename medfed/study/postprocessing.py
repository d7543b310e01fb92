"""Which studies can remove connected components of what they predict, or have the hub choose them."""

from __future__ import annotations

from collections.abc import Iterator

from medfed.registry import kind_of
from medfed.study.study import Study


def postprocessing_problems(study: Study) -> Iterator[str]:
    """Yield why components to remove cannot be chosen, or have no volume in ml."""
    rules, data = getattr(study.task, "postprocess", "none"), study.data
    if not isinstance(rules, str):
        if getattr(data, "spatial_dims", 3) == 2 and getattr(data, "slices", None) is None:
            for structure in (one for one, rule in rules.items() if rule != "largest"):
                yield (
                    f"task.postprocess: {structure}: components below {rules[structure]:g} ml are to be "
                    "removed, and the images are planes, without volumes; take largest, or leave it out"
                )
        return
    if rules == "auto":
        yield from _chosen_components(study)


def _chosen_components(study: Study) -> Iterator[str]:
    key, train, privacy = "task.postprocess: auto", study.train, kind_of(study.privacy)
    if study.rule.asynchronous or study.rule.max_sites == 1 or study.sampling.fraction < 1:
        yield (
            f"{key}: asks every hospital for its gains on the last model, and with rule "
            f"'{kind_of(study.rule)}' and sampling.fraction "
            f"{study.sampling.fraction:g} not all take part in each round; leave it out, or give the "
            "components to remove"
        )
    if study.sampling.joining or not study.exchange.own_hub:
        yield (
            f"{key}: the hub must know from the start whose gains count, and choose by them; leave out "
            "sampling.joining, take another exchange, or give the components to remove"
        )
    if train.keep == "best":
        yield (
            f"{key}: is chosen by the last merged model, and train.keep: best may end with an earlier one; "
            "leave one of the two out"
        )
    if study.keep_local or (train.local is not None and train.local.mixes_shared):
        yield (
            f"{key}: is chosen for one model, and here each hospital has its own (train.keep_local, "
            "train.local); give the components to remove, or leave it out"
        )
    if "val/" not in study.privacy.filter_scalars({"val/": 0.0}):
        yield (
            f"{key}: needs each hospital's gains on its validation patients, which privacy '{privacy}' does "
            "not let a site send with these settings (privacy.scores); let the scores leave, give the "
            "components to remove, or leave it out"
        )

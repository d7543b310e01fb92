"""Paired comparison of two models on the same patients: difference, interval and test.

Values are paired by patient. Each metric defines its test: means over patients use sign-flip permutation
(`paired_tests`), AUROCs the paired DeLong test, and c-indices the jackknife. A row's `p` is of its comparison
alone, as its interval is (a permutation and a bootstrap may still disagree near the limit); `p_holm` is
corrected over the comparisons that one call returns for a metric at a hospital (Holm), whose number `method`
gives. The difference to the untrained model is shown but not tested, because whether training helps is not in
question.

A row's `value` is always model minus `against`, whichever direction is better.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec
import numpy as np

from medfed.evaluation.aggregate import Measurement, withheld_measures, withheld_models
from medfed.evaluation.disclosure import is_too_few, suppressed_sites
from medfed.evaluation.groups import Group, group_of, open_patients, over_structures, patients_behind
from medfed.evaluation.intervals import holm
from medfed.evaluation.metrics import (
    CaseGroup,
    ClassGroup,
    ClassificationMetrics,
    Difference,
    FindingsGroup,
    SurvivalGroup,
    SurvivalMetrics,
    families,
    metric_of,
)
from medfed.evaluation.paired_tests import paired_difference
from medfed.evaluation.patients import SummarySettings, by_patient
from medfed.evaluation.row_factory import RowFactory, mark_wide
from medfed.evaluation.rows import ALL_SITES, FEDERATED, UNTRAINED, CaseRow, Row, is_of_seed, unperturbed


def compare(
    cases: Iterable[CaseRow], settings: SummarySettings, *, model: str = FEDERATED, correct: bool = True
) -> list[Row]:
    """Return one model's differences to every other on test patients, by hospital and over the study's.

    If `correct` is false, p values are not corrected, so that they can be corrected together with others.
    """
    everything = [case for case in unperturbed(cases) if case.split == "test"]
    suppressed = suppressed_sites(everything, settings.held_out, settings.min_patients)
    by_model: dict[str, dict[str, list[CaseRow]]] = {}
    for case in everything:
        by_model.setdefault(case.model, {}).setdefault(case.site, []).append(case)
    rows: list[Measurement] = []
    # The same model of another seed is no competitor, and would cost the others power.
    others = {name for name in by_model if name != model and not is_of_seed(name)}
    for other in sorted(others):
        for site, members in _members(sorted(by_model[other]), settings.held_out).items():
            if (site, "test") in suppressed:
                continue
            ours, theirs = (
                [case for member in members for case in by_model.get(name, {}).get(member, [])]
                for name in (model, other)
            )
            factory = RowFactory(settings.round, site, "test", model, against=other)
            for difference, patients in _differences(ours, theirs, settings):
                row = _row(factory, difference)
                row = msgspec.structs.replace(row, p=None) if other == UNTRAINED else row
                rows.append(Measurement(row, patients))
    shown = _shown(rows, by_model, settings)
    return holm_corrected(shown) if correct else shown


def _shown(
    differences: Sequence[Measurement],
    by_model: Mapping[str, Mapping[str, list[CaseRow]]],
    settings: SummarySettings,
) -> list[Row]:
    """Return the differences that may be shown: none where the metric of either model is withheld."""
    measured = {one.measure for one in differences}
    means = []
    for model, by_site in by_model.items():
        for site, members in _members(sorted(by_site), settings.held_out).items():
            group = group_of(by_patient([case for name in members for case in by_site[name]]), settings)
            factory = RowFactory(settings.round, site, "test", model)
            for _, metric, structure in measured:
                behind = patients_behind(group, metric, structure, settings.min_patients)
                row = factory.suppressed(metric, "only its size is needed", structure=structure)
                means.append(Measurement(row, behind, open=open_patients(group, metric, structure)))
    withheld = withheld_measures([*means, *differences], settings)
    given_away = withheld_models(means, settings)
    return [
        one.row
        for one in differences
        if one.row.value is None
        or not any(
            one.row.site in some
            for some in (
                withheld.get(one.measure, ()),
                given_away.get((one.row.model, one.measure), ()),
                given_away.get((str(one.row.against), one.measure), ()),
            )
        )
    ]


def _members(sites: Sequence[str], held_out: Sequence[str]) -> dict[str, list[str]]:
    """Return the hospitals behind each site to report: each hospital alone, then the study's pooled."""
    members = {site: [site] for site in sites}
    pooled = [site for site in sites if site not in held_out]
    return {**members, ALL_SITES: pooled} if len(pooled) > 1 else members


def _differences(
    ours: list[CaseRow], theirs: list[CaseRow], settings: SummarySettings
) -> list[tuple[Difference, int]]:
    """Return the differences, and of how few patients each says something beside both models' own values."""
    own = [{(case.site, case.patient) for case in some} for some in (ours, theirs)]
    shared = own[0] & own[1]
    ours, theirs = ([case for case in some if (case.site, case.patient) in shared] for some in (ours, theirs))
    # Both models' values over all their patients and the difference over the shared ones give the others'.
    unshared = any(is_too_few(len(some - shared), settings.min_patients) for some in own)
    if len(shared) < max(settings.min_patients, 1) or unshared:
        return []
    first, second = (group_of(by_patient(cases), settings) for cases in (ours, theirs))
    differences: list[Difference | None] = []
    if isinstance(first, ClassGroup) and isinstance(second, ClassGroup):
        # They are the same patients: both models are held to the targets of the first one's cases.
        second, least = second._replace(y=first.y), settings.min_patients
        differences += [family.difference(first, second, least) for family in families(ClassificationMetrics)]
    elif isinstance(first, FindingsGroup) and isinstance(second, FindingsGroup):
        # As above, the targets are those of the first one's cases.
        (_, y, known), theirs_p = first.predictions, second.predictions.p
        second = second._replace(predictions=first.predictions._replace(p=theirs_p, y=y, known=known))
        for family in families(ClassificationMetrics):
            differences += family.findings_differences(first, second)
    elif isinstance(first, SurvivalGroup) and isinstance(second, SurvivalGroup):
        if int(first.patients.events.sum()) >= max(settings.min_patients, 1):
            differences += [family.difference(first, second) for family in families(SurvivalMetrics)]
    elif isinstance(first, CaseGroup) and isinstance(second, CaseGroup):
        return _averaged(first, second)
    return [
        (one, min(one.interval.n, *(_behind(group, one, settings) for group in (first, second))))
        for one in differences
        if one is not None
    ]


def _behind(group: Group, difference: Difference, settings: SummarySettings) -> int:
    return patients_behind(group, difference.metric, difference.structure, settings.min_patients)


def _averaged(first: CaseGroup, second: CaseGroup) -> list[tuple[Difference, int]]:
    """Return the differences of metrics measured per case, each with the fewest patients it is about.

    An overlap is of the same patients for both models. Of other metrics these may be those who have a value
    of one model only: the others' cancel out.
    """
    ours, others = over_structures(first.patients), over_structures(second.patients)
    differences = []
    for (structure, metric), values in ours.items():
        if not metric_of(metric).compared or (structure, metric) not in others:
            continue
        theirs = others[structure, metric]
        interval, p = paired_difference(values, theirs, first.resampling)
        known = [np.isfinite(some) for some in (values, theirs)]
        alone = [int((some & ~(known[0] & known[1])).sum()) for some in known]
        few = [number for number in alone if is_too_few(number, first.min_patients)]
        difference = Difference(metric, structure, interval, p, "sign-flip permutation")
        differences.append((difference, min([interval.n, *few])))
    return differences


def _row(factory: RowFactory, difference: Difference) -> Row:
    metric, structure, interval, p, test = difference
    marked = mark_wide(metric, interval)
    if marked.value is None and not marked.note:
        marked = marked._replace(note="no patient has a value for both models")
    row = factory.row(metric, structure, marked, interval.n, p)
    method = f"{interval.method}; {test}" if test != interval.method else test
    return msgspec.structs.replace(row, method=method)


def holm_corrected(rows: Sequence[Row], same: Callable[[Row], object] | None = None) -> list[Row]:
    """Return the rows, also with p values corrected over each metric, structure and hospital (Holm).

    Each hospital is a separate question: how do the models compare on its patients? A hospital with three
    patients, whose p values cannot be small, must not cost a hospital with three hundred its power.
    Rows for which `same` returns equal values test one hypothesis, which counts once; without it all differ.
    """
    families: dict[tuple[str, str | None, str], list[int]] = {}
    for index, row in enumerate(rows):
        if row.p is not None:
            families.setdefault((row.metric, row.structure, row.site), []).append(index)
    corrected = list(rows)
    for members in families.values():
        hypotheses = {index: same(rows[index]) if same is not None else index for index in members}
        raw: dict[object, float] = {}
        for index, hypothesis in hypotheses.items():
            raw[hypothesis] = max(raw.get(hypothesis, 0.0), rows[index].p or 0.0)
        p_holm = dict(zip(raw, holm(list(raw.values())), strict=True))
        for index, hypothesis in hypotheses.items():
            method = f"{rows[index].method}, Holm over {len(raw)} tests"
            corrected[index] = msgspec.structs.replace(rows[index], p_holm=p_holm[hypothesis], method=method)
    return corrected

"""What is wrong with single cases of a site, and what comparing its cases with each other shows."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from medfed.data.preflight.case import CaseFacts, format_mm
from medfed.data.preflight.issues import Finding
from medfed.data.preflight.listing import Listing

# Outliers are reported from this many cases on.
MIN_CASES_TO_COMPARE = 8
# A voxel edge this many times the site's median, or its inverse, is an outlier.
SPACING_FACTOR = 2.0
# An intensity further than this many robust standard deviations from the site's median is an outlier. A
# deviation counts as at least this fraction of the site's range of intensities: a site with one scanner and
# one protocol would be full of outliers otherwise.
MAX_INTENSITY_DEVIATIONS, MIN_DEVIATION = 6.0, 0.05
# A label ends abruptly if its last slice has more than CUT_SHARE of its largest area, at a site whose labels
# taper off: their median is below TAPERED_SHARE.
CUT_SHARE, TAPERED_SHARE = 0.5, 0.3
# HU of air are near -1000. A CT without any value below this one is not in HU.
MAX_AIR_HU = -200.0
# Negative HU that were stored as unsigned 16-bit numbers lie above this; fewer of them are noise.
WRAPPED_ABOVE, MIN_WRAPPED_SHARE = 62000, 0.005
# Flags of the readers that are issues of their own.
FLAGS = (
    "no_rescale",
    "not_hu",
    "real_world_values",
    "real_world_values_unused",
    "secondary_capture",
    "lossy",
    "tilt",
    "qform_differs",
    "detector_spacing",
)


def case_findings(listing: Listing, examined: Mapping[int, CaseFacts]) -> Iterator[Finding]:
    """Yield what is wrong with single cases."""
    measured = [facts for facts in examined.values() if facts.quantiles]
    for number, facts in examined.items():
        name = listing.names[number]
        for code, detail in facts.issues:
            healthy = code == "label_empty" and listing.cases[number].target == 0
            yield Finding("label_healthy" if healthy else code, name, detail)
        yield from (Finding(flag, name, "") for flag in FLAGS if flag in facts.flags)
        yield from _unit_findings(facts, name, measured)


def _unit_findings(facts: CaseFacts, name: str, measured: Sequence[CaseFacts]) -> Iterator[Finding]:
    if not facts.quantiles:
        return
    wrapped = np.mean(np.asarray(facts.quantiles) > WRAPPED_ABOVE)
    hounsfield = facts.modality in ("CT", "")
    if hounsfield and facts.low >= 0 and WRAPPED_ABOVE < facts.high <= 65535 and wrapped > MIN_WRAPPED_SHARE:
        detail = f"{wrapped:.0%} of its voxels lie above 62000, none below 0"
        yield Finding("hu_unsigned", name, detail)
        return
    unmarked = [one for one in measured if not one.modality]
    like_ct = sum(one.low < -900 for one in unmarked) > 0.5 * len(unmarked) and len(unmarked) > 1
    is_ct = facts.modality == "CT" or (not facts.modality and like_ct)
    if is_ct and facts.low > MAX_AIR_HU and facts.high > 900:
        yield Finding("hu_offset", name, f"values from {facts.low:.0f} to {facts.high:.0f}")


def site_findings(listing: Listing, examined: Mapping[int, CaseFacts]) -> Iterator[Finding]:
    """Yield what comparing the site's cases with each other shows."""
    yield from _duplicates(listing, examined)
    good = {number: facts for number, facts in examined.items() if facts.read and facts.quantiles}
    if len(good) >= MIN_CASES_TO_COMPARE:
        yield from _spacing_outliers(listing, good)
        yield from _intensity_outliers(listing, good)
    yield from _cut_labels(listing, good)
    usual = Counter(facts.orientation for facts in good.values()).most_common(1)
    for number, facts in good.items():
        if facts.orientation != usual[0][0]:
            detail = f"{facts.orientation}, most are {usual[0][0]}"
            yield Finding("orientation", listing.names[number], detail)
    if any(case.label is not None for case in listing.cases):
        for name, case in zip(listing.names, listing.cases, strict=True):
            if case.label is None:
                yield Finding("unlabelled", name, "")


def _cut_labels(listing: Listing, good: Mapping[int, CaseFacts]) -> Iterator[Finding]:
    shares = [facts.cut_share for facts in good.values() if facts.cut_share]
    if len(shares) < MIN_CASES_TO_COMPARE or float(np.median(shares)) >= TAPERED_SHARE:
        return
    for number, facts in good.items():
        if facts.cut_share > CUT_SHARE:
            detail = f"its last slice has {facts.cut_share:.0%} of its largest area"
            yield Finding("label_cut", listing.names[number], detail)


def _duplicates(listing: Listing, examined: Mapping[int, CaseFacts]) -> Iterator[Finding]:
    by_digest: dict[str, list[int]] = defaultdict(list)
    for number, facts in sorted(examined.items()):
        if facts.digest and facts.low < facts.high:
            by_digest[facts.digest].append(number)
    for numbers in by_digest.values():
        if len(numbers) < 2:
            continue
        cases = [listing.cases[number] for number in numbers]
        code = "duplicate_across_splits" if len({case.split for case in cases}) > 1 else "duplicate"
        others = "of one patient" if len({case.patient for case in cases}) == 1 else "under several patients"
        for number in numbers[1:]:
            detail = f"the same voxels as {listing.names[numbers[0]]}, {others}"
            yield Finding(code, listing.names[number], detail)


def _spacing_outliers(listing: Listing, good: Mapping[int, CaseFacts]) -> Iterator[Finding]:
    # Sorted, so that a volume stored with its axes in another order is compared edge by edge.
    edges = {number: np.sort(facts.spacing_mm) for number, facts in good.items()}
    median = np.median(np.stack(list(edges.values())), axis=0)
    for number, edge in edges.items():
        ratio = edge / median
        if ratio.max() > SPACING_FACTOR or ratio.min() < 1 / SPACING_FACTOR:
            detail = f"{format_mm(good[number].spacing_mm)} mm, median {format_mm(median)} mm"
            yield Finding("spacing_outlier", listing.names[number], detail)


def _intensity_outliers(listing: Listing, good: Mapping[int, CaseFacts]) -> Iterator[Finding]:
    groups: dict[str, list[int]] = defaultdict(list)
    for number, facts in good.items():
        groups[facts.modality].append(number)
    for numbers in groups.values():
        if len(numbers) < MIN_CASES_TO_COMPARE:
            continue
        values = np.array([[good[n].quantiles[50], good[n].quantiles[-2]] for n in numbers])
        spread = float(np.median([good[n].quantiles[-2] - good[n].quantiles[1] for n in numbers]))
        median = np.median(values, axis=0)
        mad = np.median(np.abs(values - median), axis=0)
        deviations = np.abs(values - median) / np.maximum(1.4826 * mad, max(MIN_DEVIATION * spread, 1e-9))
        for row, number in enumerate(numbers):
            worst = int(deviations[row].argmax())
            if deviations[row, worst] > MAX_INTENSITY_DEVIATIONS:
                which = ("median", "99th percentile")[worst]
                detail = f"its {which} is {values[row, worst]:.5g}, the site's {median[worst]:.5g}"
                yield Finding("intensity_outlier", listing.names[number], detail)

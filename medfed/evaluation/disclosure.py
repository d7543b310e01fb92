"""Statistical disclosure control: which values would say something of fewer patients than may be shown.

`smallest_group` (here k) is the fewest patients that a value, bound, plot point or difference may be over. A
value over fewer is withheld, and so are others from which it would follow:

- **All minus the rest.** A hospital's withheld mean follows from the pooled mean and the other hospitals', so
  others are withheld with it until they hold k patients together, or the pooled value is. This is decided
  for each metric and structure by the patients behind that metric: of twelve patients two may have a lesion.
- **Every model alike.** A difference and one model's mean give the other's, so a hospital that is withheld
  for one model is withheld for all of them, and in their differences.
- **The mean over structures.** With the mean of each structure it gives the sum over the patients who lack a
  structure (`patients_behind_mean`), so these must be none, or k.
- **Counts beside means.** A missed structure has an overlap of 0 and no predicted volume, so a mean beside
  the counts of missed and absent structures is of the others alone (`patients.is_open`): there must be none,
  or k. This is decided for each model, so that one that missed nearly all does not hide the others.
- **Nested groups.** Of two published groups, the patients in one and not in the other must be none, or k, as
  must those in neither (`conflict`).

Counts of patients (of those tested, of structures missed) are over all patients, and are shown.
Hundepool et al., Statistical Disclosure Control, Wiley 2012, chapters 4 and 5.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medfed.evaluation.intervals import suppressed_groups
from medfed.evaluation.rows import ALL_SITES, CaseRow

Mask = NDArray[np.bool_]

# A singular value below this, relative to the largest, is taken as zero.
RANK_TOLERANCE = 1e-9


def is_too_few(patients: int, min_patients: int) -> bool:
    """Return whether a group may not be shown: it has patients, and fewer than `min_patients`."""
    return 0 < patients < min_patients


def withheld_sites(sizes: Mapping[str, int], held_out: Sequence[str], min_patients: int) -> set[str]:
    """Return the sites at which one metric is withheld, `ALL_SITES` among them.

    Args:
        sizes: patients behind the metric at each site; under `ALL_SITES` the fewest behind the pooled value,
            if it has one.
        held_out: the hospitals that are not pooled.
        min_patients: the fewest patients of a value.
    """
    pooled = {site: size for site, size in sizes.items() if site not in {*held_out, ALL_SITES}}
    withheld = {site for site in held_out if is_too_few(sizes.get(site, 0), min_patients)}
    withheld |= suppressed_groups(pooled, min_patients)
    if is_too_few(sum(pooled.values()), min_patients) or is_too_few(sizes.get(ALL_SITES, 0), min_patients):
        withheld.add(ALL_SITES)
    return withheld


def suppressed_sites(
    cases: Iterable[CaseRow], held_out: Sequence[str], min_patients: int
) -> set[tuple[str, str]]:
    """Return the (site, split) pairs to suppress: small ones, and those that would reveal a small one."""
    patients: dict[tuple[str, str], set[str]] = defaultdict(set)
    for case in cases:
        patients[case.site, case.split].add(case.patient)
    suppressed = set()
    for split in {split for _, split in patients}:
        sizes = {site: len(names) for (site, its), names in patients.items() if its == split}
        withheld = withheld_sites(sizes, held_out, min_patients)
        suppressed |= {(site, split) for site in withheld}
    return suppressed


def patients_behind_mean(known: ArrayLike, min_patients: int, open: ArrayLike | None = None) -> int:
    """Return the fewest patients of whom the mean over structures says something, beside each structure's.

    With m structures, m times the sum of the patients' means minus the sums of the structures leaves a sum
    over the patients who lack a structure. Any other combination has a value of one structure in one pattern
    of structures, so it is safe if that value is open in `min_patients` patients of each pattern, or in so
    many of those with all structures.

    Args:
        known: (structures, patients), whether a patient has a value.
        min_patients: the fewest patients of a value.
        open: (structures, patients), whether the value is not given away elsewhere; by default, `known`.
    """
    table, unsaid = (np.asarray(known if one is None else one, dtype=bool) for one in (known, open))
    telling = unsaid.any(axis=0)
    table, unsaid = table[:, telling], unsaid[:, telling]
    patients, complete = int(table.shape[1]), table.all(axis=0)
    incomplete = int((~complete).sum())
    of_complete = unsaid[:, complete].sum(axis=1)
    safe_rest = incomplete == 0 or incomplete >= min_patients
    if not patients or (safe_rest and (of_complete >= min_patients).all()):
        return patients
    patterns, place = np.unique(table, axis=1, return_inverse=True)
    counts = [unsaid[:, place.ravel() == one].sum(axis=1) for one in range(patterns.shape[1])]
    smallest = min(int(number) for some in counts for number in some if number)
    if smallest >= min_patients:
        return patients
    return min(incomplete or patients, smallest)


def conflict(group: Mask, published: Iterable[Mask], everyone: Mask, min_patients: int) -> bool:
    """Return whether a group's mean, beside those of published groups, says something of too few patients.

    Checked are the group, its difference to each published group and what both leave of `everyone`, and
    whether the sum over any few patients is a combination of the published sums. All are masks over the same
    patients.
    """
    others = list(published)
    if is_too_few(int(group.sum()), min_patients):
        return True
    for other in others:
        between = int((group ^ other).sum())
        rest = int(everyone.sum()) - between
        if is_too_few(between, min_patients) or is_too_few(rest, min_patients):
            return True
    return gives_few(np.stack([everyone, *others, group]), min_patients)


def differ_by_few(patients: Set[str], earlier: Iterable[Set[str]], min_patients: int) -> bool:
    """Return whether sums over patients, beside the same sums over earlier patients, give those of too few.

    So they do if few patients came or went since one of the earlier times, or if few are in the same ones of
    several. The same patients again say nothing new, and neither does what the earlier ones gave already.
    """
    sets = list(earlier)
    if any(patients == one for one in sets):
        return False
    if any(is_too_few(len(part), min_patients) for one in sets for part in (patients - one, one - patients)):
        return True
    return not _few_given([*sets, patients], min_patients) <= _few_given(sets, min_patients)


def _few_given(sets: Sequence[Set[str]], min_patients: int) -> set[frozenset[str]]:
    """Return the few patients, alike in all sets, whose sum is a combination of the sets' sums."""
    everyone = sorted(frozenset().union(*sets))
    if not everyone:
        return set()
    alike, given = _spanned(np.array([[name in one for name in everyone] for one in sets]), min_patients)
    names = np.array(everyone)
    return {frozenset(names[alike == pattern].tolist()) for pattern in np.flatnonzero(given)}


def gives_few(groups: Mask, min_patients: int) -> bool:
    """Return whether the sum over few patients alike in all groups is a combination of the groups' sums.

    Args:
        groups: (groups, patients), whether a patient is in a group whose sum is known.
        min_patients: the fewest patients of a value.
    """
    groups = groups[:, groups.any(axis=0)]
    return bool(groups.size) and bool(_spanned(groups, min_patients)[1].any())


def _spanned(groups: Mask, min_patients: int) -> tuple[NDArray[np.intp], Mask]:
    """Return each patient's pattern of groups, and which patterns of few patients have a sum that follows.

    Args:
        groups: (groups, patients); each patient is in one of them.
        min_patients: the fewest patients of a value.
    """
    patterns, alike, sizes = np.unique(groups, axis=1, return_inverse=True, return_counts=True)
    _, singular, rows = np.linalg.svd(patterns.astype(np.float64), full_matrices=False)
    spanned = rows[singular > RANK_TOLERANCE * singular[0]]
    # A pattern's own sum is a combination if its unit vector lies in the span: its projection has length 1.
    lengths = (spanned**2).sum(axis=0)
    return alike.ravel(), (sizes < min_patients) & (lengths > 1 - RANK_TOLERANCE)

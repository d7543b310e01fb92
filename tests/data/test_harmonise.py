"""ComBat with sums that hospitals can add: the same as with all rows in one place, and
as the paper's equations.
"""

from __future__ import annotations

import numpy as np
import pytest

from medfed.data.harmonise import TableSums, centre_and_scale, combat, merge_sums, sums
from medfed.errors import DataError

FEATURES = ("a", "b", "c", "d")


def patients(values):
    return [f"p{i}" for i in range(len(values))]


@pytest.fixture
def sites():
    rng = np.random.default_rng(0)
    return [
        rng.normal([1, 20, -5, 0], [1, 2, 3, 0.1], (n, 4)) + shift
        for n, shift in ((40, 0), (25, 3), (60, -1))
    ]


def test_means_and_deviations_within_hospitals_are_those_of_all_rows(sites):
    merged = merge_sums(sums(one, patients(one), FEATURES) for one in sites)
    assert merged == merge_sums(sums(one, patients(one), FEATURES) for one in sites[::-1])
    centre, scale = centre_and_scale(merged)
    pooled = np.concatenate(sites)
    within = np.concatenate([one - one.mean(axis=0) for one in sites])
    np.testing.assert_allclose(list(centre.values()), pooled.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(list(scale.values()), np.sqrt((within**2).mean(axis=0)), rtol=1e-5)


def test_few_patients_are_withheld(sites):
    with pytest.raises(DataError, match="9 training patients and withholds numbers of fewer than 10"):
        sums(sites[0][:9], patients(sites[0][:9]), FEATURES)
    with pytest.raises(DataError, match="2 training patients"):  # 40 rows of two patients
        sums(sites[0], ["x", "y"] * 20, FEATURES)
    sparse = sites[0].copy()
    sparse[9:, 1] = np.nan
    withheld = sums(sparse, patients(sparse), FEATURES)
    assert withheld.counted == (40, 0, 40, 40)
    assert withheld.total[1] == withheld.squares[1] == 0
    with pytest.raises(DataError, match="feature 'b': every site has too few"):
        centre_and_scale(withheld)


def test_sums_of_other_features_or_none_are_refused():
    one = TableSums(features=("a",), sites=1, patients=9, counted=(9,), total=(0,), squares=(0,))
    with pytest.raises(DataError, match="different features"):
        merge_sums(
            [one, TableSums(features=("b",), sites=1, patients=9, counted=(9,), total=(0,), squares=(0,))]
        )
    with pytest.raises(DataError, match="no site gave"):
        merge_sums([])


def test_a_hospitals_own_estimates_solve_the_papers_equations(sites):
    centre, scale = (
        np.array(list(x.values()))
        for x in centre_and_scale(merge_sums(sums(s, patients(s), FEATURES) for s in sites))
    )
    for numbers in sites:
        own_centre, own_scale = combat(numbers, centre, scale)
        gamma, delta = (own_centre - centre) / scale, (own_scale / scale) ** 2
        z = (numbers - centre) / scale
        n, gamma_hat, delta_hat = len(z), z.mean(axis=0), z.var(axis=0, ddof=1)
        bar, tau2 = gamma_hat.mean(), gamma_hat.var(ddof=1)
        m, s2 = delta_hat.mean(), delta_hat.var(ddof=1)
        a, b = (2 * s2 + m * m) / s2, (m * s2 + m**3) / s2
        # Equations 2.4 to 2.6, feature by feature, must hold at once.
        for f in range(4):
            assert gamma[f] == pytest.approx(
                (n * tau2 * gamma_hat[f] + delta[f] * bar) / (n * tau2 + delta[f]), abs=1e-3
            )
            apart = sum((z[i, f] - gamma[f]) ** 2 for i in range(n))
            assert delta[f] == pytest.approx((b + apart / 2) / (n / 2 + a - 1), rel=1e-3)


def test_a_shift_between_hospitals_is_gone_and_empty_cells_do_not_matter(sites):
    centre, scale = (
        np.array(list(x.values()))
        for x in centre_and_scale(merge_sums(sums(s, patients(s), FEATURES) for s in sites))
    )
    sites[1][3, 2] = np.nan
    means = []
    for numbers in sites:
        own_centre, own_scale = combat(numbers, centre, scale)
        means.append(np.nanmean((numbers - own_centre) / own_scale, axis=0))
    before = [np.nanmean((numbers - centre) / scale, axis=0) for numbers in sites]
    assert np.ptp(before, axis=0).min() > 1
    assert np.ptp(means, axis=0).max() < 0.2

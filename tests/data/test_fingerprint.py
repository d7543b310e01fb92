"""A merged fingerprint equals what all cases in one place give; what is withheld is not in its bytes."""

from __future__ import annotations

import itertools
import json
import random
from dataclasses import replace
from pathlib import Path
from unittest import mock

import msgspec
import numpy as np
import pytest

from medfed.data.case import Case
from medfed.data.fingerprint import Fingerprint, fingerprint, from_json, merge, to_json
from medfed.data.histogram import (
    bin_to_intensity,
    bin_to_length,
    intensity_bins,
    length_bin,
    quantile,
    suppress_small_bins,
)
from medfed.data.index import Index
from medfed.data.normalise.fingerprint import FederatedFingerprint
from medfed.data.normalise.nyul import PERCENTILES, Nyul
from medfed.data.proposal import propose_patch, propose_settings
from medfed.data.settings import Images
from medfed.data.volume import Info, Volume
from medfed.errors import DataError


class Site:
    """Cases in memory, whose images and labels are known to the test."""

    def __init__(
        self, seed: int, cases: int, centre: float, *, spacing=(1.0, 1.0, 3.0), gain: float = 1.0
    ) -> None:
        generator = np.random.default_rng(seed)
        self.volumes: dict[str, tuple[Volume, Volume]] = {}
        listed = []
        for number in range(cases):
            shape = (14, 12, int(generator.integers(8, 12)))
            image = np.rint(generator.normal(centre, 60, shape)).astype(np.float32) * np.float32(gain)
            label = (generator.random(shape) < 0.4).astype(np.uint8) * (1 + number % 2)
            affine = np.diag([*spacing, 1.0])
            case = Case(
                id=f"{seed}/{number}", patient=f"{seed}/{number}", token=f"{seed:06d}{number:06d}", image=()
            )
            listed.append(case)
            self.volumes[case.id] = (Volume(image[None], affine, Info("CT")), Volume(label[None], affine))
        self.index = Index(Path(), "memory", tuple(listed))

    def told(self, **options) -> Fingerprint:
        options = {"grid": "hu", "classes": 3, "min_count": 10} | options
        with mock.patch("medfed.data.fingerprint.read_case", lambda case, *_: self.volumes[case.id]):
            return fingerprint(self.index, **options)

    @property
    def foreground(self) -> np.ndarray:
        return np.concatenate([image.array[0][label.array[0] > 0] for image, label in self.volumes.values()])


@pytest.fixture(scope="module")
def sites() -> list[Site]:
    # One large site and two small ones far off: where averages of percentiles fail.
    return [Site(1, 30, 40.0), Site(2, 10, 300.0), Site(3, 12, -100.0)]


def test_merged_percentiles_are_the_pooled_ones_and_averaged_ones_are_not(sites: list[Site]) -> None:
    merged = merge([site.told() for site in sites])
    pooled_values = np.concatenate([site.foreground for site in sites])
    weights = np.array([len(site.foreground) for site in sites], float)
    for percent in (0.5, 10, 50, 90, 99.5):
        truth = np.percentile(pooled_values, percent)
        assert abs(merged.percentile(percent) - truth) <= 1
    for percent in (0.5, 99.5):
        averaged = np.average([np.percentile(s.foreground, percent) for s in sites], weights=weights)
        assert abs(averaged - np.percentile(pooled_values, percent)) > 40


def test_mean_and_deviation_are_the_pooled_ones(sites: list[Site]) -> None:
    merged = merge([site.told() for site in sites])
    values = np.concatenate([site.foreground for site in sites]).astype(np.float64)
    assert merged.mean() == pytest.approx(values.mean(), abs=1e-6)
    assert merged.sd() == pytest.approx(values.std(), abs=1e-6)


def test_the_sum_is_the_same_in_any_order_and_grouping(sites: list[Site]) -> None:
    prints = [site.told() for site in sites]
    texts = {to_json(merge(order)) for order in itertools.permutations(prints)}
    texts.add(to_json(merge([merge(prints[:2]), prints[2]])))
    texts.add(to_json(merge([prints[0], merge(prints[1:])])))
    assert len(texts) == 1
    assert from_json(texts.pop()) == merge(prints)


def test_class_counts_and_spacing(sites: list[Site]) -> None:
    merged = merge([site.told(min_count=5) for site in sites])
    labels = [label.array for site in sites for _, label in site.volumes.values()]
    every = np.concatenate([label.ravel() for label in labels])
    for number in range(3):
        assert merged.voxels[number] == (every == number).sum()
    assert merged.holders == {0: 52, 1: 26, 2: 26}
    np.testing.assert_allclose(merged.spacing_mm(), (1, 1, 3), rtol=0.003)


def test_relative_bins_hold_percentiles_within_one_bin() -> None:
    sites = [Site(5, 12, 900.0, gain=0.37), Site(6, 15, 300.0, gain=2.5)]
    merged = merge([site.told(grid="relative") for site in sites])
    values = np.concatenate([site.foreground for site in sites])
    for percent in (0.5, 50, 99.5):
        truth = np.percentile(values, percent)
        assert merged.percentile(percent) == pytest.approx(truth, rel=0.012)


def test_bins_and_values_are_inverse() -> None:
    values = np.array([-1024.0, -3.4, -0.5, 0.0, 7.6, 3071])
    assert intensity_bins(values, "hu").tolist() == [-1024, -3, 0, 0, 8, 3071]
    assert intensity_bins(np.array([1e9, -1e9]), "hu").tolist() == [3071, -1024]
    for value in (0.013, 1.0, 317.0, 4.2e6, -55.5):
        number = int(intensity_bins(np.array([value]), "relative")[0])
        assert bin_to_intensity(number, "relative") == pytest.approx(value, rel=0.0058)
    assert intensity_bins(np.array([0.0]), "relative").tolist() == [0]
    for value in (0.7, 1.0, 5.0, 512.0):
        assert bin_to_length(length_bin(value)) == pytest.approx(value, rel=0.0029)


def test_few_patients_give_no_fingerprint() -> None:
    with pytest.raises(DataError, match="9 training patients and withholds numbers of fewer than 10"):
        Site(7, 9, 0.0).told()


def test_several_cases_of_few_patients_are_few() -> None:
    site = Site(7, 12, 0.0)
    cases = tuple(replace(c, patient=f"p{n % 9}") for n, c in enumerate(site.index.cases))
    site.index = Index(Path(), "memory", cases)
    with pytest.raises(DataError, match="9 training patients"):
        site.told()


def test_a_class_of_few_patients_and_a_rare_spacing_are_withheld() -> None:
    site = Site(8, 30, 0.0)
    rare = site.index.cases[4].id
    image, label = site.volumes[rare]
    label.array[0, 0, 0, :] = 5
    strange = np.diag([7.77, 1.0, 3.0, 1.0])
    site.volumes[rare] = (Volume(image.array, strange, image.info), Volume(label.array, strange))
    found = site.told(classes=6)
    assert set(found.voxels) == {0, 1, 2}
    assert found.withheld == 1
    assert str(length_bin(7.77)) not in json.loads(to_json(found))["spacing"][0]
    assert sum(found.spacing[0].values()) == 30


def test_no_bin_of_a_fingerprint_is_small(sites: list[Site]) -> None:
    for site in sites:
        found = site.told()
        for counts in (*found.spacing, *found.size, *found.extent, *found.intensity):
            assert all(count >= 10 for count in counts.values())


def test_pooled_moves_small_bins_inward_by_hand() -> None:
    # From the left 1 + 2 make 3 in bin 2; from the right 1 alone is too few and joins the median's bin, 5.
    assert suppress_small_bins({1: 1, 2: 2, 5: 20, 9: 1}, 3) == {2: 3, 5: 21}
    assert suppress_small_bins({1: 1, 2: 1}, 3) == {}
    # The fourth of eight is in bin 1, the median's: 2 joins it.
    assert suppress_small_bins({1: 4, 2: 1, 8: 3}, 3) == {1: 5, 8: 3}
    # The fourth of seven is in bin 2, which is too small itself: it joins the nearest that isn't.
    assert suppress_small_bins({1: 3, 2: 1, 8: 3}, 3) == {1: 4, 8: 3}


def test_pooled_keeps_totals_and_tells_no_small_bin_whatever_comes() -> None:
    draw = random.Random(4)
    for _ in range(300):
        counts = {draw.randrange(-20, 20): draw.randrange(1, 9) for _ in range(draw.randrange(1, 25))}
        fewest = draw.randrange(1, 12)
        found = suppress_small_bins(counts, fewest)
        assert all(count >= fewest for count in found.values())
        assert sum(found.values()) == (sum(counts.values()) if sum(counts.values()) >= fewest else 0)


def test_quantile_by_hand() -> None:
    counts = {-5: 1, 0: 2, 7: 1}
    assert [quantile(counts, share) for share in (0.25, 0.5, 0.75, 1)] == [-5, 0, 0, 7]
    with pytest.raises(DataError, match="histogram is empty"):
        quantile({}, 0.5)


def test_fingerprints_of_different_studies_do_not_merge(sites: list[Site]) -> None:
    with pytest.raises(DataError, match="differ in grid: hu and relative"):
        merge([sites[0].told(), sites[1].told(grid="relative")])
    with pytest.raises(DataError, match="no fingerprint to merge"):
        merge([])


@pytest.mark.parametrize("text", [b"", b"{}", b'{"version": 2}', b"[1, 2]"])
def test_what_is_no_fingerprint_is_refused(text: bytes) -> None:
    with pytest.raises(DataError, match="not a fingerprint"):
        from_json(text)


def test_a_fingerprint_with_a_channel_missing_is_refused(sites: list[Site]) -> None:
    plain = json.loads(to_json(sites[0].told()))
    plain["total"] = []
    with pytest.raises(DataError, match="don't each have their numbers"):
        from_json(json.dumps(plain))


def test_no_patient_or_token_is_in_the_bytes(sites: list[Site]) -> None:
    text = to_json(sites[0].told()).decode()
    for case in sites[0].index.cases:
        assert case.token not in text
        assert case.id not in text


def test_a_proposal_is_settings_that_a_study_takes(sites: list[Site]) -> None:
    merged = merge([site.told() for site in sites])
    found = propose_settings(merged)
    settings = msgspec.convert({k: v for k, v in found.items() if k != "kind"}, Images)
    assert isinstance(settings.normalise, FederatedFingerprint)
    np.testing.assert_allclose(settings.spacing_mm, (1, 1, 3), rtol=0.005)
    values = np.concatenate([site.foreground for site in sites]).astype(np.float64)
    clipped = values.clip(settings.normalise.low, settings.normalise.high)
    expected = (clipped - values.mean()) / values.std()
    np.testing.assert_allclose(settings.normalise.channel(values.astype(np.float32)), expected, atol=2e-3)


def test_a_patch_fits_the_image_and_the_budget() -> None:
    # Whole when it fits: 64 x 64 x 48 is below 96 cubed.
    assert propose_patch(np.array([64.0, 64, 48]), np.ones(3), 96**3) == [64, 64, 48]
    # A large CT of 0.8 x 0.8 x 3 mm: fewer voxels along the coarse axis.
    found = propose_patch(np.array([512.0, 512, 130]), np.array([0.8, 0.8, 3.0]), 96**3)
    assert np.prod(found) <= 96**3
    assert found[0] == found[1] > 2 * found[2]
    assert all(number % 8 == 0 for number in found)


def test_nyul_puts_two_gains_on_one_scale_by_hand() -> None:
    landmarks = tuple(p / 50 - 1 for p in PERCENTILES)
    values = np.linspace(100, 200, 1001, dtype=np.float32).reshape(1, 1, -1)
    kind = Nyul(landmarks=landmarks, foreground=False)
    # Uniform values: the p-th percentile is 100 + p, which goes to p / 50 - 1.
    np.testing.assert_allclose(
        kind.channel(values)[0, 0, [10, 250, 500, 900, 990]], [-0.98, -0.5, 0, 0.8, 0.98], atol=1e-3
    )
    np.testing.assert_allclose(kind.channel(values * 7 + 3), kind.channel(values), atol=1e-4)


def test_nyul_landmarks_of_a_federation_are_the_mean_over_all_cases() -> None:
    sites = [Site(5, 12, 900.0), Site(6, 15, 300.0, gain=2.5)]
    merged = merge([site.told(grid="relative") for site in sites])
    rows = []
    for site in sites:
        for image, _ in site.volumes.values():
            values = image.array[0].astype(np.float64)
            places = np.percentile(values[values > values.mean()], PERCENTILES)
            rows.append(np.interp(places, [places[0], places[-1]], [-1, 1]))
    np.testing.assert_allclose(merged.nyul(), np.mean(rows, axis=0), atol=1e-5)
    assert Nyul(landmarks=merged.nyul()).landmarks[0] == -1


def test_landmarks_that_fall_or_are_too_few_are_refused() -> None:
    with pytest.raises(DataError, match="3 landmarks; expected 11"):
        Nyul(landmarks=(-1, 0, 1))
    with pytest.raises(DataError, match="must rise"):
        Nyul(landmarks=(*range(10), 3.0))
    with pytest.raises(DataError, match="low must lie below high"):
        FederatedFingerprint(low=3, high=1, mean=0, sd=1)

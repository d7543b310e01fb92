"""A merged fingerprint equals what all cases in one place give; what is withheld is not in its bytes."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hospitals import make_hospital

from medfed.data.fingerprint import fingerprint, from_json, merge, to_json
from medfed.data.histogram import (
    length_bin,
)
from medfed.data.index import Index, index_folder
from medfed.data.normalise.fingerprint import FederatedFingerprint
from medfed.data.normalise.nyul import PERCENTILES, Nyul
from medfed.data.reading import Reading
from medfed.data.settings import Images, Unreadable
from medfed.data.volume import Volume
from medfed.errors import DataError, ImageError, TooFewPatientsError

from .site_in_memory import Site


@pytest.fixture(scope="module")
def sites() -> list[Site]:
    # One large site and two small ones far off: where averages of percentiles fail.
    return [Site(1, 30, 40.0), Site(2, 10, 300.0), Site(3, 12, -100.0)]


def test_merged_percentiles_are_the_pooled_ones_and_averaged_ones_are_not(sites: list[Site]) -> None:
    merged = merge([site.fingerprint() for site in sites])
    pooled_values = np.concatenate([site.foreground for site in sites])
    weights = np.array([len(site.foreground) for site in sites], float)
    for percent in (0.5, 10, 50, 90, 99.5):
        truth = np.percentile(pooled_values, percent)
        assert abs(merged.percentile(percent) - truth) <= 1
    for percent in (0.5, 99.5):
        averaged = np.average([np.percentile(s.foreground, percent) for s in sites], weights=weights)
        assert abs(averaged - np.percentile(pooled_values, percent)) > 40


def test_mean_and_deviation_are_the_pooled_ones(sites: list[Site]) -> None:
    merged = merge([site.fingerprint() for site in sites])
    values = np.concatenate([site.foreground for site in sites]).astype(np.float64)
    assert merged.mean() == pytest.approx(values.mean(), abs=1e-6)
    assert merged.sd() == pytest.approx(values.std(), abs=1e-6)


def test_the_sum_is_the_same_in_any_order_and_grouping(sites: list[Site]) -> None:
    prints = [site.fingerprint() for site in sites]
    texts = {to_json(merge(order)) for order in itertools.permutations(prints)}
    texts.add(to_json(merge([merge(prints[:2]), prints[2]])))
    texts.add(to_json(merge([prints[0], merge(prints[1:])])))
    assert len(texts) == 1
    assert from_json(texts.pop()) == merge(prints)


def test_class_counts_and_spacing(sites: list[Site]) -> None:
    merged = merge([site.fingerprint(min_count=5) for site in sites])
    labels = [label.array for site in sites for _, label in site.volumes.values()]
    every = np.concatenate([label.ravel() for label in labels])
    for number in range(3):
        assert merged.voxels[number] == (every == number).sum()
    assert merged.holders == {0: 52, 1: 26, 2: 26}
    np.testing.assert_allclose(merged.spacing_mm(), (1, 1, 3), rtol=0.003)


def test_relative_bins_hold_percentiles_within_one_bin() -> None:
    sites = [Site(5, 12, 900.0, gain=0.37), Site(6, 15, 300.0, gain=2.5)]
    merged = merge([site.fingerprint(grid="relative") for site in sites])
    values = np.concatenate([site.foreground for site in sites])
    for percent in (0.5, 50, 99.5):
        truth = np.percentile(values, percent)
        assert merged.percentile(percent) == pytest.approx(truth, rel=0.012)


def test_few_patients_give_no_fingerprint() -> None:
    with pytest.raises(DataError, match="9 training patients and withholds numbers of fewer than 10"):
        Site(7, 9, 0.0).fingerprint()


def test_several_cases_of_few_patients_are_few() -> None:
    site = Site(7, 12, 0.0)
    cases = tuple(replace(c, patient=f"p{n % 9}") for n, c in enumerate(site.index.cases))
    site.index = Index(Path(), "memory", cases)
    with pytest.raises(DataError, match="9 training patients"):
        site.fingerprint()


def test_a_class_of_few_patients_and_a_rare_spacing_are_withheld() -> None:
    site = Site(8, 30, 0.0)
    rare = site.index.cases[4].id
    image, label = site.volumes[rare]
    label.array[0, 0, 0, :] = 5
    strange = np.diag([7.77, 1.0, 3.0, 1.0])
    site.volumes[rare] = (Volume(image.array, strange, image.info), Volume(label.array, strange))
    own_print = site.fingerprint(classes=6)
    assert set(own_print.voxels) == {0, 1, 2}
    assert own_print.withheld == 1
    assert str(length_bin(7.77)) not in json.loads(to_json(own_print))["spacing"][0]
    assert sum(own_print.spacing[0].values()) == 30


def test_no_bin_of_a_fingerprint_is_small(sites: list[Site]) -> None:
    for site in sites:
        own_print = site.fingerprint()
        for counts in (*own_print.spacing, *own_print.size, *own_print.extent, *own_print.intensity):
            assert all(count >= 10 for count in counts.values())


def test_fingerprints_of_different_studies_do_not_merge(sites: list[Site]) -> None:
    with pytest.raises(DataError, match="differ in grid: hu and relative"):
        merge([sites[0].fingerprint(), sites[1].fingerprint(grid="relative")])
    with pytest.raises(DataError, match="no fingerprint to merge"):
        merge([])


@pytest.mark.parametrize("text", [b"", b"{}", b'{"version": 2}', b"[1, 2]"])
def test_what_is_no_fingerprint_is_refused(text: bytes) -> None:
    with pytest.raises(DataError, match="not a fingerprint"):
        from_json(text)


def test_a_fingerprint_with_a_channel_missing_is_refused(sites: list[Site]) -> None:
    plain = json.loads(to_json(sites[0].fingerprint()))
    plain["total"] = []
    with pytest.raises(DataError, match="don't each have their numbers"):
        from_json(json.dumps(plain))


def test_no_patient_or_token_is_in_the_bytes(sites: list[Site]) -> None:
    text = to_json(sites[0].fingerprint()).decode()
    for case in sites[0].index.cases:
        assert case.token not in text
        assert case.id not in text


def test_nyul_landmarks_of_a_federation_are_the_mean_over_all_cases() -> None:
    sites = [Site(5, 12, 900.0), Site(6, 15, 300.0, gain=2.5)]
    merged = merge([site.fingerprint(grid="relative") for site in sites])
    rows = []
    for site in sites:
        for image, _ in site.volumes.values():
            values = image.array[0].astype(np.float64)
            places = np.percentile(values[values > values.mean()], PERCENTILES)
            rows.append(np.interp(places, [places[0], places[-1]], [-1, 1]))
    np.testing.assert_allclose(merged.nyul(), np.mean(rows, axis=0), atol=1e-5)
    assert Nyul(landmarks=merged.nyul()).landmarks[0] == -1


def test_a_fingerprint_without_a_range_is_refused() -> None:
    with pytest.raises(DataError, match="low must lie below high"):
        FederatedFingerprint(low=3, high=1, mean=0, sd=1)


def test_cases_are_read_as_the_study_reads_them(sites: list[Site]) -> None:
    read = mock.Mock(side_effect=lambda case, *_: sites[0].volumes[case.id])
    settings = Images(read=Reading(pet="suv", uneven="resample"), resample_labels=True)
    with mock.patch("medfed.data.fingerprint.read_case", read):
        fingerprint(sites[0].index, grid="hu", classes=3, settings=settings)
    assert {call.args[1] for call in read.call_args_list} == {settings}


def test_a_damaged_case_is_left_out_within_what_the_site_bears(tmp_path: Path) -> None:
    folder = make_hospital(tmp_path / "own", cases=12)
    index = index_folder(folder, site_secret=b"a site's secret of some length")
    whole = index.split("train")
    damaged = whole[0]
    rest = replace(index, cases=tuple(case for case in index.cases if case is not damaged))
    expected = fingerprint(rest, grid="relative", classes=2, min_count=1)
    Path(str(damaged.image[0])).write_bytes(b"x" * 80)
    told: list[str] = []
    made = fingerprint(
        index, grid="relative", classes=2, min_count=1, bears=Unreadable(max_share=0.125), tell=told.append
    )
    assert made == expected
    assert made.cases == len(whole) - 1 == 7
    assert told == ["1 of 8 cases are left out, as they cannot be used: 1 image unreadable"]
    with pytest.raises(ImageError, match=damaged.token):
        fingerprint(index, grid="relative", classes=2, min_count=1)
    with pytest.raises(DataError, match=r"unreadable\.skip is false"):
        fingerprint(index, grid="relative", classes=2, min_count=1, bears=Unreadable(skip=False))
    with pytest.raises(TooFewPatientsError, match="7 training patients"):
        fingerprint(index, grid="relative", classes=2, min_count=8, bears=Unreadable())

"""What a study's own data module gives is checked, and each refusal names the case by its token alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from medfed.data.datamodule import SiteDataModule
from medfed.data.datamodules import DataModule, ListedCase
from medfed.data.own_dataset import OwnDataset, index_own, volumes_of
from medfed.data.settings import Unreadable
from medfed.data.splits import SPLITS
from medfed.errors import DataError, ImageError

SECRET = b"a secret of a hospital for tests."
IMAGE = torch.arange(24.0).reshape(1, 2, 3, 4)
LABEL = (IMAGE > 11).long()


class Made(DataModule, frozen=True, tag="made"):
    """Cases that a test makes up; `gives` and `lists` are the test's own functions."""

    serves = ("segment", "classify", "table")

    @property
    def inputs(self):
        return 1

    def cases(self, place):
        return LISTS[0](place)

    def item(self, case, needs, random):
        return GIVES[0](case, random)


def listed(place):
    return [
        ListedCase(f"case-of-Mustermann-{n}", f"Mustermann-{n // 2}", (place / str(n),)) for n in range(12)
    ]


GIVES = [lambda case, random: {"image": IMAGE.clone(), "label": LABEL.clone()}]
LISTS = [listed]


def dataset(monkeypatch, tmp_path, give, needs="segment", **options):
    monkeypatch.setitem(globals(), "GIVES", [give])
    cases = index_own(tmp_path, Made(), SECRET).cases
    return OwnDataset(cases, Made(), needs, **{"training": False, "classes": 2, **options})


WRONG = {
    "no label": ("segment", {"image": IMAGE}, "gives 'label' as NoneType, expected a tensor of torch.int64"),
    "an array": ("segment", {"image": IMAGE.numpy(), "label": LABEL}, "gives 'image' as ndarray, expected a"),
    "double": ("segment", {"image": IMAGE.double(), "label": LABEL}, "'image' as torch.float64, expected a"),
    "nan": (
        "segment",
        {"image": IMAGE / 0, "label": LABEL},
        "gives 'image' with numbers that are not finite",
    ),
    "a class too many": ("segment", {"image": IMAGE, "label": LABEL + 1}, "label with numbers that are none"),
    "another grid": (
        "segment",
        {"image": IMAGE, "label": LABEL[:, :1]},
        r"image of shape \(1, 2, 3, 4\) with a label of \(1, 1, 3, 4\), expected",
    ),
    "no class": ("classify", {"image": IMAGE}, "gives no target of the task's 2 classes"),
    "another class": ("classify", {"image": IMAGE, "target": 2}, "gives no target of the task's 2 classes"),
    "no features": ("table", {"target": 0}, "gives 'features' as NoneType"),
}


@pytest.mark.parametrize(("needs", "item", "message"), WRONG.values(), ids=WRONG.keys())
def test_what_a_task_cannot_learn_from_is_refused_by_token(monkeypatch, tmp_path, needs, item, message):
    data = dataset(monkeypatch, tmp_path, lambda case, random: item, needs)
    with pytest.raises(ImageError, match=message) as error:
        data[0]
    assert data.cases[0].token in str(error.value)
    assert "Mustermann" not in str(error.value)


def test_an_error_of_its_code_names_the_case_and_never_its_words(monkeypatch, tmp_path):
    def broken(case, random):
        raise KeyError(case.id)

    data = dataset(monkeypatch, tmp_path, broken)
    with pytest.raises(ImageError, match=r"reading it ended in KeyError \(data\.kind 'made'\)") as error:
        data[0]
    assert "Mustermann" not in str(error.value)
    monkeypatch.setitem(globals(), "LISTS", [lambda place: [broken(case, None) for case in listed(place)]])
    with pytest.raises(DataError, match=r"listing the site's cases ended in KeyError \(data\.kind 'made'\)"):
        index_own(tmp_path, Made(), SECRET)


def test_splits_are_by_patient_and_a_case_twice_is_refused(monkeypatch, tmp_path):
    index = index_own(tmp_path, Made(fractions=(0.5, 0.25, 0.25)), SECRET)
    splits = {}
    for case in index.cases:
        splits.setdefault(case.patient, set()).add(case.split)
    assert all(len(one) == 1 for one in splits.values())
    # Half of six patients is three, of two cases each.
    assert len(index.split("train")) == 6
    assert sum(len(index.split(name)) for name in SPLITS) == 12
    monkeypatch.setitem(globals(), "LISTS", [lambda place: [*listed(place), *listed(place)]])
    with pytest.raises(DataError, match="is listed twice"):
        index_own(tmp_path, Made(), SECRET)
    monkeypatch.setitem(globals(), "LISTS", [lambda place: []])
    with pytest.raises(DataError, match=r"data\.kind 'made' lists no case in the site's data"):
        index_own(tmp_path, Made(), SECRET)
    with pytest.raises(DataError, match="the site's data are not there"):
        index_own(tmp_path / "nowhere", Made(), SECRET)


def test_training_items_follow_from_seed_and_number_alone(monkeypatch, tmp_path):
    def give(case, random):
        drawn = 0.0 if random is None else random.random()
        return {"image": IMAGE + drawn, "label": LABEL.clone()}

    data = dataset(monkeypatch, tmp_path, give, training=True, seed=3)
    first, second = data[0]["image"], data[1]["image"]
    assert not torch.equal(first, second)
    torch.testing.assert_close(data[0]["image"], first, rtol=0, atol=0)
    data.set_random_state(4)
    assert not torch.equal(data[0]["image"], first)
    whole = dataset(monkeypatch, tmp_path, give)
    torch.testing.assert_close(whole[0]["image"], IMAGE, rtol=0, atol=0)


def test_a_sites_data_give_batches_and_what_is_measured(monkeypatch, tmp_path):
    affine = np.diag([2.0, 1.0, 1.0, 1.0])
    give = lambda case, random: {"image": IMAGE.clone(), "label": LABEL.clone(), "affine_ras": affine}  # noqa: E731
    monkeypatch.setitem(globals(), "GIVES", [give])
    data = SiteDataModule.open(tmp_path, Made(), "segment", site_secret=SECRET, classes=2, batch=2)
    data.leave_out(data.screen(), Unreadable())
    assert "no perturbed images are measured" in " ".join(data.notes)
    batch = next(iter(data.train_dataloader()))
    assert {key: getattr(value, "shape", None) for key, value in batch.items()} == {
        "image": (2, 1, 2, 3, 4),
        "label": (2, 1, 2, 3, 4),
        "case": None,
    }
    case = data.cases("train")[0]
    image, label = data.original(case)
    assert image.spacing_mm == (2.0, 1.0, 1.0)
    assert label is not None
    np.testing.assert_array_equal(label.array, LABEL.numpy())
    np.testing.assert_allclose(data.restored(IMAGE.numpy(), case), IMAGE.numpy())
    assert len(data.items_by_patient()) == len(data.patients("train"))


def test_without_an_affine_voxels_count_pixels():
    image, label = volumes_of({"image": IMAGE})
    assert image.info.flags == ("pixels",)
    assert label is None
    plane, _ = volumes_of({"image": IMAGE[..., 0]})
    assert plane.array.shape == (1, 2, 3, 1)


def test_a_task_that_it_does_not_serve_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"needs 'survival', and data\.kind 'made' serves segment, cl"):
        SiteDataModule.open(Path(tmp_path), Made(), "survival", site_secret=SECRET)

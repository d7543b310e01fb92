"""Labels painted from regions: overlaps, the type of the numbers, and whose image a label is of."""

from __future__ import annotations

import numpy as np
import pytest

from medfed.data.identity_digest import identity_digests
from medfed.data.label_regions import MAX_CLASS, check_classes, check_same_patient, class_dtype, paint_regions
from medfed.data.refusals import LabelClassesError, OtherPatientError
from medfed.data.volume import Info, Volume
from medfed.errors import LabelError

AFFINE = np.diag([2.0, 3.0, 4.0, 1.0])


def image(**info):
    return Volume(np.zeros((1, 2, 2, 2), np.float32), AFFINE, Info(**info))


def voxels(*indices):
    return np.array(indices, np.int64)


def painted(regions, overlap="later", **more):
    return paint_regions(regions, image(), overlap, ("one object",), **more)


def test_regions_become_numbers_on_the_images_grid():
    # Flat index 1 is (0, 0, 1), 6 is (1, 1, 0).
    label = painted({1: [voxels(1), voxels(6)], 2: [voxels(7)]})
    expected = np.zeros((1, 2, 2, 2))
    expected[0, 0, 0, 1] = expected[0, 1, 1, 0] = 1
    expected[0, 1, 1, 1] = 2
    np.testing.assert_array_equal(label.array, expected)
    np.testing.assert_array_equal(label.affine_ras, AFFINE)
    assert label.affine_ras is not AFFINE
    assert (label.info.skipped, label.info.flags, label.array.dtype) == (("one object",), (), np.uint8)


def test_shared_voxels_go_to_the_higher_number_whatever_the_order():
    for regions in ({1: [voxels(0, 1)], 2: [voxels(1)]}, {2: [voxels(1)], 1: [voxels(0, 1)]}):
        label = painted(regions, flags=("other_frame_of_reference",))
        assert label.array.reshape(-1)[:3].tolist() == [1, 2, 0]
        assert label.info.flags == ("other_frame_of_reference", "overlap")


def test_shared_voxels_are_refused_with_their_number_or_kept_in_a_channel_each():
    regions = {1: [voxels(0, 1, 2)], 3: [voxels(1, 2, 3)]}
    with pytest.raises(LabelError, match=r"^2 voxels belong to several segments; set data\.read\.overlap"):
        painted(regions, "refuse")
    channels = painted(regions, "channels").array.reshape(2, -1)
    assert channels[:, :4].tolist() == [[1, 1, 1, 0], [0, 3, 3, 3]]


def test_two_regions_of_one_class_do_not_overlap():
    label = painted({1: [voxels(0, 1), voxels(1, 2)]}, "refuse")
    assert label.array.sum() == 3
    assert label.info.flags == ()


def test_no_region_is_an_empty_label():
    assert not painted({}, "refuse").array.any()


@pytest.mark.parametrize(
    ("highest", "dtype"),
    [(0, np.uint8), (255, np.uint8), (256, np.int16), (32767, np.int16), (32768, np.int32)],
)
def test_numbers_are_as_small_as_torch_supports(highest, dtype):
    assert class_dtype(highest) is dtype


def test_a_label_of_another_patient_is_refused():
    like = image(identities=identity_digests(b"Smith", [b"1"], [b"2"]))
    with pytest.raises(OtherPatientError, match="the label is of another patient than the image"):
        check_same_patient(like, identity_digests(b"Jones", [b"1"], [b"2"]))
    assert check_same_patient(like, identity_digests(b"Smith", [b"1"], [b"9"])) == ()
    assert check_same_patient(like, ()) == ()


def test_another_frame_is_refused_only_with_another_series():
    like = image(identities=identity_digests(b"Smith", [b"1"], [b"2"]))
    with pytest.raises(LabelError, match="neither its frame of reference nor its series is this image's"):
        check_same_patient(like, identity_digests(b"Smith", [b"8"], [b"9"]))
    for series in ([b"2"], []):
        flags = check_same_patient(like, identity_digests(b"Smith", [b"8"], series))
        assert flags == ("other_frame_of_reference",)


def test_values_that_are_not_classes_are_named():
    check_classes([0, 2], 3)
    check_classes([0, MAX_CLASS - 1], None)
    with pytest.raises(LabelClassesError, match="holds the values 3, -1; the task has classes 0 to 2"):
        check_classes([0, 3, -1], 3)
    with pytest.raises(
        LabelClassesError, match="values 2, 3, 4, 5, 6 and 2 more; the task has classes 0 to 1"
    ):
        check_classes(list(range(9)), 2)
    with pytest.raises(LabelClassesError, match="classes start at 0"):
        check_classes([-1], None)

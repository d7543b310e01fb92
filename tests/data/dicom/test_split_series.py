"""Series that hold several volumes: echoes, time points, weightings, copies and gaps."""

from __future__ import annotations

import hard_series as hs
import numpy as np
import pytest
from hard_series import Series, assert_in_place, write, write_series
from pydicom.uid import generate_uid

from medfed.data.read import read
from medfed.errors import ImageError


def several(folder, series, edits):
    """Write the series once per edit; the n-th has values 1000 n larger."""
    for n, change in enumerate(edits):

        def edit(ds, k, n=n, change=change):
            change(ds, k)
            hs.put_pixels(ds, series.stored(k, intercept=series.intercept - 1000 * n))

        write_series(folder, series, edit)


def offsets(volumes):
    """Return the difference of each volume from the first, which must be the same for all voxels."""
    result = []
    for volume in volumes:
        difference = volume.array - volumes[0].array
        assert np.ptp(difference) < 1, "a volume mixes slices of several"
        result.append(round(float(difference.mean())))
    return result


@pytest.mark.parametrize(
    "time_ms",
    [
        lambda phase, k: 300.5 * phase + 11 * k,  # phases that drift from slice to slice
        lambda phase, k: 30.5 * phase + 40 * k,  # one slice through all its phases after the other
        lambda phase, k: [90, 1000, 20000][phase] + k * [10, 100, 1000][phase],  # as texts in another order
    ],
)
def test_a_cine_comes_apart_by_its_trigger_times(tmp_path, time_ms):
    series = Series(modality="MR")
    edits = [
        lambda ds, k, phase=phase: setattr(ds, "TriggerTime", f"{time_ms(phase, k):.1f}")
        for phase in range(3)
    ]
    several(tmp_path, series, edits)
    volumes = read(tmp_path)
    assert_in_place(volumes[0], shape=(7, 5, 6))
    assert offsets(volumes) == [0, 1000, 2000]


def test_two_elements_tell_four_volumes_apart(tmp_path):
    def change(ds, acquisition, inversion):
        ds.AcquisitionNumber, ds.InversionTime = acquisition, inversion

    edits = [lambda ds, k, a=a, i=i: change(ds, a, i) for a in (1, 2) for i in (100, 200)]
    several(tmp_path, Series(modality="MR"), edits)
    assert offsets(read(tmp_path)) == [0, 1000, 2000, 3000]


def _philips(ds, b):
    ds.add_new(0x20010010, "LO", "Philips Imaging DD 001")
    ds.add_new(0x20011003, "FL", float(b))


def _ge(ds, b):
    ds.add_new(0x00430010, "LO", "GEMS_PARM_01")
    ds.add_new(0x00431039, "IS", [b, 8, 0, 0])


def _siemens(ds, b):
    ds.add_new(0x00190010, "LO", "SIEMENS MR HEADER")
    ds.add_new(0x0019100C, "IS", b)


@pytest.mark.parametrize("maker", [_philips, _ge, _siemens])
def test_b_values_in_private_elements(tmp_path, maker):
    several(tmp_path, Series(modality="MR"), [lambda ds, k, b=b: maker(ds, b) for b in (0, 500, 1000)])
    assert offsets(read(tmp_path)) == [0, 1000, 2000]


def test_directions_of_one_weighting_come_apart(tmp_path):
    def change(ds, b, direction):
        ds.DiffusionBValue = b
        if direction:
            ds.DiffusionGradientOrientation = direction

    weightings = [
        (0.0, None),
        (1000.0, [0.0, 0.0, 1.0]),
        (1000.0, [1.0, 0.0, 0.0]),
        (2000.0, [1.0, 0.0, 0.0]),
    ]
    several(tmp_path, Series(modality="MR"), [lambda ds, k, w=w: change(ds, *w) for w in weightings])
    assert sorted(offsets(read(tmp_path))) == [0, 1000, 2000, 3000]


@pytest.mark.parametrize(
    "invent",
    [
        lambda ds, k: setattr(ds, "FrameOfReferenceUID", generate_uid()),
        lambda ds, k: setattr(ds, "TemporalPositionIdentifier", k + 1),
        lambda ds, k: setattr(ds, "EchoTime", f"{4.6 + 0.002 * k:.4f}"),
        lambda ds, k: k % 2 or delattr(ds, "FrameOfReferenceUID"),
        lambda ds, k: k > 2 or delattr(ds, "PatientBirthDate"),
    ],
)
def test_an_element_that_differs_in_every_slice_or_is_lost_in_some_separates_nothing(tmp_path, invent):
    write_series(tmp_path, Series(modality="MR"), lambda ds, k: invent(ds, k) and None)
    volumes = read(tmp_path)
    assert len(volumes) == 1
    assert_in_place(volumes[0], shape=(7, 5, 6))


def test_a_thick_and_a_thin_reconstruction_come_apart(tmp_path):
    series = Series(shape=(9, 5, 7), step_mm=1.0)
    write_series(tmp_path, series, lambda ds, k: setattr(ds, "SliceThickness", 1.0))
    write_series(tmp_path, series, lambda ds, k: setattr(ds, "SliceThickness", 4.0), order=(0, 4, 8))
    for k, path in zip((0, 4, 8), sorted(tmp_path.iterdir())[-3:], strict=True):
        ds = hs.make_slice(series, k)
        ds.SliceThickness = 4.0
        hs.put_pixels(ds, series.stored(k) + 2)
        write(ds, path)
    thin, thick = sorted(read(tmp_path), key=lambda volume: volume.spacing_mm[2])
    assert_in_place(thin, shape=(7, 5, 9))
    assert thick.shape == (7, 5, 3)
    assert thick.spacing_mm[2] == pytest.approx(4)
    np.testing.assert_allclose(thick.array[0], thin.array[0][:, :, ::4] + 1, atol=1e-3)


@pytest.mark.parametrize("offset_mm", [1.0, 1.25])
def test_acquisitions_whose_slices_interleave_come_apart(tmp_path, offset_mm):
    series = Series()
    write_series(tmp_path, series, lambda ds, k: setattr(ds, "ConvolutionKernel", "B30f"))
    other = Series(uids=series.uids, origin_mm=(-10.0, -20.0, 30.0 + offset_mm))
    write_series(tmp_path, other, lambda ds, k: setattr(ds, "ConvolutionKernel", "B70f"))
    volumes = read(tmp_path)
    assert len(volumes) == 2
    for volume in volumes:
        assert_in_place(volume, shape=(7, 5, 6))


def test_a_gap_between_two_acquisitions_is_a_gap(tmp_path):
    write_series(
        tmp_path,
        Series(shape=(7, 5, 7)),
        lambda ds, k: setattr(ds, "AcquisitionNumber", 1 + (k > 3)),
        order=(0, 1, 2, 4, 5, 6),
    )
    with pytest.raises(ImageError, match="1 slice is missing"):
        read(tmp_path)


def test_a_time_point_that_lacks_a_slice_is_named(tmp_path):
    """Three times of six slices, told apart by their time; of the second the fourth slice, at 30 +
    7.5 mm, is lost.
    """
    series = Series(modality="MR")
    for time in range(3):

        def edit(ds, k, time=time):
            ds.AcquisitionTime = f"10{time:02d}00"
            hs.put_pixels(ds, series.stored(k) + 100 * time)

        write_series(tmp_path / str(time), series, edit, order=[k for k in range(6) if (time, k) != (1, 3)])
    said = r"3 images at each position, but fewer at 1 of the 6, the first 37\.50 mm .* lacks slices"
    with pytest.raises(ImageError, match=said):
        read(tmp_path)


def test_an_object_in_parts_is_one_volume(tmp_path):
    series = Series(modality="MR")
    for number, ks in enumerate(((0, 3, 4), (5, 1, 2)), start=1):
        ds = hs.enhanced(series, [{"k": k} for k in ks])
        ds.ConcatenationUID, ds.InConcatenationNumber = "1.2.3", number
        write(ds, tmp_path / f"{number}.dcm")
    volumes = read(tmp_path)
    assert len(volumes) == 1
    assert_in_place(volumes[0], shape=(7, 5, 6))


def test_copies_are_dropped_with_a_line_and_conflicts_refused(tmp_path):
    paths = write_series(tmp_path, Series())
    (tmp_path / "copy.dcm").write_bytes(paths[2].read_bytes())
    other = hs.make_slice(Series(uids=_uids(paths[0])), 3)  # another instance of the same image
    write(other, tmp_path / "again.dcm")
    (volume,) = read(tmp_path)
    assert_in_place(volume, shape=(7, 5, 6))
    assert sum("copy" in line for line in volume.info.skipped) == 2
    hs.put_pixels(other, hs.Series().stored(2))
    write(other, tmp_path / "again.dcm")
    with pytest.raises(ImageError, match=r"2 different images at one position \(37\.50 mm"):
        read(tmp_path)


def _uids(path):
    import pydicom

    ds = pydicom.dcmread(path)
    return {"study": ds.StudyInstanceUID, "series": ds.SeriesInstanceUID, "frame": ds.FrameOfReferenceUID}


@pytest.mark.parametrize(
    "element, values",
    [
        ("PatientID", ["A", "B"]),
        ("EchoTime", ["4.6", "9.2"]),
        ("TemporalPositionIdentifier", ["1", "2"]),
        ("DiffusionBValue", [0.0, 1000.0]),
        ("AcquisitionNumber", ["1", "2"]),
        ("InversionTime", ["100", "200"]),
        ("AcquisitionTime", ["101500.0", "101600.0"]),
        ("ImageType", [["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "P"]]),
    ],
)
def test_volumes_that_share_a_series_are_told_apart(tmp_path, element, values):
    series = Series(modality="MR")
    for n, value in enumerate(values):

        def edit(ds, k, n=n, value=value):
            setattr(ds, element, value)
            hs.put_pixels(ds, series.stored(k, intercept=series.intercept - 1000 * n))

        write_series(tmp_path, series, edit)
    volumes = read(tmp_path)
    assert len(volumes) == 2
    assert_in_place(volumes[0])
    np.testing.assert_allclose(volumes[1].array - volumes[0].array, 1000, atol=0.5)


def test_time_points_are_told_apart_by_times_that_differ_from_slice_to_slice(tmp_path):
    series = Series()
    for n in range(2):

        def edit(ds, k, n=n):
            ds.ContentTime = f"1200{n * 30 + k:02d}.0"
            hs.put_pixels(ds, series.stored(k, intercept=series.intercept - 1000 * n))

        write_series(tmp_path, series, edit)
    volumes = read(tmp_path)
    assert len(volumes) == 2
    np.testing.assert_allclose(volumes[1].array - volumes[0].array, 1000, atol=0.5)

"""Compressed frames: their fragments, and the size that their codestream announces."""

from __future__ import annotations

import hard_series as hs
import pydicom
import pytest
from hard_series import Series, assert_in_place, write, write_series
from pydicom import uid
from pydicom.encaps import encapsulate

from medfed.data.read import read
from medfed.errors import ImageError


@pytest.mark.parametrize(
    "syntax", [uid.RLELossless, uid.JPEG2000Lossless, uid.ExplicitVRLittleEndian], ids=lambda s: s.name
)
def test_compressed_multiframe_and_its_frame_count(tmp_path, syntax):
    series = Series(shape=(4, 40, 36), modality="MR")
    ds = hs.enhanced(series, [{"k": k} for k in (1, 0, 2, 3)])
    if syntax != uid.ExplicitVRLittleEndian:
        ds.compress(syntax, generate_instance_uid=False)
    path = write(ds, tmp_path / "a.dcm")
    assert_in_place(read(path)[0], shape=(36, 40, 4))
    del ds.PerFrameFunctionalGroupsSequence[3]
    ds.NumberOfFrames = 3
    with pytest.raises(ImageError, match=r"pixel data hold 11520 bytes|4 compressed fragments and 3 frames"):
        read(write(ds, path))
    ds.NumberOfFrames = 5
    with pytest.raises(ImageError, match="5 frames are announced, 3 have a position"):
        read(write(ds, path))


def test_two_images_in_one_frame_are_refused(tmp_path):
    ds = hs.make_slice(Series(shape=(1, 40, 36)), 0)
    ds.compress(uid.JPEG2000Lossless, generate_instance_uid=False)
    (frame,) = pydicom.encaps.generate_frames(ds.PixelData, number_of_frames=1)
    ds.PixelData = encapsulate([frame, frame], has_bot=False)
    with pytest.raises(ImageError, match="2 compressed images where the header announces 1"):
        read(write(ds, tmp_path / "a.dcm"))


def test_one_frame_in_several_fragments(tmp_path):
    series = Series(shape=(4, 40, 36))

    def edit(ds, k):
        ds.compress(uid.JPEG2000Lossless, generate_instance_uid=False)
        (frame,) = pydicom.encaps.generate_frames(ds.PixelData, number_of_frames=1)
        ds.PixelData = encapsulate([frame], fragments_per_frame=3)

    write_series(tmp_path, series, edit)
    assert_in_place(read(tmp_path)[0])


def test_a_codestream_of_another_size_is_refused_before_it_is_decoded(tmp_path):
    ds = hs.make_slice(Series(shape=(1, 40, 36)), 0)
    ds.compress(uid.JPEG2000Lossless, generate_instance_uid=False)
    ds.Rows = 39
    with pytest.raises(ImageError, match=r"compressed image is 40 x 36 .*announces 39 x 36"):
        read(write(ds, tmp_path / "a.dcm"))

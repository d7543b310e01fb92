"""Siemens mosaics are recognised and refused."""

from __future__ import annotations

import hard_series as hs
import pytest
from hard_series import Series, write

from medfed.data.read import read
from medfed.errors import ImageError


@pytest.mark.parametrize("private", [True, False])
def test_a_mosaic_that_lost_its_image_type_is_refused(tmp_path, private):
    import struct

    ds = hs.make_slice(Series(modality="MR"), 0)
    if private:
        ds.add_new(0x00190010, "LO", "SIEMENS MR HEADER")
        ds.add_new(0x0019100A, "US", 35)
    else:
        name = b"NumberOfImagesInMosaic".ljust(64, b"\0")
        element = (
            name
            + struct.pack("<i4sii", 1, b"US\0\0", 10, 6)
            + struct.pack("<i4i", 77, 2, 2, 77, 2)
            + b"35\0\0"
        )
        ds.add_new(0x00291010, "OB", b"SV10\4\3\2\1" + element + bytes(40))
    with pytest.raises(ImageError, match="Siemens mosaic"):
        read(write(ds, tmp_path / "a.dcm"))

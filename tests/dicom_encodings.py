"""The transfer syntaxes that are read, and functions that encode a dataset in each of them."""

from __future__ import annotations

import struct

import numpy as np
from pydicom import uid
from pydicom.encaps import encapsulate

JPEG_LOSSLESS = uid.JPEGLosslessSV1


def jpeg_lossless(ds):
    """Compress by ITU-T T.81 annex H, first-order prediction, with a flat Huffman table."""
    words = np.frombuffer(ds.PixelData, "<u2").reshape(ds.Rows, ds.Columns).astype(int)
    guess = np.empty_like(words)
    guess[:, 1:] = words[:, :-1]
    guess[1:, 0] = words[:-1, 0]
    guess[0, 0] = 1 << 15
    bits = []
    for difference in (words - guess).ravel():
        difference = (difference + (1 << 15)) % (1 << 16) - (1 << 15)
        difference = 1 << 15 if difference == -(1 << 15) else difference
        size = int(abs(difference)).bit_length()
        bits.append(f"{size:05b}")
        if 0 < size < 16:
            bits.append(f"{difference if difference > 0 else difference + (1 << size) - 1:0{size}b}")
    text = "".join(bits)
    text += "1" * (-len(text) % 8)
    scan = int(text, 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\0")
    frame = struct.pack(">HHBHHBBBB", 0xFFC3, 11, 16, ds.Rows, ds.Columns, 1, 1, 0x11, 0)
    table = (
        struct.pack(">HHB", 0xFFC4, 2 + 1 + 16 + 17, 0)
        + bytes([0, 0, 0, 0, 17] + [0] * 11)
        + bytes(range(17))
    )
    head = struct.pack(">HHBBBBBB", 0xFFDA, 8, 1, 1, 0, 1, 0, 0)
    ds.PixelData = encapsulate([b"\xff\xd8" + frame + table + head + scan + b"\xff\xd9"])
    ds["PixelData"].is_undefined_length = True
    ds.file_meta.TransferSyntaxUID = JPEG_LOSSLESS


def encode(ds, syntax):
    if syntax == uid.ExplicitVRBigEndian:
        swapped = (
            np.frombuffer(ds.PixelData, "<u2").astype(">u2").tobytes() if ds.BitsAllocated == 16 else None
        )
        ds.PixelData = swapped if swapped is not None else ds.PixelData
        ds.file_meta.TransferSyntaxUID = syntax
    elif syntax in (
        uid.ImplicitVRLittleEndian,
        uid.ExplicitVRLittleEndian,
        uid.DeflatedExplicitVRLittleEndian,
    ):
        ds.file_meta.TransferSyntaxUID = syntax
    elif syntax == JPEG_LOSSLESS:
        jpeg_lossless(ds)
    else:
        ds.compress(syntax, generate_instance_uid=False)


SYNTAXES = [
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    uid.DeflatedExplicitVRLittleEndian,
    uid.RLELossless,
    uid.JPEGLSLossless,
    uid.JPEG2000Lossless,
    JPEG_LOSSLESS,
]

"""Limits on what a file may decompress to, so that a few kilobytes cannot fill a hospital's memory."""

from __future__ import annotations

from medfed.errors import ImageError

# A whole-body CT of 512 x 512 x 2000 voxels is 2.1 GB as float32; a larger volume is not read by default.
MAX_VOLUME_BYTES = 2_200_000_000
# A compressed image that expands more than this is a bomb or nearly empty: noise keeps real ones below 20.
MAX_RATIO = 200
# The same for DICOM, where run lengths alone could expand 64 times; lossy compression reaches 30.
MAX_DICOM_RATIO = 50
# Below this size even an empty image is harmless, and labels, which are nearly empty, pass.
UNLIMITED_RATIO_BYTES = 256_000_000
# The same for one frame, as a decoder needs several times its size: a mammogram takes 27 MB.
FRAME_UNLIMITED_RATIO_BYTES = 64_000_000


def check_size(
    unpacked: int,
    packed: int | None,
    voxels: int,
    what: str,
    max_bytes: int = MAX_VOLUME_BYTES,
    unlimited_ratio_bytes: int = UNLIMITED_RATIO_BYTES,
    max_ratio: int = MAX_RATIO,
) -> None:
    """Refuse an image that is too large, before it is decompressed.

    Args:
        unpacked: number of bytes that the header announces.
        packed: number of bytes in the file, or None if the pixels are not compressed.
        voxels: number of voxels; each takes four bytes as float32.
        what: name of the object for the message, such as 'a series'.
        max_bytes: size limit of the float32 volume.
        unlimited_ratio_bytes: up to this size any ratio is accepted.
        max_ratio: limit of unpacked to packed bytes.

    Raises:
        ImageError: if it is too large, or expands more than a real image.
    """
    if voxels * 4 > max_bytes:
        raise ImageError(
            f"{what} announces {voxels} voxels, {voxels * 4 / 1e9:.3g} GB as float32; at most"
            f" {max_bytes / 1e9:.3g} GB are read. If it is real, set data.read.max_bytes in the study, or"
            " read.max_bytes in the site file (max_bytes of medfed.read), to more"
        )
    if packed is not None and unpacked > unlimited_ratio_bytes and unpacked > max_ratio * max(packed, 1):
        raise ImageError(
            f"{what} would grow from {packed} to {unpacked} bytes, {unpacked / max(packed, 1):.0f} times;"
            f" real images stay below {max_ratio}. It is empty, damaged or meant to fill the memory; store it"
            " uncompressed"
        )

"""How much a file may unpack to, so that a few kilobytes cannot fill a hospital's memory."""

from __future__ import annotations

from medfed.errors import ImageError

# A whole-body CT of 512 x 512 x 2000 voxels is 2.1 GB as float32; a volume above this is not read by default.
MAX_VOLUME_BYTES = 2_200_000_000
# A compressed image that grows more than this is a bomb or nearly empty: noise keeps real ones below 20.
MAX_EXPANSION = 200
# The same for DICOM, where run lengths alone could grow 64 times; what is compressed with loss
# grows 30 times.
MAX_DICOM_EXPANSION = 50
# Below this size even an empty image is harmless, and labels, which are nearly empty, pass.
EXPANSION_FREE_BYTES = 256_000_000
# One frame of a decoder, which needs several times its size while it works: a mammogram takes 27 MB.
FRAME_FREE_BYTES = 64_000_000


def check_size(
    unpacked: int,
    packed: int | None,
    voxels: int,
    what: str,
    max_bytes: int = MAX_VOLUME_BYTES,
    free_bytes: int = EXPANSION_FREE_BYTES,
    growth: int = MAX_EXPANSION,
) -> None:
    """Refuse an image before it is unpacked.

    Args:
        unpacked: bytes that the header announces.
        packed: bytes in the file, or None where the pixels are not compressed.
        voxels: their number; each takes four bytes as float32.
        what: what is checked, for the message.
        max_bytes: the largest float32 volume.
        free_bytes: what may unpack from however little.
        growth: how many times more may.

    Raises:
        ImageError: if it is too large, or grows too much for a real image.
    """
    if voxels * 4 > max_bytes:
        raise ImageError(
            f"{what} announces {voxels} voxels, {voxels * 4 / 1e9:.1f} GB as float32; at most"
            f" {max_bytes / 1e9:.1f} GB"
            " are read. If it is real, read it with a larger max_bytes"
        )
    if packed is not None and unpacked > free_bytes and unpacked > growth * max(packed, 1):
        raise ImageError(
            f"{what} would grow from {packed} to {unpacked} bytes, {unpacked / max(packed, 1):.0f}"
            " times; real images"
            f" stay below {growth}. It is empty, damaged or meant to fill the memory; store it"
            " uncompressed"
        )

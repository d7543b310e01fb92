"""Decoding in subprocesses: for the decoder that aborts on damaged data, and for the slow one.

Of 10,000 mutated files one made GDCM, which decodes JPEG, call abort(). No `except` catches that, and a
hospital's training would be lost. So GDCM runs in a child process that may die or hang; the parent then
refuses the image and starts another child. A child that decodes JPEG imports GDCM and nothing else, starts
once in a tenth of a second, and a slice crosses to it and back in half a millisecond. Several children decode
the slices of a series in parallel, which `iter_words` requests ahead. JPEG 2000, whose decoder takes 16 ms
per slice and holds Python's lock, is decoded here only for that reason.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import struct
import subprocess
import sys
from collections import deque
from contextlib import suppress
from typing import IO, Any, NamedTuple, cast

from numpy.typing import NDArray

# No slice takes this long; a decoder that does is hanging.
TIMEOUT_S = 15.0
# Limit of processes for one series, besides the number of processors: the parent's part (headers, scaling)
# takes a fifth of a slice's time, so that more would wait for it.
MAX_PROCESSES = 4
# Size of a pipe, if the system allows it: a whole slice instead of the usual 64 KiB, which saves context
# switches.
PIPE_BYTES = 1 << 20
_LENGTH = struct.Struct("<I")
# The head of an answer: whether the frame was decoded, and the length of its words.
_ANSWER = struct.Struct("<?I")
# A child keeps the memory of one frame for the next. Otherwise glibc returns it to the system, and a frame of
# 512 x 512 costs 1100 page faults, a third of its time (3 of 9 CPU ms).
_KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(128 << 20),
    "MALLOC_TOP_PAD_": str(8 << 20),
}
# JPEG Extended, of which GDCM decodes 12 bits incorrectly.
EXTENDED = "1.2.840.10008.1.2.4.51"


class CodedFrame(NamedTuple):
    """A compressed frame's description for its decoder; `plugin` is pydicom's name of the decoder."""

    syntax: str
    plugin: str
    rows: int
    columns: int
    allocated: int
    stored: int
    signed: bool
    samples: int = 1
    photometric: str = "MONOCHROME2"


def decode_in_process(packed: bytes, coded: CodedFrame) -> NDArray[Any]:
    """Return the words of one frame, (rows, columns) or (rows, columns, samples), decoded in this process."""
    from pydicom.encaps import encapsulate
    from pydicom.pixels.decoders.base import get_decoder

    options: dict[str, Any] = {
        "rows": coded.rows,
        "columns": coded.columns,
        "samples_per_pixel": coded.samples,
        "number_of_frames": 1,
        "bits_allocated": coded.allocated,
        "bits_stored": coded.stored,
        "pixel_representation": int(coded.signed),
        "photometric_interpretation": coded.photometric,
        "planar_configuration": 0,
        "pixel_keyword": "PixelData",
    }
    array: NDArray[Any]
    array, _ = get_decoder(coded.syntax).as_array(
        encapsulate([packed]), raw=True, index=0, decoding_plugin=coded.plugin, **options
    )
    return array


def decode_in_subprocess(packed: bytes, coded: CodedFrame) -> bytearray:
    """Return the words of one frame, decoded in a subprocess; concurrent threads use different ones.

    Raises:
        ImageError: if the decoder fails, dies or hangs.
    """
    from medfed.errors import ImageError  # the child runs this file alone, without the package

    answer = _pool.decode(json.dumps(coded).encode() + b"\n" + packed)
    if answer is None:
        raise ImageError(
            "the compressed pixels make the decoder die or hang; the file is damaged, copy it again"
        )
    decoded, words = answer
    if not decoded:
        raise ImageError("the compressed pixels cannot be decoded; the file is damaged, copy it again")
    return words


def max_processes() -> int:
    """Return the number of frames decoded in parallel: one in a worker process of a data loader."""
    import multiprocessing

    if multiprocessing.parent_process() is not None:
        return 1
    return min(MAX_PROCESSES, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)


class _DecoderPool:
    """Decoder processes, started on first use and kept."""

    def __init__(self) -> None:
        self._idle: deque[subprocess.Popen[bytes]] = deque()  # whose append and pop are safe between threads

    def decode(self, request: bytes) -> tuple[bool, bytearray] | None:
        """Return whether a child decoded the frame, and its words; None if the child died or hung."""
        child = None
        with suppress(IndexError):
            child = self._idle.pop()
        if child is None or child.poll() is not None:
            _end_child(child)
            child = _start_child()
        answer = _request(child, request)
        if answer is None:
            _end_child(child)
        else:
            self._idle.append(child)
        return answer

    def end(self) -> None:
        """End every idle child."""
        with suppress(IndexError):
            while True:
                _end_child(self._idle.pop())

    def forget(self) -> None:
        """Close the pipes that a forked process inherited: the children belong to its parent."""
        for child in self._idle:
            _close_pipes(child)
            child.returncode = 0  # so that this process does not wait for its end
        self._idle.clear()


def _start_child() -> subprocess.Popen[bytes]:
    # This interpreter runs this file, whatever the working folder.
    child = subprocess.Popen(
        [sys.executable, "-P", os.path.abspath(__file__)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
        env={**os.environ, **_KEEP_MEMORY},
    )
    with suppress(OSError, AttributeError, ImportError):  # not Linux, or no larger pipe for this account
        import fcntl

        for stream in (child.stdin, child.stdout):
            fcntl.fcntl(cast(IO[bytes], stream), fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    return child


def _request(child: subprocess.Popen[bytes], request: bytes) -> tuple[bool, bytearray] | None:
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        _write(child.stdin.fileno(), _LENGTH.pack(len(request)) + request)
        head = _read_exactly(child.stdout.fileno(), _ANSWER.size, TIMEOUT_S)
        if head is None:
            return None
        decoded, length = _ANSWER.unpack(head)
        words = _read_exactly(child.stdout.fileno(), length, TIMEOUT_S)
        return None if words is None else (decoded, words)
    except OSError:
        return None


def _write(pipe: int, content: bytes) -> None:
    remaining = memoryview(content)
    while remaining:
        remaining = remaining[os.write(pipe, remaining) :]


def _read_exactly(pipe: int, length: int, timeout_s: float | None) -> bytearray | None:
    """Return `length` bytes of a pipe, or None if it ends early or nothing arrives in time."""
    content = bytearray(length)
    remaining = memoryview(content)
    while remaining:
        if timeout_s is not None and not select.select([pipe], [], [], timeout_s)[0]:
            return None
        count = os.readv(pipe, [remaining])
        if not count:
            return None
        remaining = remaining[count:]
    return content


def _end_child(child: subprocess.Popen[bytes] | None) -> None:
    if child is not None:
        child.kill()
        child.wait()
        _close_pipes(child)


def _close_pipes(child: subprocess.Popen[bytes]) -> None:
    for stream in (child.stdin, child.stdout):
        if stream is not None:
            stream.close()


_pool = _DecoderPool()
atexit.register(_pool.end)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.forget)


# --- the child ----------------------------------------------------------------------------------------------


def _serve() -> None:
    """Answer requests until the parent closes the pipe."""
    answers = os.dup(1)
    os.dup2(2, 1)  # so that nothing a decoder prints is mixed into the answers
    while True:
        head = _read_exactly(0, _LENGTH.size, None)
        request = None if head is None else _read_exactly(0, _LENGTH.unpack(head)[0], None)
        if request is None:
            return
        description, _, packed = request.partition(b"\n")
        coded = CodedFrame(*json.loads(description))
        decoded, words = True, b""
        try:
            if coded.plugin == "gdcm":
                words = _decode_with_gdcm(bytes(packed), coded)
            else:
                words = decode_in_process(bytes(packed), coded).tobytes()
        except Exception:  # noqa: BLE001 - a decoder may fail in any way; the answer says so
            decoded = False
        _write(answers, _ANSWER.pack(decoded, len(words)))
        _write(answers, words)


def _decode_with_gdcm(packed: bytes, coded: CodedFrame) -> bytes:
    """Return a frame's words from GDCM, used as pydicom's plugin does, but without importing pydicom."""
    import gdcm

    if coded.syntax == EXTENDED and coded.stored != 8:
        raise ValueError("GDCM decodes JPEG Extended of 8 bits only")
    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(packed)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((coded.columns, coded.rows, 1))
    image.SetDataElement(element)
    kind = gdcm.PhotometricInterpretation.GetPIType(coded.photometric)
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(kind))
    if coded.samples > 1:
        image.SetPlanarConfiguration(0)
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(coded.syntax)))
    pixel = (coded.samples, coded.allocated, coded.stored, coded.stored - 1, coded.signed)
    image.SetPixelFormat(gdcm.PixelFormat(*pixel))
    words: bytes = image.GetBuffer().encode("utf-8", "surrogateescape")  # GDCM returns bytes as text
    return words


if __name__ == "__main__":
    _serve()

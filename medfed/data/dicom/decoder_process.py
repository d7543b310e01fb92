"""Decoding in processes of its own: for the decoder that aborts on damaged data, and for the slow one.

Of 10,000 mutated files one made GDCM, which reads JPEG, call abort(), which no `except` catches: a hospital's
training would be gone. So it runs in a child that may die or hang; the parent then refuses the image and
starts another. A child that decodes JPEG imports GDCM and nothing else, starts in a tenth of a second, once,
and a slice crosses to it and back in half a millisecond. As they are processes there may be several, so that
the slices of a series, which `iter_words` asks for ahead, are decoded beside each other. JPEG 2000, of which
a slice takes 16 ms and whose decoder holds Python's lock, comes here for that alone.
"""

from __future__ import annotations

import atexit
import io
import os
import select
import struct
import subprocess
import sys
import threading
from contextlib import suppress
from typing import Any, NamedTuple

from numpy.typing import NDArray

# No slice takes this long; a decoder that does hangs.
TIMEOUT_S = 15.0
# A series is read by as many processes as there are processors, and no more than these: the parent's own part
# (headers, scaling) takes a fifth of a slice's time, so that more would wait for it.
MAX_PROCESSES = 4
# What a pipe holds, where the system allows it: a whole slice, instead of the usual 64 KiB at a time with a
# change of process between.
PIPE_BYTES = 1 << 20
# rows, columns, allocated, stored, signed, length of the syntax, of the decoder's name, of the pixels
_HEAD = struct.Struct("<HHHHHHHI")
_LENGTH = struct.Struct("<I")
# Of an answer: whether it could be decoded, and its length.
_ANSWER = struct.Struct("<?I")
# A child keeps the memory of one frame for the next. Else glibc gives it back, and a frame of 512 x 512 costs
# 1100 page faults, a third of its time (3 of 9 CPU ms).
_KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(128 << 20),
    "MALLOC_TOP_PAD_": str(8 << 20),
}
# JPEG Extended: GDCM decodes 12 bits of it wrongly.
EXTENDED = "1.2.840.10008.1.2.4.51"


class CodedFrame(NamedTuple):
    """What a decoder is told of a frame's bytes; `plugin` is pydicom's name for the decoder."""

    syntax: str
    plugin: str
    rows: int
    columns: int
    allocated: int
    stored: int
    signed: bool


def decode_in_process(packed: bytes, coded: CodedFrame) -> NDArray[Any]:
    """Return the decoded words of one frame, (rows, columns), decoded in this process."""
    from pydicom.encaps import encapsulate
    from pydicom.pixels import get_decoder

    options: dict[str, Any] = {
        "rows": coded.rows,
        "columns": coded.columns,
        "samples_per_pixel": 1,
        "number_of_frames": 1,
        "bits_allocated": coded.allocated,
        "bits_stored": coded.stored,
        "pixel_representation": int(coded.signed),
        "photometric_interpretation": "MONOCHROME2",
        "pixel_keyword": "PixelData",
    }
    array, _ = get_decoder(coded.syntax).as_array(
        encapsulate([packed]), raw=True, index=0, decoding_plugin=coded.plugin, **options
    )
    return array


def decode_in_subprocess(packed: bytes, coded: CodedFrame) -> bytearray:
    """Return the decoded words of one frame; threads that ask at once are answered by a process each.

    Raises:
        ImageError: if the decoder fails, dies or hangs.
    """
    from medfed.errors import ImageError  # the child runs this file alone, without the package

    names = coded.syntax.encode(), coded.plugin.encode()
    head = _HEAD.pack(*coded[2:], *map(len, names), len(packed))
    answer = _pool.ask(b"".join((head, *names, packed)))
    if answer is None:
        raise ImageError(
            "the compressed pixels make the decoder die or hang; the file is damaged, copy it again"
        )
    decoded, words = answer
    if not decoded:
        raise ImageError("the compressed pixels cannot be decoded; the file is damaged, copy it again")
    return words


def max_processes() -> int:
    """Return how many frames are decoded beside each other; a worker of several makes do with one."""
    import multiprocessing

    if multiprocessing.parent_process() is not None:
        return 1
    return min(MAX_PROCESSES, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)


class _DecoderPool:
    """The processes that decode, started when they are first needed and kept."""

    def __init__(self) -> None:
        self._idle: list[subprocess.Popen[bytes]] = []
        self._lock = threading.Lock()

    def ask(self, request: bytes) -> tuple[bool, bytearray] | None:
        """Return whether a child could decode, and what; None where it died or hung."""
        with self._lock:
            child = self._idle.pop() if self._idle else None
        if child is None or child.poll() is not None:
            _end(child)
            child = _started()
        answer = _asked(child, request)
        if answer is None:
            _end(child)
        else:
            with self._lock:
                self._idle.append(child)
        return answer

    def end(self) -> None:
        """End every child that is not at work."""
        with self._lock:
            ended, self._idle = self._idle, []
        for child in ended:
            _end(child)

    def forget(self) -> None:
        """Let go of the pipes that a forked process inherits: the children are its parent's."""
        for child in self._idle:
            _close(child)
            child.returncode = 0  # so that its end is not waited for here
        self.__init__()  # type: ignore[misc]


def _started() -> subprocess.Popen[bytes]:
    # Of this interpreter, of this very file, whatever the working folder; nothing of the site's environment
    # is needed.
    child = subprocess.Popen(
        [sys.executable, "-P", os.path.abspath(__file__)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
        env={**os.environ, **_KEEP_MEMORY},
    )
    for stream in (child.stdin, child.stdout):
        assert stream is not None
        _widen(stream.fileno())
    return child


def _widen(pipe: int) -> None:
    with suppress(OSError, AttributeError, ImportError):  # not Linux, or no larger pipe for this account
        import fcntl

        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)


def _asked(child: subprocess.Popen[bytes], request: bytes) -> tuple[bool, bytearray] | None:
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        _write(child.stdin.fileno(), _LENGTH.pack(len(request)) + request)
        head = _exactly(child.stdout.fileno(), _ANSWER.size, TIMEOUT_S)
        if head is None:
            return None
        decoded, length = _ANSWER.unpack(head)
        words = _exactly(child.stdout.fileno(), length, TIMEOUT_S)
        return None if words is None else (decoded, words)
    except OSError:
        return None


def _write(pipe: int, content: bytes) -> None:
    left = memoryview(content)
    while left:
        left = left[os.write(pipe, left) :]


def _exactly(pipe: int, length: int, timeout_s: float | None) -> bytearray | None:
    """Return `length` bytes of a pipe, None where it ends before or nothing comes in time."""
    found = bytearray(length)
    left = memoryview(found)
    while left:
        if timeout_s is not None and not select.select([pipe], [], [], timeout_s)[0]:
            return None
        count = os.readv(pipe, [left])
        if not count:
            return None
        left = left[count:]
    return found


def _end(child: subprocess.Popen[bytes] | None) -> None:
    if child is not None:
        child.kill()
        child.wait()
        _close(child)


def _close(child: subprocess.Popen[bytes]) -> None:
    for stream in (child.stdin, child.stdout):
        if stream is not None:
            stream.close()


_pool = _DecoderPool()
atexit.register(lambda: _pool.end())
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _pool.forget())


# --- the child ----------------------------------------------------------------------------------------------


def _serve() -> None:
    """Answer requests until the parent closes the pipe."""
    answers = os.dup(1)
    os.dup2(2, 1)  # whatever a decoder prints does not get among the answers
    while True:
        head = _exactly(0, _LENGTH.size, None)
        request = None if head is None else _exactly(0, _LENGTH.unpack(head)[0], None)
        if request is None:
            return
        *described, syntax_length, plugin_length, length = _HEAD.unpack_from(request)
        pieces = io.BytesIO(request)
        pieces.seek(_HEAD.size)
        syntax, plugin = pieces.read(syntax_length).decode(), pieces.read(plugin_length).decode()
        decoded, words = True, b""
        try:
            words = _words(pieces.read(length), CodedFrame(syntax, plugin, *described))
        except Exception:
            decoded = False
        _write(answers, _ANSWER.pack(decoded, len(words)))
        _write(answers, words)


def _words(packed: bytes, coded: CodedFrame) -> bytes:
    """Return a frame's decoded words, little endian."""
    return _gdcm(packed, coded) if coded.plugin == "gdcm" else decode_in_process(packed, coded).tobytes()


def _gdcm(packed: bytes, coded: CodedFrame) -> bytes:
    """Return a frame's decoded words, as pydicom's plugin asks GDCM for them, without pydicom around it."""
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
    kind = gdcm.PhotometricInterpretation.GetPIType("MONOCHROME2")
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(kind))
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(coded.syntax)))
    image.SetPixelFormat(gdcm.PixelFormat(1, coded.allocated, coded.stored, coded.stored - 1, coded.signed))
    return image.GetBuffer().encode("utf-8", "surrogateescape")  # its bytes come as text


if __name__ == "__main__":
    _serve()

"""Decoding in a process of its own, for the decoder that aborts on damaged data (GDCM, which reads JPEG).

Of 10,000 mutated files one made GDCM call abort(), which no `except` catches: a hospital's training would be
gone. So it runs in a child that may die or hang; the parent then refuses the image and starts another. A
child starts in a third of a second, once, and a slice crosses to it and back in half a millisecond.
"""

from __future__ import annotations

import atexit
import os
import select
import struct
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from typing import IO, Any

from numpy.typing import NDArray

# No slice takes this long; a decoder that does hangs.
TIMEOUT_S = 15.0
_HEAD = struct.Struct(
    "<HHHHHHI"
)  # rows, columns, allocated, stored, signed, length of the syntax, of the pixels
_LOCK = threading.Lock()


@dataclass
class _Child:
    process: subprocess.Popen[bytes]
    owner: int = field(
        default_factory=os.getpid
    )  # a forked process inherits the pipes, and must not use them


_child: _Child | None = None


def decode_here(
    packed: bytes,
    syntax: str,
    plugin: str,
    rows: int,
    columns: int,
    allocated: int,
    stored: int,
    signed: bool,
) -> NDArray[Any]:
    """Return the decoded words of one frame, (rows, columns), decoded in this process."""
    from pydicom.encaps import encapsulate
    from pydicom.pixels import get_decoder

    options: dict[str, Any] = {
        "rows": rows,
        "columns": columns,
        "samples_per_pixel": 1,
        "number_of_frames": 1,
        "bits_allocated": allocated,
        "bits_stored": stored,
        "pixel_representation": int(signed),
        "photometric_interpretation": "MONOCHROME2",
        "pixel_keyword": "PixelData",
    }
    array, _ = get_decoder(syntax).as_array(
        encapsulate([packed]), raw=True, index=0, decoding_plugin=plugin, **options
    )
    return array


def decode_apart(
    packed: bytes, syntax: str, rows: int, columns: int, allocated: int, stored: int, signed: bool
) -> bytes:
    """Return the decoded words of one frame.

    Raises:
        ImageError: if the decoder fails, dies or hangs.
    """
    from medfed.errors import ImageError  # the child runs this file alone, without the package

    name = syntax.encode()
    request = _HEAD.pack(rows, columns, allocated, stored, signed, len(name), len(packed)) + name + packed
    with _LOCK:
        answer = _ask(request)
        if answer is None:
            _end()
    if answer is None:
        raise ImageError(
            "the compressed pixels make the decoder die or hang; the file is damaged, copy it again"
        )
    if answer[:1] != b"\0":
        raise ImageError("the compressed pixels cannot be decoded; the file is damaged, copy it again")
    return answer[1:]


def _ask(request: bytes) -> bytes | None:
    """Return the child's answer, None where it died or hung."""
    global _child
    if _child is None or _child.owner != os.getpid() or _child.process.poll() is not None:
        _child = _Child(_started())
    child = _child.process
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        child.stdin.write(struct.pack("<I", len(request)) + request)
        child.stdin.flush()
        head = _exactly(child.stdout, 4, TIMEOUT_S)
        return None if head is None else _exactly(child.stdout, struct.unpack("<I", head)[0], TIMEOUT_S)
    except OSError:
        return None


def _started() -> subprocess.Popen[bytes]:
    # Of this interpreter, of this very file, whatever the working folder; nothing of the site's environment
    # is needed.
    return subprocess.Popen(
        [sys.executable, "-P", os.path.abspath(__file__)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )


def _exactly(stream: IO[bytes], length: int, timeout_s: float | None) -> bytes | None:
    """Return `length` bytes of a pipe, None where it ends before or nothing comes in time."""
    parts = []
    while length:
        if timeout_s is not None and not select.select([stream], [], [], timeout_s)[0]:
            return None
        piece = os.read(stream.fileno(), min(length, 1 << 20))
        if not piece:
            return None
        parts.append(piece)
        length -= len(piece)
    return b"".join(parts)


def _end() -> None:
    global _child
    if _child is not None and _child.owner == os.getpid():
        _child.process.kill()
        _child.process.wait()
        for stream in (_child.process.stdin, _child.process.stdout):
            if stream is not None:
                stream.close()
    _child = None


atexit.register(_end)


def _serve() -> None:
    """Answer requests until the parent closes the pipe."""
    import warnings

    warnings.simplefilter("ignore")
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a decoder prints does not get among the answers
    while True:
        head = _exactly(sys.stdin.buffer, 4, None)
        if head is None:
            return
        request = _exactly(sys.stdin.buffer, struct.unpack("<I", head)[0], None)
        if request is None:
            return
        rows, columns, allocated, stored, signed, name, length = _HEAD.unpack_from(request)
        syntax = request[_HEAD.size : _HEAD.size + name].decode()
        packed = request[_HEAD.size + name : _HEAD.size + name + length]
        try:
            array = decode_here(packed, syntax, "gdcm", rows, columns, allocated, stored, bool(signed))
            answer = b"\0" + array.tobytes() if array.shape == (rows, columns) else b"\1"
        except Exception:
            answer = b"\1"
        answers.write(struct.pack("<I", len(answer)) + answer)
        answers.flush()


if __name__ == "__main__":
    _serve()

"""What the broker refused, from its server's log, for the coordinator's audit log.

Whoever knocks often fills no disk: per kind of refusal there is one line at once, and then at most one per
minute, which counts the others.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

# What nats-server writes when it refuses somebody, and what is called so in the audit log.
_KINDS: dict[str, str] = {
    r"TLS handshake error": "a connection without a valid TLS handshake",
    r"(?i)authentication error|authorization violation|authentication timeout": (
        "a party without a valid certificate of an enrolled site"
    ),
    r"(Permissions|Publish|Subscription) Violation": "a subject that is not the site's own",
    r"(?i)maximum connections exceeded|maximum payload violation": "more than it takes at once",
    r"(?i)insufficient storage|resource limits exceeded|no space left": "more than fits on its disk",
}

# What it writes of a stream in which a stored message is damaged. It stores nothing more there, and answers
# no request, be it to delete the stream or to end. What parties send is never at this place of a line.
_DAMAGED = re.compile(
    r"\[\d+\] \d{4}/\d\d/\d\d [\d:.]+ (?:\[ERR\] JetStream (?:failed to store a msg on )?"
    r"stream '([A-Za-z0-9_-]+) > ([A-Za-z0-9_-]+)'|\[WRN\] Filestore \[([A-Za-z0-9_-]+)\])"
    r".*malformed or corrupt message"
)

# How often at most one kind is reported, and how much of the log is read at once.
REPORT_S, MAX_READ_BYTES = 60.0, 1 << 20


class RefusalLog:
    """Reads what a server appends to its log, and reports what it refused.

    `damaged` holds the name of each stream in which it found a damaged message.
    """

    def __init__(
        self,
        path: Path,
        report: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path, self._report, self._clock = path, report, clock
        self._offset = path.stat().st_size if path.exists() else 0
        self._counts: dict[str, int] = {}
        self._examples: dict[str, str] = {}
        self._reported: dict[str, float] = {}
        self.damaged: set[str] = set()

    def poll(self) -> None:
        """Report what was refused since the last call, as far as it is due."""
        for line in self._appended():
            if damaged := _DAMAGED.match(line):
                self.damaged.add(damaged[2] or damaged[3])
            for pattern, kind in _KINDS.items():
                if re.search(pattern, line):
                    self._counts[kind] = self._counts.get(kind, 0) + 1
                    self._examples.setdefault(kind, line)
                    break
        now = self._clock()
        for kind in list(self._counts):
            if now - self._reported.get(kind, -REPORT_S) >= REPORT_S:
                count, example = self._counts.pop(kind), self._examples.pop(kind)
                self._reported[kind] = now
                self._report(f"the broker refused {kind}, {count} times; first: {example[:300]}")

    def _appended(self) -> Iterator[str]:
        """Yield the complete lines that were appended; of a flood, the end."""
        try:
            size = self._path.stat().st_size
            if size <= self._offset:
                self._offset = min(self._offset, size)
                return
            with self._path.open("rb") as file:
                file.seek(max(self._offset, size - MAX_READ_BYTES))
                data = file.read(MAX_READ_BYTES)
                whole = data.rfind(b"\n") + 1
                self._offset = file.tell() - len(data) + whole
        except OSError:
            return
        yield from data[:whole].decode(errors="replace").splitlines()

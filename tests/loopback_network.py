"""Tests of Ray, which opens ports on every interface: they run where the loopback is the only one.

`make ray` installs Ray and runs them in a network of their own.
"""

from __future__ import annotations

import socket
from importlib.util import find_spec

import pytest


def is_loopback_only() -> bool:
    """Return whether this process sees no other network interface than the loopback."""
    return {name for _, name in socket.if_nameindex()} == {"lo"}


needs_ray = pytest.mark.skipif(
    find_spec("ray") is None or not is_loopback_only(),
    reason="Ray opens ports on every interface; `make ray` runs its tests where there is only the loopback",
)

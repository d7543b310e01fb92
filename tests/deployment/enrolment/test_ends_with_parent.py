"""A program that ends with the process that started it; the kill is in test_broker.py."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from medfed.deployment.enrolment import ends_with_parent
from medfed.deployment.enrolment.ends_with_parent import ending_with_parent

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")


def test_it_becomes_the_program_unless_its_parent_has_ended_before(tmp_path):
    written = tmp_path / "written"
    touch = [str(shutil.which("touch")), str(written)]
    command = [sys.executable, "-I", "-S", ends_with_parent.__file__]
    subprocess.run([*command, "1", *touch], check=True)
    assert not written.exists()
    subprocess.run([*command, str(os.getpid()), *touch], check=True)
    assert written.exists()


def test_where_no_system_does_so_the_command_is_the_same(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert ending_with_parent(["nats-server", "-c", "nats.conf"]) == ["nats-server", "-c", "nats.conf"]

"""Fixtures that several test folders share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# As the command line sets it (medfed/cli/__init__.py): two suites' workers share the cores.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")

from hospitals import make_hospital, write_study


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """Return the folder with the tiny hospitals and their study, tiny.yaml."""
    folder = tmp_path_factory.mktemp("tiny")
    for name in ("north", "south", "west"):
        make_hospital(folder / name)
    write_study(folder)
    return folder


@pytest.fixture
def enrolment(tmp_path):
    """A federation's authority, the credentials of its hub and sites, and a broker on loopback."""
    from broker_enrolment import Enrolment

    enrolled = Enrolment(tmp_path)
    yield enrolled
    enrolled.end()

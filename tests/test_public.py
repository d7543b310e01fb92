"""What is public, and how light it is to import."""

from __future__ import annotations

import subprocess
import sys

import pytest

import medfed


def test_public_names_are_sorted_and_there():
    assert list(medfed.__all__) == sorted(medfed.__all__)
    for name in medfed.__all__:
        assert getattr(medfed, name) is not None
    assert set(dir(medfed)) == set(medfed.__all__)


def test_an_unknown_name_lists_what_there_is():
    with pytest.raises(AttributeError, match="no attribute 'federate_all'; public are FederatedCallback"):
        medfed.federate_all  # noqa: B018


@pytest.mark.parametrize("statement", ["import medfed", "import medfed.cli"])
def test_importing_does_not_load_torch(statement):
    code = f"{statement}; import sys; print([m for m in ('torch', 'monai', 'numpy', 'pandas') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

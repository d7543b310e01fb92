"""Kinds of a package of one's own are built from public names only, and pass their contracts."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import torch

from medfed.aggregation import Rule, add_weighted_deltas, require_sites, shares, validated_updates
from medfed.local_training import (
    LocalMethod,
    add_gradients,
    all_weights,
    gradients,
    optimizer_step,
    swapped_weights,
    to_cpu,
    to_device,
)
from medfed.testing import check_compression, check_local_method, check_rule
from medfed.wire.compression import Compression, Encoded, Tensorwise, decode_each, flatten, tensor_shapes

torch.set_num_threads(1)
ROOT = Path(__file__).parents[2]


class Mean(Rule, frozen=True, tag="mean"):
    """The mean by examples, of two sites or more."""

    @property
    def min_sites(self):
        return 2

    def merge(self, updates, state, weights):
        sites = validated_updates(updates)
        require_sites(sites, self.min_sites, self, "two")
        return add_weighted_deltas(sites, shares(sites), weights), state


def halved(values):
    """Return numbers in bfloat16, the largest of float32 among them."""
    largest = torch.finfo(torch.bfloat16).max
    return values.clamp(-largest, largest).to(torch.bfloat16)


class Together(Compression, frozen=True, tag="together"):
    """Half precision, all tensors at once."""

    def encode(self, weights, state):
        values = {name: halved(flatten(name, tensor)) for name, tensor in weights.items()}
        return Encoded({"values": values}, {"shapes": tensor_shapes(weights)}), {}

    def decode(self, encoded):
        return decode_each(encoded, lambda parts: parts.read("values", parts.count, torch.bfloat16).float())


class Singly(Tensorwise, frozen=True, tag="singly"):
    """Half precision, each tensor by itself."""

    def encode_tensor(self, name, values):
        return {"values": halved(values)}

    def decode_tensor(self, parts):
        return parts.read("values", parts.count, torch.bfloat16).float()


class Shadow(LocalMethod, frozen=True, tag="shadow"):
    """Trains a second model of the hospital's own beside the federated one, from where that one began."""

    def start(self, module, received, state):
        own = to_device(state["own"], module) if "own" in state else all_weights(module)
        return {"own": own, "moments": to_device(state.get("moments", {}), module), "gradients": {}}

    def step(self, step, state):
        total = add_gradients(state["gradients"], gradients(step, state["own"]))
        if not step.optimiser_steps:
            return {**state, "gradients": total}
        return {
            **state,
            "moments": optimizer_step(step, state["own"], total, state["moments"]),
            "gradients": {},
        }

    def finish(self, module, received, state, steps, rate):
        return {name: to_cpu(state[name]) for name in ("own", "moments")}, {}

    def personal(self, module, state):
        with swapped_weights(module, state["own"]):
            return to_cpu(all_weights(module))


@pytest.mark.parametrize(
    ("check", "kind"),
    [
        (check_rule, Mean()),
        pytest.param(check_local_method, Shadow(), marks=pytest.mark.slow),
        (check_compression, Together()),
        (check_compression, Singly()),
    ],
    ids=lambda value: getattr(value, "__name__", None) or type(value).__name__,
)
def test_a_kind_of_public_names_passes_its_contract(check, kind):
    check(kind)


def private_imports(text: str) -> list[str]:
    """Return the modules and names with a leading underscore that a text imports from medfed."""
    result = []
    for node in ast.walk(ast.parse(text)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{name}" for name in names]
        result += [name for name in names if re.match(r"medfed\b.*\._[a-z]", name, re.IGNORECASE)]
    return result


# The examples of kinds from outside: a layout, a metric, a normalisation and a task among them.
EXAMPLES = (
    "tests/testing/test_public_names.py",
    "tests/testing/test_compression.py",
    "tests/testing/test_layouts.py",
    "tests/testing/test_local_training.py",
    "tests/testing/test_metrics.py",
    "tests/testing/test_normalise.py",
    "tests/models/tasks/test_plugin_task.py",
    "docs/how-to/add-a-part.md",
)


@pytest.mark.parametrize("file", EXAMPLES)
def test_a_kind_from_outside_needs_no_private_name(file):
    imports = [name for block in programs(file) for name in private_imports(block)]
    assert imports == []


def programs(file: str) -> list[str]:
    """Return a file's Python: itself and the programs that it writes from strings, or a page's blocks."""
    text = (ROOT / file).read_text()
    if file.endswith(".md"):
        return re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    strings = [node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)]
    return [
        text,
        *(
            s
            for s in strings
            if isinstance(s, str) and s.lstrip().startswith(("import ", "from ")) and "\n" in s
        ),
    ]


def test_a_private_import_is_found():
    assert private_imports("from medfed.aggregation._reduce import Block") == [
        "medfed.aggregation._reduce.Block"
    ]
    assert private_imports("from medfed.privacy import _masks") == ["medfed.privacy._masks"]
    assert private_imports("import medfed.privacy._masks") == ["medfed.privacy._masks"]

"""Reads the tensors of a checkpoint or safetensors file, without running code from it.

A checkpoint of Lightning, PyTorch or MONAI holds its state dict under one of several names. If it holds more
than one (the model and its moving average), the study says which.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import torch
from torch import Tensor

from medfed.errors import StudyError
from medfed.models.pretrained.source import MAX_RATIO, MAX_WEIGHTS_BYTES, Source

# The names under which programs store a model's state dict.
USUAL = ("state_dict", "model_state_dict", "model", "network", "net", "module")
# Below a checkpoint's top, a state dict is at most this deep: {"model": {"state_dict": ...}}.
MAX_DEPTH = 2
# More tensors than this are no network's.
MAX_TENSORS = 100_000


def read_tensors(source: Source, part: str = "") -> Mapping[str, Tensor]:
    """Return a source's tensors by name.

    Raises:
        StudyError: if it cannot be read without running code, or it holds no state dict or several.
    """
    with source.open() as file:
        if source.weights.endswith(".safetensors"):
            if part:
                raise StudyError(f"start.part: {source.name} is a safetensors file, which has one part only")
            return _safetensors(source.name, file)
        content = _torch(source.name, file)
    return _state_dict(source.name, content, part)


def _torch(name: str, file: BinaryIO) -> Any:
    _refuse_bomb(name, file)
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - torch raises EOFError, RuntimeError, UnpicklingError and more
        if "GLOBAL " in str(error):  # torch's word for a class or function that it did not call
            raise StudyError(
                f"start: {name} holds more than tensors, and reading that could run code from it; where "
                "you trust it, save its state dict alone (torch.save of tensors by name, or safetensors)"
            ) from None
        raise StudyError(
            f"start: {name} cannot be read as a checkpoint; it is damaged, cut short or of another format; "
            "copy it again, or give a run's checkpoints/federated.ckpt"
        ) from None


def _refuse_bomb(name: str, file: BinaryIO) -> None:
    """Refuse a checkpoint whose zip would fill the memory; PyTorch itself does not compress."""
    if zipfile.is_zipfile(file):
        try:
            with zipfile.ZipFile(file) as opened:
                sizes = [(one.file_size, one.compress_size) for one in opened.infolist()]
        except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError):
            sizes = []  # torch says what is wrong with it
        if sum(size for size, _ in sizes) > MAX_WEIGHTS_BYTES or any(
            size > MAX_RATIO * max(packed, 1 << 16) for size, packed in sizes
        ):
            raise StudyError(f"start: {name} would unpack to more than weights have; it is no checkpoint")
    file.seek(0)


def _state_dict(name: str, content: object, part: str) -> Mapping[str, Tensor]:
    found = dict(_state_dicts(content, ""))
    if part:
        if part not in found:
            listed = ", ".join(sorted(found)) or "none"
            raise StudyError(f"start.part: {name} has no state dict '{part}'; there are: {_plain(listed)}")
        return found[part]
    if not found:
        raise StudyError(
            f"start: {name} is no checkpoint: it has no tensors by name, at its top or under 'state_dict'; "
            "give a run's checkpoints/federated.ckpt, a state dict, or a MONAI bundle"
        )
    averages = [key for key in found if "ema" in key.lower() or "average" in key.lower()]
    usual = [key for key in found if key.split(".")[-1] in USUAL and key not in averages]
    chosen = list(found) if len(found) == 1 else usual
    if len(chosen) != 1 or (averages and len(found) > 1):
        raise StudyError(
            f"start: {name} holds several state dicts: {_plain(', '.join(sorted(found)))}; say which one by "
            "`start: {path: ..., part: ...}`"
        )
    return found[chosen[0]]


def _state_dicts(content: object, path: str, depth: int = 0) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """Yield the state dicts of a checkpoint by their paths, '' for the checkpoint itself."""
    if not isinstance(content, Mapping) or depth > MAX_DEPTH:
        return
    named = {key: value for key, value in content.items() if isinstance(key, str)}
    if len(named) > MAX_TENSORS:
        raise StudyError(f"start: a state dict of {len(named)} entries is no network's")
    tensors = {key: value for key, value in named.items() if isinstance(value, Tensor)}
    below = [
        found
        for key, value in named.items()
        if not isinstance(value, Tensor)
        for found in _state_dicts(value, f"{path}.{key}" if path else key, depth + 1)
    ]
    yield from below
    # A few tensors beside a state dict are a checkpoint's own: the epoch, the best loss.
    if tensors and not below and not path.split(".")[-1].startswith("optim"):
        yield path, tensors


def _safetensors(name: str, file: BinaryIO) -> Mapping[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(file.read())
    except (SafetensorError, ValueError, KeyError, RuntimeError):
        raise StudyError(
            f"start: {name} cannot be read as safetensors; it is damaged or cut short; copy it again"
        ) from None


def _plain(text: str) -> str:
    """Return a text from the file with its letters, digits and dots only, for a message."""
    return "".join(one if one.isalnum() or one in "._-, " else "?" for one in text)[:400]

"""Updates and global models to bytes and back: one safetensors file with a JSON header as its metadata.

Any safetensors reader can open what is sent. Nothing received is unpickled or passed to torch.load; a header
is decoded into a typed record that allows no other keys, and every tensor must be named in the header.

A site's weights are sent as they are (`local/`), because their difference to the global model is then exact
at the hub (see `weights.Difference`). Once a privacy mechanism has changed the difference, that is sent
(`delta/`), and of a compressed update the compression's output (`encoded:<group>/`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Protocol, TypeVar

import msgspec
import safetensors
import torch
from safetensors.torch import load
from torch import Tensor

from medfed.errors import DECODING_ERRORS, WireError
from medfed.wire.open_file import OpenFile
from medfed.wire.update import Encoded, GlobalModel, Update
from medfed.wire.weights import Difference, Weights

# The version of this format. A reader refuses any other, so that two releases never misinterpret each other.
FORMAT = "medfed-1"

# A header holds some numbers and names. A larger one is an attack or damaged.
MAX_HEADER_BYTES = 1 << 20

# The digest of the last line of the sender's audit log, or nothing.
_Sha256 = Annotated[str, msgspec.Meta(pattern="^([0-9a-f]{64})?$")]


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="is"):
    # What an error calls the content.
    content: ClassVar[str]

    format: str
    study: str
    round: int


class _UpdateHeader(_Header, frozen=True, tag="update", omit_defaults=True):
    content: ClassVar[str] = "an update"

    site: str
    examples: int
    scalars: dict[str, float]
    encoded: dict[str, Any] | None = None
    head: _Sha256 = ""


class _GlobalHeader(_Header, frozen=True, tag="global", omit_defaults=True):
    content: ClassVar[str] = "a global model"

    participants: list[str] | None
    final: bool
    classes: list[str] = msgspec.field(default_factory=list)
    rule: str = ""
    needs_local: list[str] = msgspec.field(default_factory=list)
    needs_scalars: list[str] = msgspec.field(default_factory=list)
    privacy: str = ""
    scoring: bool = False
    chosen: int | None = None
    asynchronous: bool = False
    head: _Sha256 = ""


_T = TypeVar("_T")
_H = TypeVar("_H", bound=_Header)


# -- writing


def encode_update(update: Update, study_digest: str = "") -> bytes:
    """Return the bytes that `decode_update` reads."""
    return b"".join(update_pieces(update, study_digest))


def update_pieces(update: Update, study_digest: str = "") -> Iterator[bytes | memoryview]:
    """Return the bytes of `encode_update` in pieces: the header, then views of the tensors' own memory."""
    if isinstance(update.delta, Difference):
        parts = {"local": update.delta.minuend}
    else:
        parts = {"delta": update.delta}
    parts |= {f"group:{group}": weights for group, weights in update.groups.items()}
    if update.encoded is not None:
        parts |= {f"encoded:{group}": weights for group, weights in update.encoded.groups.items()}
    header = _UpdateHeader(
        format=FORMAT,
        study=study_digest,
        round=update.round,
        site=update.site,
        examples=update.examples,
        scalars=dict(update.scalars),
        encoded=None if update.encoded is None else dict(update.encoded.header),
        head=update.audit_head,
    )
    return _pieces(parts, header)


def measure_update(update: Update, study_digest: str = "") -> tuple[int, str]:
    """Return size and SHA-256 of what `encode_update` returns, without holding all of it in memory."""
    size, sha = 0, hashlib.sha256()
    for piece in update_pieces(update, study_digest):
        size += piece.nbytes if isinstance(piece, memoryview) else len(piece)
        sha.update(piece)
    return size, sha.hexdigest()


def encode_global(sent: GlobalModel) -> bytes:
    """Return the bytes that `decode_global` reads."""
    return b"".join(global_pieces(sent))


def global_pieces(sent: GlobalModel) -> Iterator[bytes | memoryview]:
    """Return the bytes of `encode_global` in pieces: the header, then views of the tensors' own memory."""
    parts = {"weights": sent.weights, **{f"group:{name}": group for name, group in sent.groups.items()}}
    header = _GlobalHeader(
        format=FORMAT,
        study=sent.study_digest,
        round=sent.round,
        participants=None if sent.participants is None else list(sent.participants),
        final=sent.final,
        classes=list(sent.classes),
        rule=sent.rule,
        needs_local=list(sent.needs_local),
        needs_scalars=list(sent.needs_scalars),
        privacy=sent.privacy,
        scoring=sent.scoring,
        chosen=sent.chosen,
        asynchronous=sent.asynchronous,
        head=sent.audit_head,
    )
    return _pieces(parts, header)


def _pieces(parts: Mapping[str, Weights], header: _Header) -> Iterator[bytes | memoryview]:
    tensors = {
        f"{part}/{name}": tensor.contiguous()
        for part, weights in parts.items()
        for name, tensor in weights.items()
    }
    return safetensors_pieces(tensors, {"medfed": msgspec.json.encode(header, order="sorted").decode()})


# Safetensors' names of dtypes, in the order in which its writer places them in a file.
_DTYPES = {
    "I64": torch.int64,
    "F64": torch.float64,
    "F32": torch.float32,
    "I32": torch.int32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def safetensors_pieces(
    tensors: Mapping[str, Tensor], metadata: dict[str, str]
) -> Iterator[bytes | memoryview]:
    """Yield a safetensors file's bytes without a copy of all of it; safetensors' own writer needs two.

    Raises:
        WireError: if a tensor's dtype cannot be sent.
    """
    order = list(_DTYPE_NAMES)
    for name, tensor in tensors.items():
        if tensor.dtype not in _DTYPE_NAMES:
            raise WireError(
                f"'{name}' has dtype {tensor.dtype}, which cannot be sent; {', '.join(_DTYPES)} can"
            )
    ordered = sorted(tensors.items(), key=lambda item: (order.index(item[1].dtype), item[0]))
    described: dict[str, Any] = {"__metadata__": metadata}
    offset = 0
    for name, tensor in ordered:
        size = tensor.numel() * tensor.element_size()
        described[name] = {
            "dtype": _DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(described, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for _, tensor in ordered:
        if tensor.numel():
            yield tensor.detach().reshape(-1).view(torch.uint8).numpy().data


# -- reading


def decode_update(data: bytes, weights: Weights, study_digest: str = "") -> Update:
    """Return the update in these bytes; `weights` is the global model it was trained from.

    Raises:
        WireError: if the bytes are damaged, in another format, of another study, or not an update.
    """
    return _update(*_decode(data, _UpdateHeader, study_digest), weights)


def read_update(path: Path, weights: Weights, study_digest: str = "") -> Update:
    """Return the update in a file; its tensors are loaded one at a time, on access."""
    return _update(*_open(path, _UpdateHeader, study_digest), weights)


def join_update(
    head: bytes, tensors: TensorReader, weights: Weights, study_digest: str = "", *, lazy: bool = False
) -> Update:
    """Return the update whose first piece is `head` and whose tensors `tensors` reads, if `lazy` on access.

    Raises:
        WireError: as `decode_update`.
    """
    return _update(*_join(head, tensors, _UpdateHeader, study_digest, lazy), weights)


def join_global(head: bytes, tensors: TensorReader, study_digest: str = "") -> GlobalModel:
    """Return the global model whose first piece is `head` and whose tensors `tensors` reads.

    Raises:
        WireError: as `decode_global`.
    """
    return _global(*_join(head, tensors, _GlobalHeader, study_digest, lazy=False))


def offsets_of(head: bytes, part: str) -> frozenset[int]:
    """Return the first offset of each tensor of a part (`local`), from the first piece of an encoding.

    Those without elements are left out: another tensor begins where they do.
    """
    described = msgspec.json.decode(head[8:])
    described.pop("__metadata__")
    spans = [entry["data_offsets"] for name, entry in described.items() if name.startswith(f"{part}/")]
    return frozenset(first for first, last in spans if last > first)


def decode_global(data: bytes, study_digest: str = "") -> GlobalModel:
    """Return the global model in these bytes.

    Raises:
        WireError: if the bytes are damaged, in another format, of another study, or not a global model.
    """
    return _global(*_decode(data, _GlobalHeader, study_digest))


def read_global(path: Path, study_digest: str = "") -> GlobalModel:
    """Return the global model in a file; its tensors are loaded one at a time, on access.

    The file may be removed or replaced meanwhile: it stays open as long as the model is in use.
    """
    return _global(*_open(path, _GlobalHeader, study_digest))


def _global(header: _GlobalHeader, parts: dict[str, Weights]) -> GlobalModel:
    return GlobalModel(
        round=header.round,
        weights=parts.pop("weights", {}),
        participants=None if header.participants is None else tuple(header.participants),
        final=header.final,
        study_digest=header.study,
        groups=_groups(parts),
        classes=tuple(header.classes),
        rule=header.rule,
        needs_local=tuple(header.needs_local),
        needs_scalars=tuple(header.needs_scalars),
        privacy=header.privacy,
        scoring=header.scoring,
        chosen=header.chosen,
        asynchronous=header.asynchronous,
        audit_head=header.head,
    )


def _update(header: _UpdateHeader, parts: dict[str, Weights], weights: Weights) -> Update:
    if "local" in parts and "delta" in parts:
        raise WireError(
            f"the update of site '{header.site}' holds both weights and a difference; it may hold one"
        )
    delta = parts.pop("delta", {})
    if (local := parts.pop("local", None)) is not None:
        same = all(name in weights and _shape(local, name) == weights[name].shape for name in local)
        # Where no difference can be computed, the raw tensors are passed on: `check_update` reports what does
        # not match.
        delta = Difference(local, weights) if same else local
    encoded = _encoded(header, parts)
    return Update(
        site=header.site,
        round=header.round,
        delta=delta,
        examples=header.examples,
        scalars=header.scalars,
        groups=_groups(parts),
        encoded=encoded,
        audit_head=header.head,
    )


def _encoded(header: _UpdateHeader, parts: dict[str, Weights]) -> Encoded | None:
    """Remove a compressed delta from the parts and return it; `decompress_update` checks it."""
    names = [part for part in parts if part.startswith("encoded:")]
    groups = {part.removeprefix("encoded:"): parts.pop(part) for part in names}
    if header.encoded is None and groups:
        raise WireError(
            f"the update of site '{header.site}' holds compressed tensors, but its header does not say how"
        )
    return None if header.encoded is None else Encoded(groups, header.encoded)


def _groups(parts: Mapping[str, Weights]) -> dict[str, Weights]:
    for part in parts:
        if not part.startswith("group:"):
            raise WireError(
                f"tensors under '{part[:80]}' are none of local, delta, weights, group:<name>, encoded:<name>"
            )
    return {part.removeprefix("group:"): weights for part, weights in parts.items()}


def _decode(data: bytes, expected: type[_H], study_digest: str) -> tuple[_H, dict[str, Weights]]:
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or size > len(data) - 8:
        raise WireError(
            f"{len(data)} bytes are too few for {expected.content}: it was truncated; it must be sent again"
        )
    try:
        tensors = load(bytes(data))
        described = msgspec.json.decode(data[8 : 8 + size])
    except Exception as error:  # noqa: BLE001 - hostile bytes may raise anything
        raise WireError(
            f"{len(data)} bytes are not {expected.content}: {_first_line(error)}; it must be sent again"
        ) from None
    header = _header(described, expected, study_digest)
    return header, dict(_by_part(tensors))


def _join(
    head: bytes, tensors: TensorReader, expected: type[_H], study_digest: str, lazy: bool
) -> tuple[_H, dict[str, Weights]]:
    described = msgspec.json.decode(head[8:])
    header = _header(described, expected, study_digest)
    described.pop("__metadata__")
    parts = {part: _FileTensors(tensors, names) for part, names in _by_part(described).items()}
    return header, {part: own if lazy else dict(own) for part, own in parts.items()}


def _open(path: Path, expected: type[_H], study_digest: str) -> tuple[_H, dict[str, Weights]]:
    try:
        # Safetensors' reader checks the header and that every offset lies in the file.
        with safetensors.safe_open(path, framework="pt"):
            pass
        with path.open("rb") as raw:
            described = msgspec.json.decode(raw.read(int.from_bytes(raw.read(8), "little")))
    except Exception as error:  # noqa: BLE001 - hostile bytes may raise anything
        raise WireError(
            f"{expected.content} of {path.stat().st_size} bytes is not a safetensors file: "
            f"{_first_line(error)}; it must be sent again"
        ) from None
    header = _header(described, expected, study_digest)
    described.pop("__metadata__")
    for name, description in described.items():
        if description["dtype"] not in _DTYPES:
            raise WireError(
                f"'{name[:80]}' has dtype {description['dtype']}, which cannot be read; {', '.join(_DTYPES)} "
                "can"
            )
    file = OpenFile(path)
    return header, {part: _FileTensors(file, names) for part, names in _by_part(described).items()}


def _header(described: dict[str, Any], expected: type[_H], study_digest: str) -> _H:
    text = (described.get("__metadata__") or {}).get("medfed")
    if not isinstance(text, str):
        raise WireError("the safetensors file has no medfed header; was it sent by medfed?")
    if len(text) > MAX_HEADER_BYTES:
        raise WireError(f"a header of {len(text)} characters; at most {MAX_HEADER_BYTES} are read")
    try:
        header: _UpdateHeader | _GlobalHeader = msgspec.json.decode(text, type=_UpdateHeader | _GlobalHeader)
    except DECODING_ERRORS as error:
        raise WireError(f"the header cannot be decoded: {_first_line(error)}") from None
    if header.format != FORMAT:
        raise WireError(
            f"the format is '{header.format[:20]}', this medfed reads '{FORMAT}'; update the older side"
        )
    if study_digest and header.study != study_digest:
        raise WireError(
            f"it belongs to study {header.study[:12] or '(none)'}, this is study {study_digest[:12]}; both "
            "sides must run the same study file"
        )
    if not isinstance(header, expected):
        raise WireError(f"expected {expected.content}, found {header.content}")
    return header


def _by_part(entries: Mapping[str, _T]) -> dict[str, dict[str, _T]]:
    """Return what is named `part/name`, by part and name."""
    parts: dict[str, dict[str, _T]] = {}
    for full, entry in entries.items():
        part, slash, name = full.partition("/")
        # Names are never used as paths; still, one that would be a path to elsewhere is no layer's name.
        if not slash or not name or not {"", ".", ".."}.isdisjoint(full.split("/")):
            raise WireError(f"a tensor is named '{full[:80]}', expected part/name")
        parts.setdefault(part, {})[name] = entry
    return parts


def _shape(tensors: Weights, name: str) -> tuple[int, ...]:
    """Return a tensor's shape, without reading a tensor that is in a file."""
    return tensors.shape(name) if isinstance(tensors, _FileTensors) else tuple(tensors[name].shape)


class TensorReader(Protocol):
    """Reads tensors of an encoding."""

    def read(self, name: str, first: int, last: int) -> Tensor:
        """Return the bytes of the tensor of this name, from `first` to `last` after the header."""


class _FileTensors(Mapping[str, Tensor]):
    """The tensors of one part of an encoding, each read on access."""

    def __init__(self, file: TensorReader, described: dict[str, Any]) -> None:
        self._file, self._described = file, described

    def __getitem__(self, name: str) -> Tensor:
        description = self._described[name]
        raw = self._file.read(name, *description["data_offsets"])
        return raw.view(_DTYPES[description["dtype"]]).reshape(description["shape"])

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape from the header, without reading the tensor."""
        return tuple(self._described[name]["shape"])

    def __contains__(self, name: object) -> bool:
        return name in self._described  # Mapping's default would read the tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._described)

    def __len__(self) -> int:
        return len(self._described)


def _first_line(error: Exception) -> str:
    return str(error).split("\n")[0][:200]

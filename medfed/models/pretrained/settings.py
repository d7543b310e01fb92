"""What a study says of the weights that it starts from."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

# A part of a tensor's or layer's name. A study may come from a hub, and errors show what it says.
NamePart = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,200}$")]


class Start(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The weights that a study starts from, and how much of the network they must cover.

    path: a checkpoint (.ckpt, .pt, .pth), a .safetensors file, or a MONAI Bundle as a folder or zip.  least:
    the smallest share of the network's numbers that must come from it; with 1 (the default) nothing may be
    missing or have another shape.  part: which of several state dicts in the file, such as `state_dict_ema`.
    names: parts of names that are called otherwise here, such as {mlp.fc1: mlp.linear1}.  anew: parts of the
    network that start untrained although the file has them, such as [head].
    """

    path: str
    least: Annotated[float, Meta(gt=0, le=1)] = 1.0
    part: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{0,200}$")] = ""
    names: dict[NamePart, Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{0,200}$")]] = {}
    anew: tuple[NamePart, ...] = ()

"""Weights that a study starts from: a checkpoint, a safetensors file or a MONAI Bundle.

Such a file comes from outside, so it is read as hostile input: no code of it runs, nothing is unpacked to
disk, sizes are bounded, and a bundle's network is built by medfed from an allow-list (`definition`). Tensors
are matched to the network's by name and shape (`names`); what was loaded, what starts anew and what was left
out is returned tensor by tensor (`load`), and too small a share is refused.
"""

from medfed.models.pretrained.settings import Start

__all__ = ["Start"]

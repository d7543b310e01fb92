"""The networks that a study can name: one file per network, named after it, built on MONAI.

To add one, write `networks/<name>.py` with a `Network` record tagged `<name>`; the contract test in
tests/contracts finds it. A record holds settings and imports nothing heavy; `build` imports MONAI and returns
an `nn.Module`. It declares which tasks it `serves`, and the path of its last layer, the `head`, so that a
study can keep the head in the hospital (FedPer) or exchange only the head.
"""

from medfed.models.networks._network import Network, Norm, for_images_of, replace_batch_norms

__all__ = ["Network", "Norm", "for_images_of", "replace_batch_norms"]

"""FedPer: the hospitals share the network's body, and each keeps its own head.

Arivazhagan, Aggarwal, Singh, Choudhary: Federated Learning with Personalization Layers, 2019,
arXiv:1912.00818. Body and head are trained together, as in the paper; `fedrep` trains them in turn.
"""

from __future__ import annotations

from medfed.local_training._local import LocalMethod


class FedPer(LocalMethod, tag="fedper", frozen=True):
    """Keeps the last layer in the hospital.

    `head: head` is the network's last layer; any other value names a submodule.
    """

    head: str = "head"

    is_data_free = True

    def keep_local(self) -> tuple[str, ...]:
        return (self.head,)

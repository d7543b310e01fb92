"""FedPer: the hospitals share a body and each keeps its own head.

Arivazhagan, Aggarwal, Singh, Choudhary: Federated Learning with Personalization Layers, 2019,
arXiv:1912.00818. Body and head are trained together, as in the paper; `fedrep` trains them in turn.
"""

from __future__ import annotations

from medfed.local_training._local import Local


class FedPer(Local, tag="fedper", frozen=True):
    """Keeps the last layer in the hospital.

    `head` is the network's last layer; another name is that of a submodule.
    """

    head: str = "head"

    @property
    def needs_no_cases(self) -> bool:
        return True

    def kept(self) -> tuple[str, ...]:
        return (self.head,)

"""What a study or a site cannot do in a network that others lead, whose hub merges by plain FedAvg."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from medfed.local_training import LocalMethod
from medfed.privacy import Privacy
from medfed.registry import kind_of, kinds
from medfed.wire.compression import Compression


def needs_own_hub(
    privacy: Privacy, compress: Sequence[Compression], method: LocalMethod | None
) -> Iterator[str]:
    """Yield why parts of a site need medfed's hub, each sentence beginning with the part."""
    if not privacy.site_only:
        suitable = [name for name, kind in kinds("privacy").items() if getattr(kind, "site_only", False)]
        yield (
            f"privacy: '{kind_of(privacy)}' is half done by medfed's hub (it sums, decrypts or adds noise), "
            f"and the network's FedAvg would merge without it; take {' or '.join(suitable)}"
        )
    if compress:
        yield (
            f"compress: '{kind_of(compress[0])}' is undone by medfed's hub, and the network's merges arrays "
            "as they come; leave it out"
        )
    if method is not None and (method.sends or method.rules):
        yield (
            f"local: '{kind_of(method)}' is half of a method whose other half is medfed's hub's; take one of "
            "the site's own, such as fedprox, or none"
        )

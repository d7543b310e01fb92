"""Secure aggregation: the hub learns the sum of the sites' updates and of their examples, and no site's own.

Bonawitz, Ivanov, Kreuter, Marcedone, McMahan, Patel, Ramage, Segal, Seth: Practical Secure Aggregation
for Privacy-Preserving Machine Learning, CCS 2017, eprint 2017/281, with its consistency check for a
hub that lies. Beyond `neighbours` other sites the graph of Bell, Bonawitz, Gascón, Lepoint, Raykova,
CCS 2020, eprint 2020/704.

Each pair of sites agrees on a key stream, which one adds to its numbers and the other subtracts; each site
also adds a stream of its own. In the sum the pairs' streams cancel. Each site distributes secret shares of
its own stream's seed and of its key, so that the remaining sites can give the hub the seeds of the sites in
the sum or the keys of those that dropped out, never both of one site. All keys are new in every attempt.

It protects against a hub that reads everything, and against one that writes any message, as long as at most
`colluding` sites help it, c. Of n sites that began, t must stay: the share `threshold`, and as many that
c < 2t - n. Then two lists of who is in the sum cannot both have t signatures, so no hub gets shares of both
kinds, by whatever views (their consistency check). With more than c, it does, and reads single updates:
tests/privacy/test_malicious_hub.py does it. Each site also signs what it was shown (all keys, who sent
shares), and states the digest of the model from which it trains: sites that were shown other things do not
unmask (Pasquini, Francati, Ateniese, CCS 2022, arXiv:2111.07380). Parties are the hospitals of the study to
which the site agreed, by certificates of the role `site` (`_key_exchange.py`): never hub, broker or another
enrolled hospital. Whoever holds the federation's authority could issue certificates in their names, so its
key belongs to someone other than the hub's operator. Beyond `neighbours` the bound holds wherever on the ring
the colluding sites stand, since enough shares are needed that no part of the ring can be cut off.

A colluding site can subtract its own update from the sum; `min_sites` is at least `colluding` + 2.

It does not protect the sum itself (differential privacy does); nor against a site that sends nonsense, which
nobody sees (the robust rules need single updates and are refused), or one that spoils a round on purpose.
Scores of the merged model (`val/...`) leave in the clear unless `scores` is off; who took part, when and for
how long is visible. Numbers about training (steps, seconds, loss) stay in the hospital, because the hub could
infer the number of examples from them.

Cost: benchmarks/RESULTS-secure-sum.md. Rounding: each number of the mean differs from the exact one by at
most sites * max_examples / (2 * scale * total examples); with 64 bits and the defaults that is below the
rounding of float32 itself. A change larger than `limit` is an error at the site; it is never clipped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar, Literal

import msgspec

from medfed.errors import PrivacyError
from medfed.privacy._masks import Bits
from medfed.privacy._privacy import FORMAT_SCALARS, Privacy, RoundSession, UpdateProtector
from medfed.privacy._secagg import GROUP, Settings
from medfed.privacy._secagg_client import protectors
from medfed.privacy._secagg_server import open_session
from medfed.wire.messages import HubChannel, SiteChannel


class SecureSum(Privacy, tag="secure_sum", frozen=True):
    """Secure aggregation (Bonawitz 2017): the hub learns the sum of the sites' updates and no site's own.

    threshold: the share of the sites that must stay to the end, above a half; the others may drop out at any
    step.  colluding: how many sites may help a lying hub; more of the others must stay then (of n sites,
    more than (n + colluding) / 2).  min_sites: the smallest number of sites in a sum; with two,
    each can compute the other's.  bits: the size of the numbers on the wire, 64, or 32 for half the bytes and
    less precision.  limit: the largest change of one number in a round.  max_examples: the largest number of
    training cases at a site; both determine the fixed-point step.  neighbours: beyond this many other sites,
    each shares masks with so many only.  patience_s: how many seconds a site may take for a step after its
    keys before it counts as dropped out.  scores: whether scores of the merged model are sent.
    """

    threshold: Annotated[float, msgspec.Meta(gt=0.5, le=1)] = 0.67
    min_sites: Annotated[int, msgspec.Meta(ge=2)] = 3
    bits: Bits = 64
    limit: Annotated[float, msgspec.Meta(gt=0)] = 1024.0
    max_examples: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 100_000
    neighbours: Annotated[int, msgspec.Meta(ge=4)] = 30
    patience_s: Annotated[float, msgspec.Meta(gt=0)] = 300.0
    colluding: Annotated[int, msgspec.Meta(ge=0)] = 1
    scores: bool = True

    def __post_init__(self) -> None:
        if self.min_sites < self.colluding + 2:
            raise PrivacyError(
                f"privacy 'secure_sum': in a sum of min_sites: {self.min_sites} sites, colluding: "
                f"{self.colluding} could subtract their own and read one update; set min_sites to "
                f"{self.colluding + 2} or more, or colluding lower"
            )
        if self.neighbours // 2 < self.colluding + 1:
            raise PrivacyError(
                f"privacy 'secure_sum': among neighbours: {self.neighbours}, colluding: {self.colluding} "
                f"could cut off a part of the sites; set neighbours to {2 * self.colluding + 2} or more"
            )

    def notes(self) -> tuple[str, ...]:
        return (
            f"the hub learns the sum of at least {self.min_sites} hospitals' updates, and no single one, "
            f"even if it lies, as long as at most {self.colluding} of a round's hospitals help it "
            "(privacy.colluding)",
            "the sum itself is not protected: whoever has the model may learn what all hospitals' cases have "
            "in common",
        )

    reveals_each_update: ClassVar[bool] = False
    shows_examples: ClassVar[Literal["sent", "summed", "alike"]] = "summed"
    sends: ClassVar[tuple[str, ...]] = (GROUP,)

    def filter_scalars(self, scalars: Mapping[str, float]) -> Mapping[str, float]:
        # No scalars of training: its steps would reveal the number of examples.
        allowed = ("privacy/", "val", *FORMAT_SCALARS) if self.scores else ("privacy/", *FORMAT_SCALARS)
        return {name: value for name, value in scalars.items() if name.startswith(allowed)}

    def protectors(self, channel: SiteChannel) -> Iterator[UpdateProtector]:
        yield from protectors(self._settings, channel)

    @property
    def bytes_per_number(self) -> float:
        return self.bits / 8

    def required(self, sites: int) -> int:
        return self._settings.required(sites)

    def open_session(self, channel: HubChannel, deadline_s: float | None) -> RoundSession:
        return open_session(self._settings, channel, deadline_s)

    @property
    def _settings(self) -> Settings:
        return msgspec.convert(self, Settings, from_attributes=True)

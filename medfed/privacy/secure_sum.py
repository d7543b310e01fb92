"""Secure aggregation: the hub learns the sum of the sites' updates and of their examples, and no site's own.

Bonawitz, Ivanov, Kreuter, Marcedone, McMahan, Patel, Ramage, Segal, Seth: Practical Secure Aggregation
for Privacy-Preserving Machine Learning, CCS 2017, eprint 2017/281, with its consistency check for a
hub that lies. Beyond `neighbours` other sites the graph of Bell, Bonawitz, Gascón, Lepoint, Raykova,
CCS 2020, eprint 2020/704.

Each pair of sites agrees on a key stream, which one adds to its numbers and the other subtracts; each site
adds one of its own. In the sum the pairs' streams cancel. Each site hands out shares of its own stream's seed
and of its key, so that those who are left give the hub the seeds of the sites in the sum, or the keys of
those that dropped out, never both of one site. All keys are new in every attempt at a round.

What it protects: against a hub that reads everything, and against one that lies about who is there, as long
as it has fewer than `threshold` of the sites on its side; who colludes with the hub can take its own update
off the sum. Names are the certificates': who holds the federation's authority can invent sites, so its key
belongs to somebody else than the hub's operator. Beyond `neighbours` the graph is drawn from the keys, and a
hub that also has many sites on its side could try keys until it pleases: there it is meant for a hub that
reads, not for one that invents sites. What it does not: the sum itself (differential privacy is for that); a
site that sends nonsense, since nobody sees it (the robust rules need single updates and are refused); a site
that spoils a round on purpose; scores of the merged model (`val/...`), which leave in the clear unless
`scores` is off; who took part, when, and how long it took. Numbers of training (steps, seconds, loss) stay in
the hospital, for with them the hub could tell the examples.

Cost: benchmarks/RESULTS-secure-sum.md. Rounding: the mean differs from the exact one by at most sites *
most_examples / (2 * scale * examples in all) a number; with 64 bits and the defaults that is below what
float32 itself rounds. A larger change than `limit` is an error at the site and never cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar

import msgspec

from medfed.privacy._masks import Bits
from medfed.privacy._privacy import Privacy, RoundSession, UpdateProtector
from medfed.privacy._secagg import Settings
from medfed.privacy._secagg_client import GROUP, protectors
from medfed.privacy._secagg_server import open_session
from medfed.wire.messages import HubLetters, SiteLetters


class SecureSum(Privacy, tag="secure_sum", frozen=True):
    """Secure aggregation (Bonawitz 2017): the hub learns the sum of the sites' updates and no site's own.

    `threshold` is the part of the sites that must go on to the end, above a half (against a hub that lies,
    two thirds); the others may drop out at any step. `least` is the fewest sites in a sum: with two, each can
    tell the other's. `bits` is the size of the numbers on the wire: 64, or 32 for half the bytes and less
    precision. `limit` is the largest change of one number in a round, `most_examples` the most training cases
    of a site; both set the steps of the fixed point. `patience_s` is how long a site may take for a step
    after its keys before it counts as dropped out.
    """

    threshold: Annotated[float, msgspec.Meta(gt=0.5, le=1)] = 0.67
    least: Annotated[int, msgspec.Meta(ge=2)] = 3
    bits: Bits = 64
    limit: Annotated[float, msgspec.Meta(gt=0)] = 1024.0
    most_examples: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 100_000
    neighbours: Annotated[int, msgspec.Meta(ge=4)] = 30
    patience_s: Annotated[float, msgspec.Meta(gt=0)] = 300.0
    scores: bool = True

    reveals_each_update: ClassVar[bool] = False
    sends: ClassVar[tuple[str, ...]] = (GROUP,)

    def fewest_sites(self) -> int:
        return self.least

    def filter_scalars(self, scalars: Mapping[str, float]) -> Mapping[str, float]:
        # None of training, whose steps would tell the examples.
        kept = ("privacy/", "val") if self.scores else ("privacy/",)
        return {name: value for name, value in scalars.items() if name.startswith(kept)}

    def protectors(self, letters: SiteLetters) -> Iterator[UpdateProtector]:
        yield from protectors(self._settings, letters)

    def open_session(self, letters: HubLetters, deadline_s: float | None) -> RoundSession:
        return open_session(self._settings, letters, deadline_s)

    @property
    def _settings(self) -> Settings:
        return Settings(
            self.threshold,
            self.least,
            self.bits,
            self.limit,
            self.most_examples,
            self.neighbours,
            self.patience_s,
        )

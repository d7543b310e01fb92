"""What dossier.json holds. Nothing in it is of a single patient, and no field names a folder."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Text = Annotated[str, Meta(max_length=4000)]

# An epsilon above this lets an update be e^20 times likelier with a patient than without: it bounds nothing.
MAX_TELLING = 20.0


class Statements(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What only a person can say, from the file that `--statements` names; '' where nobody has said it.

    intended_use, not_for, users, oversight, risks: of the model.  purpose: what the data were used for, by
    which permit.  approvals: of ethics boards.  data_origin: how patients were chosen, and who drew labels.
    licence: the weights'.  contact: who answers for them.  recipient: who gets them.  monitoring: the plan
    for the time after deployment.
    """

    intended_use: Text = ""
    not_for: Text = ""
    users: Text = ""
    oversight: Text = ""
    risks: Text = ""
    purpose: Text = ""
    approvals: Text = ""
    data_origin: Text = ""
    licence: Text = ""
    contact: Text = ""
    recipient: Text = ""
    monitoring: Text = ""


class FileDigest(msgspec.Struct, frozen=True):
    """A file by its name, size and SHA-256."""

    name: str
    bytes: int
    sha256: str


class WeightFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The weights that are to leave.

    tensors_sha256: the digest of names and values, as the audit log has it for a merge.  round: the merge in
    the log with this digest, None if there is none.  exported: the files of an export, if one was named.
    """

    model: str
    file: FileDigest
    tensors_sha256: str
    round: int | None
    exported: list[FileDigest] = []


class Contribution(msgspec.Struct, frozen=True):
    """The rounds in which a hospital's update was merged, and how many cases it stated in its last."""

    site: str
    rounds: list[int]
    cases: int | None = None
    # What a hospital's own log, where one was given, says of it.
    own_log: str = ""


class LogFacts(msgspec.Struct, frozen=True):
    """The audit log: its lines, the last one's digest, who signed how many with which certificate."""

    lines: int
    head: str
    signer: str = ""
    signed: int = 0
    fingerprint: str = ""
    issued: bool = False


class SpentEpsilon(msgspec.Struct, frozen=True):
    """The epsilon that a hospital spent."""

    site: str
    epsilon: float


class PrivacyStatement(msgspec.Struct, frozen=True, kw_only=True):
    """How updates were protected. Without a differentially private mechanism there is no epsilon."""

    kind: str
    notes: list[str]
    delta: float | None = None
    unit: str = ""
    accountant: str = ""
    spent: list[SpentEpsilon] = []
    # Why there is no epsilon, '' if there is one.
    no_epsilon: str = ""
    # Hospitals that trained and of which no epsilon is recorded.
    unknown: list[str] = []


class LeakageFigure(msgspec.Struct, frozen=True, kw_only=True):
    """What an attack at one hospital found, in whole percent, with the study's protection or without.

    recovered: of the best reconstructed case; chance: of guessing.  members: how many of 100 patients are
    told rightly as trained on or not, 50 by guessing; None where too few cases were attacked.
    """

    site: str
    protection: str
    cases: int
    recovered: int | None = None
    chance: int | None = None
    members: int | None = None


class Agreement(msgspec.Struct, frozen=True, kw_only=True):
    """What a hospital agreed to: the study, when, under which policy, all by digest.

    record: the digest of the last line of its record of approvals.
    """

    site: str
    study: str
    approved: str = ""
    revoked: bool = False
    policy: str = ""
    record: str = ""


class SplitCounts(msgspec.Struct, frozen=True):
    """A hospital's cases by split, as text: a small number is a bound."""

    site: str
    counts: list[str]


class DataFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The data, as the study and the hospitals' counts describe them."""

    kind: str
    inputs: str
    classes: list[str]
    splits: list[str]
    cases: list[SplitCounts]
    left_out: str
    preparation: str


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """One item of a checklist: what it asks, in our words, and the evidence; '' where medfed has none."""

    item: str
    asks: str
    evidence: str = ""

    @property
    def status(self) -> str:
        """What medfed says of the item; never that it is fulfilled."""
        return "supports" if self.evidence else "not covered by medfed"


class Framework(msgspec.Struct, frozen=True, kw_only=True):
    """A checklist: a specification or a law, and its items."""

    name: str
    source: str
    items: list[Answer]


class Dossier(msgspec.Struct, frozen=True, kw_only=True):
    """The content of dossier.json."""

    version: Literal[1] = 1
    made: str
    study: str
    digest: str
    task: str
    finding: str
    weights: WeightFacts
    provenance: list[Contribution]
    never_merged: list[str]
    provenance_note: str
    log: LogFacts | None
    privacy: PrivacyStatement
    leakage: list[LeakageFigure]
    leakage_note: str
    agreements: list[Agreement]
    agreements_note: str
    data: DataFacts
    card: dict[str, str | None]
    limits: list[str]
    start: str
    statements: Statements
    packages: int
    # Packages whose version here differs from the one that the run recorded, None if it recorded none.
    differing: list[str] | None
    withheld_values: int
    smallest_group: int
    checklists: list[Framework] = []

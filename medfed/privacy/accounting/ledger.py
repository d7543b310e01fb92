"""The privacy ledger: what a hospital's patients have spent over all studies; it never leaves.

One file of JSON lines, readable only by its owner (`ledger_file.py`). Lines are only ever appended, signed
and chained, and the last one's digest is kept elsewhere: a ledger that was edited, cut or deleted is refused.

Before training, a study reserves what it plans to spend, and is refused if that would
carry any patient over the site's ceiling. What it does spend is recorded before anything is sent, so that
after a crash the ledger may overstate the cost, but never understates it.

    began     the orders of the recorded Rényi divergences
    data      a set of patients, by the digest of their salted tokens, and the tokens
    reserved  an account of one run of a study, and what it will spend at most on these patients
    spent     so many steps were released: noise multiplier, sampling rate, Rényi divergences
    closed    the run is over; what was reserved and not spent is released
    adopted   a person took over the lines before it, which had no signature or no head

Costs are counted per patient. A data set that gains a patient is another set with another digest, and the
patients of the older one keep what they have spent; nobody's budget is reset because a patient was added.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from medfed.errors import LedgerError
from medfed.privacy.accounting.accountant import (
    ORDERS,
    Accountant,
    MechanismSteps,
    compose,
    epsilon,
    epsilon_of_renyi,
    renyi,
    smallest_epsilon,
)
from medfed.privacy.accounting.ledger_file import Head, LedgerFile

LEDGER = "ledger.jsonl"
DELTA = 1e-5


@dataclass(frozen=True)
class DataSet:
    """The patients of one study at one site, by tokens that are meaningless outside the hospital."""

    patients: frozenset[str]

    @property
    def digest(self) -> str:
        """The digest that names this set of patients in the ledger."""
        return hashlib.sha256("\n".join(sorted(self.patients)).encode()).hexdigest()


def data_set(patients: Iterable[str], secret: bytes) -> DataSet:
    """Return the data set of these patients (as the hospital calls them), salted with the site's secret."""
    return DataSet(
        frozenset(
            hmac.new(secret, f"ledger/{one}".encode(), hashlib.sha256).hexdigest()[:16] for one in patients
        )
    )


@dataclass(frozen=True)
class BudgetAccount:
    """One run of a study in a ledger: what it has spent, and what is still reserved."""

    id: str
    study: str
    data: str
    spent: tuple[MechanismSteps, ...] = ()
    renyi: tuple[float, ...] = ()
    reserved: MechanismSteps | None = None
    closed: bool = False


class Ledger:
    """A site's ledger in a file; several processes and studies may share it.

    Args:
        path: the file, or a folder that holds or will hold `ledger.jsonl`.
        ceiling: the maximum epsilon of any patient over all studies, the site's own decision; None: no limit.
        delta: the delta at which the ceiling applies.
        secret: the site's secret, under which lines are signed; nothing is signed without.
        head: the file that keeps the last line's digest, away from the ledger; by default beside it.

    Raises:
        LedgerError: if a line was changed, removed or moved, or is not signed; or if the last lines, the
            whole file or the head are missing.
    """

    def __init__(
        self,
        path: str | Path,
        ceiling: float | None = None,
        delta: float = DELTA,
        *,
        secret: bytes = b"",
        head: Path | None = None,
    ) -> None:
        self._file = _ledger_file(Path(path), secret, head)
        self._ceiling = ceiling
        self._delta = delta
        self._file.lines()

    @staticmethod
    def adopt(path: str | Path, *, secret: bytes = b"", head: Path | None = None) -> int:
        """Take over a ledger whose head or signatures are missing, after a person compared it.

        Returns how many lines it had.

        Raises:
            LedgerError: if a line was changed, removed or moved.
        """
        return _ledger_file(Path(path), secret, head).adopt()

    # -- queries

    def accounts(self, study_digest: str = "") -> list[BudgetAccount]:
        """Return the accounts of one study or of all studies, in the order in which they were opened."""
        accounts = _accounts(self._file.lines()).values()
        return [account for account in accounts if not study_digest or account.study == study_digest]

    def spent(self, data: DataSet) -> float:
        """Return the largest epsilon that any patient of this data set has spent over all studies."""
        return self._largest_epsilon(data, reserved=False)

    def head(self) -> Head:
        """Return the number of lines and the last one's digest, for another record of this ledger."""
        self._file.lines()
        return self._file.read_head() or Head()

    # -- entries

    def reserve(self, study_digest: str, data: DataSet, plan: MechanismSteps, account: str = "") -> str:
        """Reserve what a run of a study plans to spend, and return the name of its account.

        With `account` the plan replaces what that run had reserved; what it has spent remains.

        Raises:
            LedgerError: if a patient's total would exceed the site's ceiling; nothing is written then.
        """
        with self._file.locked():
            self._check(study_digest, data, plan, account)
            lines = self._file.lines()
            if not lines:
                self._file.append({"event": "began", "orders": list(ORDERS)})
            if not any(line["event"] == "data" and line["data"] == data.digest for line in lines):
                self._file.append({"event": "data", "data": data.digest, "patients": sorted(data.patients)})
            name = account or secrets.token_hex(8)
            self._file.append(
                {
                    "event": "reserved",
                    "account": name,
                    "study": study_digest,
                    "data": data.digest,
                    **asdict(plan),
                }
            )
        return name

    def commit(self, account: str, charges: Sequence[MechanismSteps], round: int) -> None:
        """Record what a round's update costs; call it before the update is sent.

        Raises:
            LedgerError: if there is no such account.
        """
        with self._file.locked():
            if account not in _accounts(self._file.lines()):
                raise LedgerError(f"privacy ledger: no account '{account}'; reserve first")
            for charge in compose(charges):
                divergences = renyi([charge]).tolist()
                entry = {"event": "spent", "account": account, "round": round, **asdict(charge)}
                self._file.append({**entry, "renyi": divergences})

    def close(self, account: str) -> None:
        """Close an account; what it reserved and did not spend is released."""
        with self._file.locked():
            self._file.append({"event": "closed", "account": account})

    # -- internals

    def _check(self, study_digest: str, data: DataSet, plan: MechanismSteps, account: str) -> None:
        if self._ceiling is None:
            return
        before = self._largest_epsilon(data, reserved=True, but=account)
        after = self._largest_epsilon(data, reserved=True, but=account, plan=plan)
        if after > self._ceiling:
            raise LedgerError(
                f"study {study_digest[:12]}: its {plan.steps} steps would bring a patient of this hospital "
                f"from epsilon {before:.3f} to {after:.3f} at delta {self._delta:g}, the hospital's ceiling "
                f"is {self._ceiling:g} over all studies; nothing was trained. Fewer rounds, a smaller "
                "epsilon or other patients would do"
            )

    def _largest_epsilon(
        self, data: DataSet, *, reserved: bool, but: str = "", plan: MechanismSteps | None = None
    ) -> float:
        """Return a patient's largest epsilon, with a plan and what is `reserved` in accounts `but` one."""
        lines = self._file.lines()
        members = {line["data"]: frozenset(line["patients"]) for line in lines if line["event"] == "data"}
        orders = next((line["orders"] for line in lines if line["event"] == "began"), list(ORDERS))
        accounts = _accounts(lines).values()
        # Patients who took part in the same runs have spent the same, so each such group is computed once.
        groups = {
            frozenset(a.id for a in accounts if patient in members.get(a.data, frozenset()))
            for patient in data.patients
        }
        largest = 0.0
        for group in groups:
            own = [account for account in accounts if account.id in group]
            planned = [a.reserved for a in own if reserved and a.reserved is not None and a.id != but]
            planned += [plan] if plan is not None else []
            largest = max(largest, _epsilon(own, planned, orders, self._delta))
        return largest


def _ledger_file(path: Path, secret: bytes, head: Path | None) -> LedgerFile:
    path = path / LEDGER if path.is_dir() or not path.suffix else path
    key = hmac.new(secret, b"medfed-1 ledger", hashlib.sha256).digest() if secret else b""
    return LedgerFile(path, head or path.with_suffix(".head"), key)


def _accounts(lines: Iterable[Mapping[str, Any]]) -> dict[str, BudgetAccount]:
    accounts: dict[str, BudgetAccount] = {}
    for line in lines:
        event, name = line["event"], line.get("account", "")
        if event == "reserved":
            account = accounts.get(name) or BudgetAccount(name, line["study"], line["data"])
            plan = msgspec.convert(line, MechanismSteps)
            accounts[name] = replace(account, reserved=plan, closed=False)
        elif event == "spent":
            accounts[name] = _after(accounts[name], msgspec.convert(line, MechanismSteps), line["renyi"])
        elif event == "closed":
            accounts[name] = replace(accounts[name], reserved=None, closed=True)
    return accounts


def _after(account: BudgetAccount, charge: MechanismSteps, divergences: Sequence[float]) -> BudgetAccount:
    """Return an account after one more charge."""
    reserved = account.reserved
    if reserved is not None:
        steps = reserved.steps - charge.steps
        reserved = replace(reserved, steps=steps) if steps > 0 else None
    total = np.asarray(divergences) + (np.asarray(account.renyi) if account.renyi else 0)
    spent = compose([*account.spent, charge])
    return replace(account, spent=spent, renyi=tuple(total.tolist()), reserved=reserved)


def _epsilon(
    accounts: Sequence[BudgetAccount],
    planned: Sequence[MechanismSteps],
    orders: Sequence[float],
    delta: float,
) -> float:
    """Return the epsilon of these accounts plus a plan, the smaller of both accountants' bounds."""
    charges = compose([charge for account in accounts for charge in account.spent] + [*planned])
    if not charges:
        return 0.0
    recorded = sum((np.asarray(a.renyi) for a in accounts if a.renyi), np.zeros(len(orders)))
    bound = epsilon_of_renyi(recorded + renyi(planned, orders), delta, orders)
    return bound if math.isinf(bound) else min(bound, smallest_epsilon(charges, delta))


class BudgetTracker:
    """Tracks what one run of a study spends at a site, in its ledger and as the reported epsilon.

    The order of calls: `begin` with the plan of all remaining steps, `add` for every step, `commit_round`
    before a round's update is sent, `end`. A resumed run continues its open account; if it goes on inside a
    round, `resume_pending` gives back what was `pending` when that checkpoint was written.
    """

    def __init__(
        self,
        ledger: Ledger,
        study_digest: str,
        data: DataSet,
        *,
        delta: float,
        accountant: Accountant = "prv",
        resumed: bool = False,
    ) -> None:
        self._ledger, self._study, self._data = ledger, study_digest, data
        self.delta, self.accountant = delta, accountant
        self._account = ""
        self._settled: tuple[MechanismSteps, ...] = ()
        self._pending: tuple[MechanismSteps, ...] = ()
        # Close accounts of earlier runs of this study; they can spend nothing more.
        for account in ledger.accounts(study_digest):
            if account.closed or account.data != data.digest:
                continue
            if resumed:
                self._account, self._settled = account.id, account.spent
            else:
                ledger.close(account.id)

    @property
    def settled(self) -> tuple[MechanismSteps, ...]:
        """What this run has released so far, according to the ledger."""
        return self._settled

    @property
    def pending(self) -> tuple[MechanismSteps, ...]:
        """What was trained since the last update: nothing of it has left yet."""
        return self._pending

    def resume_pending(self, charges: Sequence[MechanismSteps]) -> None:
        """Count again what the next update will release of steps from before a restart."""
        self._pending = compose(charges)

    @property
    def epsilon(self) -> float:
        """The epsilon of what this run has released, by the study's accountant."""
        return epsilon(self._settled, self.delta, self.accountant)

    def begin(self, plan: MechanismSteps) -> None:
        """Reserve the remaining steps.

        Raises:
            LedgerError: if they would carry a patient over the site's ceiling.
        """
        self._account = self._ledger.reserve(self._study, self._data, plan, self._account)

    def add(self, charge: MechanismSteps) -> None:
        """Count a step; it is spent when its round is committed, because nothing has left before."""
        self._pending = compose([*self._pending, charge])

    def commit_round(self, round: int) -> dict[str, float]:
        """Record what the round's update costs, and return the scalars that report it."""
        if self._pending:
            self._ledger.commit(self._account, self._pending, round)
            self._settled = compose([*self._settled, *self._pending])
            self._pending = ()
        return {"privacy/epsilon": self.epsilon}

    def end(self) -> None:
        """Release what was reserved and not spent."""
        if self._account:
            self._ledger.close(self._account)

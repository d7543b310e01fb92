"""The arithmetic of differential privacy under `privacy/`: noise, accountants, the ledger, per-patient training."""

"""Privacy accounting: the epsilon of noised releases, and the ledger of what patients have spent."""

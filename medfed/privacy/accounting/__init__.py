"""What a study's noise costs in epsilon, and the ledger of what patients have spent."""

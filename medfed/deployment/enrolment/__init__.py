"""Who takes part: the federation's authority, requests, kits, and the broker's rights made of them."""

"""The leakage audit: what an attacker learns from one site's updates."""

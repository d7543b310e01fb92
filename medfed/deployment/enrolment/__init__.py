"""Who takes part: the federation's authority, requests, kits, and the broker's rights made of them."""

from medfed.deployment.enrolment import enrol

__all__ = ["enrol"]

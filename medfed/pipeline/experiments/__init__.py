"""Models to compare a federation with: local, pooled, without one hospital, retrained after a withdrawal."""

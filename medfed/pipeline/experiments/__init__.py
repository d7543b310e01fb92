"""Experiments on a whole study: compare methods, leave each hospital out, pool all cases, unlearn a hospital."""

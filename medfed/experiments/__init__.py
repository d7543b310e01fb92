"""A study trained in more than one way: methods beside each other, pooled, without a hospital, after a withdrawal."""

"""The checks of a hospital's folder that `medfed check` makes before training, and their report."""

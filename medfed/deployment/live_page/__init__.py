"""A page and metrics of one run, made from its run folder, which is only read (`--page`, `medfed watch`)."""

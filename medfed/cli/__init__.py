"""The command line."""

import os

# How often a thread of torch looks for its next piece of work before it sleeps; OpenMP reads it when torch is
# imported. Its own default, a hundred times more, gains nothing: on two cores a round of the quickstart takes
# 1.3 s either way. Beside four busy processes it takes 16 to 28 s with the default, and 8 with this.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")

from medfed.cli.commands import main as main

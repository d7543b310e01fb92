"""`python -m medfed.cli` is `medfed`."""

from medfed.cli.commands import main

main(prog_name="medfed")

"""The command line."""

from medfed.cli.commands import main as main

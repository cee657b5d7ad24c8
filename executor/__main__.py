"""``python -m executor``: the command line."""

from executor.cli.main import run

run()

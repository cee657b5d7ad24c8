"""``python -m executor``: the command line."""

from executor.cli.entry import start

start()

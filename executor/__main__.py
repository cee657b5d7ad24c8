"""``python -m executor``: the command line."""

import sys

from executor.cli.main import main

sys.exit(main())

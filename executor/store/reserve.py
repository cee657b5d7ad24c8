"""The reserve of disk space: 8 MiB in `db/reserved`, which a collector can free (row K6).

SQLite can't do anything on a full disk, so that without it the collector couldn't run when it is
needed most. Whoever opens the store next makes the file again, as soon as there is room.
"""

import os
from contextlib import suppress

from executor.errors import StoreError
from executor.store.location import StoreLocation


def reserve_path(location: StoreLocation) -> str:
    """Where the file is."""
    return f"{location.state_dir}/db/reserved"


def free_reserve(location: StoreLocation) -> None:
    """Delete the file before a collection, as Nix does. Raises StoreError where that fails."""
    path = reserve_path(location)
    try:
        with suppress(FileNotFoundError):
            os.unlink(path)
    except OSError as error:
        raise StoreError(f"cannot free the reserve '{path}': {error.strerror}") from error

"""What can go wrong with a transfer."""

from executor.errors import ExecutorError


class TransferError(ExecutorError):
    """A file can't be had.

    ``transient``: the same request may succeed later. ``rate_limited``: the server asked for
    patience; ``retry_after`` is the pause in seconds that it asked for. ``absent``: the file is
    not there, as far as the server says.
    """

    def __init__(
        self,
        text: str,
        *,
        transient: bool = False,
        rate_limited: bool = False,
        retry_after: float = 0.0,
        absent: bool = False,
    ) -> None:
        super().__init__(text)
        self.transient = transient
        self.rate_limited = rate_limited
        self.retry_after = retry_after
        self.absent = absent

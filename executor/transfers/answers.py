"""What an answer or a failure of a web server means: worth another try, or not, and when.

As Nix's use of curl, where it can be seen. Source: ``src/libstore/filetransfer.cc``.
"""

import email.utils
import http.client
import math
import random
import socket
import ssl
import time
from dataclasses import dataclass

from executor.transfers.endpoints import display
from executor.transfers.errors import TransferError

MAX_REDIRECTIONS = 10
REDIRECTIONS = frozenset({301, 302, 303, 307, 308})
SUCCESSES = frozenset({200, 201, 204, 206, 304})
_PATIENCE = frozenset({429, 503})
_HOPELESS_SERVER_ERRORS = frozenset({501, 505, 511})
_ABSENT = frozenset({401, 403, 404, 407, 410})


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How often a transfer is tried, and the pauses in seconds between the tries."""

    attempts: int = 5
    delay: float = 0.25
    rate_limited_delay: float = 5.0
    max_delay: float = 60.0

    def pause(self, error: TransferError, attempt: int) -> float:
        """How long to wait after the failure of this attempt (the first is 1)."""
        base = self.rate_limited_delay if error.rate_limited else self.delay
        # Not protection, only a means against many clients that come back all at once.
        power = min(attempt - 1, 30) + random.uniform(0.0, 0.5)
        return min(max(error.retry_after, base * math.pow(2.0, power)), self.max_delay)


def status_failure(url: str, status: int, retry_after_header: str) -> TransferError:
    """The error for an answer that is no success."""
    client_error = 400 <= status < 500 and status not in (408, 429)
    return TransferError(
        f"unable to download '{display(url)}': HTTP error {status}",
        transient=not client_error and status not in _HOPELESS_SERVER_ERRORS,
        rate_limited=status in _PATIENCE,
        retry_after=retry_after(retry_after_header),
        absent=status in _ABSENT,
    )


def continues(status: int, content_range: str, offset: int) -> bool:
    """Whether a response to a range request is the rest of the file, and not all of it again."""
    return status == 206 and content_range.startswith(f"bytes {offset}-")


def retry_after(text: str) -> float:
    """The pause in seconds that a server asks for, 0 when it doesn't."""
    text = text.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return 0.0


def explain(error: Exception) -> str:
    """A transport failure in curl's words, with curl's number."""
    match error:
        case socket.gaierror():
            return f"Could not resolve hostname (6) {error.strerror}"
        case TimeoutError():
            return "Timeout was reached (28)"
        case ssl.SSLError():
            return f"SSL connect error (35) {error.reason or error.strerror}"
        case http.client.IncompleteRead():
            return f"Transferred a partial file (18) {error.expected} bytes missing"
        case http.client.RemoteDisconnected():
            return "Server returned nothing (no headers, no data) (52)"
        case ConnectionRefusedError() | http.client.InvalidURL():
            return f"Could not connect to server (7) {error}"
        case OSError():
            return f"Failure when receiving data from the peer (56) {error.strerror or error}"
        case _:
            return f"Weird server reply (8) {type(error).__name__}"

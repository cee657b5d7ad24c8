"""Files of web servers: small ones whole, archives as a stream, with retries and back-off.

urllib3 speaks HTTP and keeps connections open; what is decided here is what Nix's use of curl
decides: proxies, passwords, redirections, what is tried again and when. A download that breaks off
goes on where it stopped if the server can do that.
"""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self, TypeVar

import urllib3
from urllib3.exceptions import (
    HTTPError,
    IncompleteRead,
    LocationValueError,
    NameResolutionError,
    NewConnectionError,
    ProtocolError,
    SSLError,
    TimeoutError,
)

from executor.caches.connections import Connections
from executor.caches.errors import CacheError
from executor.caches.watching import Meter, Watcher
from executor.settings import Settings
from executor.transfers.answers import (
    MAX_REDIRECTIONS,
    REDIRECTIONS,
    SUCCESSES,
    Patience,
    continues,
    status_failure,
)
from executor.transfers.endpoints import (
    Endpoint,
    Passwords,
    Proxies,
    basic,
    display,
    failure,
    parse_url,
    redirected,
)
from executor.transfers.errors import TransferError

_USER_AGENT = "executor/0.1 (Nix substituter)"
_DEFAULT_CA_FILE = "/etc/ssl/certs/ca-certificates.crt"
# What urllib3 can undo with the packages that we have. Not zstd: it wants another package for that.
_ENCODINGS = "gzip, deflate, br"
_BLOCK = 1 << 16
# What is left of an answer that nobody wants is read up to this, to keep the connection.
_DRAIN = 1 << 16
_DRAIN_SECONDS = 1.0

T = TypeVar("T")
Warn = Callable[[str], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class WebOptions:
    """How to transfer. Timeouts are seconds, 0 means without end."""

    ca_file: str = ""
    netrc_file: str = ""
    connect_timeout: int = 15
    stalled_timeout: int = 300
    connections: int = 25
    user_agent: str = _USER_AGENT
    patience: Patience = field(default_factory=Patience)

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """By the settings."""
        suffix = settings.user_agent_suffix
        return cls(
            ca_file=settings.ssl_cert_file,
            netrc_file=settings.netrc_file,
            connect_timeout=settings.connect_timeout,
            stalled_timeout=settings.stalled_download_timeout,
            connections=settings.http_connections or 25,
            user_agent=f"{_USER_AGENT} {suffix}" if suffix else _USER_AGENT,
            patience=Patience(attempts=max(settings.download_attempts, 1)),
        )


class WebClient:
    """Gets files from any server; any number of threads may use it at once.

    ``environ`` has the variables that name proxies. ``warn`` is told of what is tried again,
    ``watcher`` of all downloads.
    """

    def __init__(
        self,
        options: WebOptions,
        environ: Mapping[str, str],
        warn: Warn,
        watcher: Watcher | None = None,
    ) -> None:
        self.options = options
        self.warn = warn
        self.watcher = watcher
        variables = {name.encode(): value.encode() for name, value in environ.items()}
        self._proxies = Proxies(variables)
        netrc_file = options.netrc_file.encode() if options.netrc_file else None
        self._passwords = Passwords(netrc_file)
        self._pools: dict[str, urllib3.PoolManager] = {}
        self._lock = threading.Lock()
        ca_file = options.ca_file or _DEFAULT_CA_FILE
        self._connections = Connections(ca_file, options.stalled_timeout)

    def get(
        self, url: str, limit: int, *, attempts: int | None = None, parent: int = 0
    ) -> bytes | None:
        """A whole file; ``None`` if the server doesn't have it.

        ``attempts`` limits how often it is tried, below what the options say; ``parent`` is for the
        watcher. Raises ``TransferError``, and ``CacheError`` for one of more than ``limit`` bytes.
        """
        download = self.open(url, encoded=True, attempts=attempts, parent=parent)
        if download is None:
            return None
        with download:
            data = bytearray()
            while block := download.read(_BLOCK):
                data += block
                if len(data) > limit:
                    raise CacheError(f"'{url}' is longer than {limit} bytes")
        return bytes(data)

    def open(
        self,
        url: str,
        *,
        encoded: bool = False,
        attempts: int | None = None,
        parent: int = 0,
        origin: str | None = None,
    ) -> Download | None:
        """A file as a stream; ``None`` if the server doesn't have it. Raises ``TransferError``.

        With ``encoded`` the server may compress it on the way; then a break means a new start.
        ``origin`` is the URL of who told us this one; it has a say in which passwords are sent.
        """
        patience = self.options.patience
        if attempts is not None:
            patience = replace(patience, attempts=min(attempts, patience.attempts))
        endpoint = parse_url(url)
        first = endpoint if origin is None else parse_url(origin)
        download = Download(self, endpoint, first, patience, encoded=encoded, parent=parent)
        try:
            download.start()
        except BaseException as error:
            download.close()
            if isinstance(error, TransferError) and error.absent:
                return None
            raise
        return download

    def request(
        self, first: Endpoint, origin: Endpoint, offset: int, *, encoded: bool
    ) -> urllib3.BaseHTTPResponse:
        """Ask once, following redirections. Raises ``TransferError``."""
        if not self.sleep(0):
            raise failure(first.url, "the transfer was cancelled")
        endpoint = first
        for _ in range(MAX_REDIRECTIONS + 1):
            try:
                response = self._ask(endpoint, origin, offset, encoded=encoded)
            except (HTTPError, OSError) as error:
                raise transport_failure(first.url, error) from error
            location = response.headers.get("Location")
            if response.status not in REDIRECTIONS or not location:
                break
            _give_back(response)
            endpoint = redirected(endpoint, location)
        else:
            raise failure(first.url, "Number of redirects hit maximum amount (47)")
        if response.status not in SUCCESSES:
            after = response.headers.get("Retry-After", "")
            _give_back(response)
            raise status_failure(first.url, response.status, after)
        return response

    def _ask(
        self, endpoint: Endpoint, origin: Endpoint, offset: int, *, encoded: bool
    ) -> urllib3.BaseHTTPResponse:
        headers = {
            "Host": endpoint.host_header,
            "User-Agent": self.options.user_agent,
            "Accept": "*/*",
            "Accept-Encoding": _ENCODINGS if encoded else "identity",
        }
        if offset:
            headers["Range"] = f"bytes={offset}-"
        authorization = self._passwords.authorization(endpoint, origin)
        if authorization:
            headers["Authorization"] = authorization
        url = f"{endpoint.scheme}://{endpoint.host_header}{endpoint.target}"
        pool = self._pool(self._proxies.proxy_for(endpoint))
        return pool.request(
            "GET", url, headers=headers, redirect=False, retries=False, preload_content=False
        )

    def _pool(self, proxy: Endpoint | None) -> urllib3.PoolManager:
        """The connections through one proxy, or direct ones."""
        key = "" if proxy is None else proxy.url
        with self._lock:
            if key not in self._pools:
                self._pools[key] = self._new_pool(proxy)
            return self._pools[key]

    def _new_pool(self, proxy: Endpoint | None) -> urllib3.PoolManager:
        options = self.options
        timeout = urllib3.Timeout(
            connect=options.connect_timeout or None, read=options.stalled_timeout or None
        )
        arguments: dict[str, Any] = {
            "num_pools": 64,
            "maxsize": options.connections,
            "timeout": timeout,
            "cert_reqs": "CERT_REQUIRED",
        }
        if proxy is None:
            return self._connections.adopt(urllib3.PoolManager(**arguments))
        headers = {}
        if proxy.user is not None:
            headers["Proxy-Authorization"] = basic(proxy.user, proxy.password or "")
        host = f"[{proxy.host}]" if ":" in proxy.host else proxy.host
        url = f"http://{host}:{proxy.port}"
        return self._connections.adopt(
            urllib3.ProxyManager(url, proxy_headers=headers, **arguments)
        )

    def sleep(self, seconds: float) -> bool:
        """Wait; tells whether to go on."""
        return not self._connections.stopped.wait(seconds)

    def interrupt(self) -> None:
        """End all transfers from another thread: they raise ``TransferError``, as new ones do."""
        self._connections.interrupt()

    def close(self) -> None:
        """Close connections that nobody uses."""
        with self._lock:
            for pool in self._pools.values():
                pool.clear()
            self._pools.clear()
        self._connections.close()


class Download:
    """One file that is being received; a context manager."""

    def __init__(
        self,
        client: WebClient,
        endpoint: Endpoint,
        origin: Endpoint,
        patience: Patience,
        *,
        encoded: bool,
        parent: int,
    ) -> None:
        self._client = client
        self._patience = patience
        self._endpoint = endpoint
        self._origin = origin
        self._encoded = encoded
        self._response: urllib3.BaseHTTPResponse | None = None
        self._received = 0
        self._offset = 0
        self._attempt = 0
        self._resumable = False
        # Seconds spent waiting and bytes that came meanwhile, since the last look at the speed.
        self._waited, self._came = 0.0, 0
        self._meter: Meter | None = None
        if client.watcher is not None:
            self._meter = client.watcher.transfer(display(endpoint.url), parent)

    def start(self) -> None:
        """Send the request, several times if need be. Raises ``TransferError``."""
        self._try(self._request)

    def read(self, size: int, /) -> bytes:
        """Up to ``size`` bytes; none at the end. Raises ``TransferError``."""
        return self._try(lambda: self._receive(size))

    def _try(self, action: Callable[[], T]) -> T:
        patience = self._patience
        while True:
            try:
                return action()
            except TransferError as error:
                self._attempt += 1
                lost = self._received and not self._resumable
                if not error.transient or lost or self._attempt >= patience.attempts:
                    raise
                pause = patience.pause(error, self._attempt)
                if not self._client.sleep(0):
                    raise
                self._client.warn(
                    f"{error}; retrying in {int(pause * 1000)} ms "
                    f"(attempt {self._attempt}/{patience.attempts})"
                )
                if not self._client.sleep(pause):
                    raise

    def _request(self) -> None:
        self._drop()
        response = self._client.request(
            self._endpoint, self._origin, self._received, encoded=self._encoded
        )
        part = response.headers.get("Content-Range", "")
        partial = self._received or response.status == 206
        if partial and not continues(response.status, part, self._received):
            response.close()
            self._resumable = False
            raise failure(self._endpoint.url, "the server doesn't go on where it stopped")
        ranges = response.headers.get("Accept-Ranges", "").strip().lower() == "bytes"
        encoding = response.headers.get("Content-Encoding", "").strip().lower()
        self._resumable = encoding in ("", "identity") and (ranges or response.status == 206)
        self._response, self._offset = response, self._received
        if self._meter is not None:
            self._meter.expected = self._offset + (response.length_remaining or 0)

    def _receive(self, size: int) -> bytes:
        if self._response is None:
            self._request()
        assert self._response is not None
        begin = time.monotonic()
        try:
            data = self._response.read1(size, decode_content=True)
        except (HTTPError, OSError) as error:
            self._drop()
            raise transport_failure(self._endpoint.url, error) from error
        self._check_speed(time.monotonic() - begin, len(data))
        self._received += len(data)
        if self._meter is not None and data:
            # As they came over the wire, which is not what they are decoded to.
            self._meter.reach(self._offset + self._response.tell())
        return data

    def _check_speed(self, seconds: float, size: int) -> None:
        """Less than a byte a second, for as long as a silence may be, counts as one (as for curl).

        Only time that was spent waiting counts: who reads may be slow, too.
        """
        limit = self._client.options.stalled_timeout
        self._waited += seconds
        self._came += size
        if not limit or self._waited < limit:
            return
        if self._came < self._waited:
            self._drop()
            text = f"Operation too slow. Less than 1 bytes/sec transferred the last {limit} seconds"
            raise failure(self._endpoint.url, f"{text} (28)", transient=True)
        self._waited, self._came = 0.0, 0

    def close(self) -> None:
        """Drop the connection, unless all was read and it was given back."""
        self._drop()
        meter, self._meter = self._meter, None
        if meter is not None and self._client.watcher is not None:
            meter.finish()
            self._client.watcher.end(meter.number)

    def _drop(self) -> None:
        if self._response is not None:
            response, self._response = self._response, None
            response.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _give_back(response: urllib3.BaseHTTPResponse) -> None:
    """Keep the connection of an answer that nobody reads, if it is short and comes at once."""
    left, until = _DRAIN, time.monotonic() + _DRAIN_SECONDS
    try:
        while left > 0 and (response.length_remaining or 0) <= left and time.monotonic() < until:
            data = response.read1(left, decode_content=False)
            if not data:
                break
            left -= len(data)
    except (HTTPError, OSError, ValueError):
        pass  # broken
    response.close()


def transport_failure(url: str, error: Exception) -> TransferError:
    """What broke, in curl's words, with curl's number. Certificates don't get better by waiting."""
    match error:
        case NameResolutionError():
            reason = "Could not resolve hostname (6)"
        case SSLError():
            if not _only_talk(error):
                text = f"SSL peer certificate or SSH remote key was not OK (60) {error}"
                return failure(url, text)
            reason = f"SSL connect error (35) {error}"
        case NewConnectionError():
            reason = f"Could not connect to server (7) {error.__cause__ or error}"
        case TimeoutError():
            reason = "Timeout was reached (28)"
        case IncompleteRead():
            reason = f"Transferred a partial file (18) {error.expected} bytes missing"
        case LocationValueError():
            return failure(url, "URL using bad/illegal format or missing URL (3)")
        case ProtocolError() | OSError():
            reason = f"Failure when receiving data from the peer (56) {error}"
        case _:
            return failure(url, f"Weird server reply (8) {error}")
    return failure(url, reason, transient=True)


def _only_talk(error: SSLError) -> bool:
    """Whether only the talking failed: no certificate was bad, and no file of ours."""
    cause = error.args[0] if error.args else None
    return isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLCertVerificationError)

"""One file over HTTP, HTTPS or from a `file://` URL into a descriptor, with retries.

Behaves as Nix's use of curl where it can be seen: which failures are tried again and after what
pause, how redirections, proxies, passwords and content encodings are treated, what the errors
say. TLS certificates are always verified. HTTP is spoken with the standard library: everything is
loaded before the sandbox closes, and a URL is requested byte for byte as it is written.
"""

import http.client
import os
import random
import ssl
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from urllib.parse import unquote_to_bytes

from executor.builtins.compression import CONTENT_ENCODINGS, content_decoders
from executor.builtins.compression import ERRORS as DECODING_ERRORS
from executor.builtins.errors import BuiltinError, warn
from executor.builtins.options import BuiltinOptions
from executor.builtins.report import TransferReport
from executor.transfers.answers import (
    REDIRECTIONS,
    SUCCESSES,
    continues,
    explain,
    status_failure,
)
from executor.transfers.endpoints import (
    Endpoint,
    Passwords,
    Proxies,
    basic,
    failure,
    parse_url,
    redirected,
)
from executor.transfers.errors import TransferError

USER_AGENT = "executor/0.1 (Nix builtin:fetchurl)"
_DEFAULT_CA_FILE = b"/etc/ssl/certs/ca-certificates.crt"
_MAX_REDIRECTIONS = 10
_BLOCK = 128 * 1024


class Downloader:
    """Transfers files with one set of options, proxies and passwords."""

    def __init__(self, options: BuiltinOptions, environment: Mapping[bytes, bytes]) -> None:
        self._options = options
        self._proxies = Proxies(environment)
        self._passwords = Passwords(options.netrc_file)
        if options.netrc_file is not None:
            # From here on no file:// URL of a hostile derivation can make an output of it.
            with suppress(FileNotFoundError):
                os.unlink(options.netrc_file)
        self._random = random.Random()

    def download(self, url: str, fd: int) -> None:
        """Make the file `fd` hold what `url` has; raises TransferError when it can't be had.

        Whatever the file had is lost, in the case of failure too.
        """
        os.ftruncate(fd, 0)
        os.lseek(fd, 0, os.SEEK_SET)
        endpoint = parse_url(url)
        report = TransferReport(url)
        try:
            if endpoint.scheme == "file":
                _copy_file(endpoint, fd, report)
            else:
                self._download(endpoint, fd, report)
        finally:
            report.end()

    def _download(self, endpoint: Endpoint, fd: int, report: TransferReport) -> None:
        transfer = _HttpTransfer(
            endpoint, fd, self._options, self._proxies, self._passwords, report
        )
        for attempt in range(1, self._options.attempts + 1):
            try:
                transfer.attempt()
            except TransferError as error:
                if not error.transient or attempt == self._options.attempts:
                    raise
                self._pause(error, attempt)
            else:
                return
        raise failure(endpoint.url, "no attempts are allowed")

    def _pause(self, error: TransferError, attempt: int) -> None:
        options = self._options
        base = options.retry_delay_rate_limited_ms if error.rate_limited else options.retry_delay_ms
        delay: float = min(base << min(attempt - 1, 31), options.retry_max_delay_ms)
        floor = error.retry_after * 1000
        delay = self._random.uniform(floor, floor + delay) if options.retry_jitter else delay
        milliseconds = int(max(floor, delay))
        warn(f"{error}; retrying in {milliseconds} ms (attempt {attempt}/{options.attempts})")
        time.sleep(milliseconds / 1000)


def _copy_file(endpoint: Endpoint, fd: int, report: TransferReport) -> None:
    """Copy a local file. curl refuses other hosts too; only plain files make sense here."""
    if endpoint.host not in ("", "localhost", "127.0.0.1"):
        raise failure(endpoint.url, "URL using bad/illegal format or missing URL (3)")
    path = unquote_to_bytes(endpoint.target.partition("?")[0])
    try:
        source = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        shown = path.decode("utf-8", "backslashreplace")
        reason = f"Could not read a file:// file (37) Could not open file {shown}"
        raise failure(endpoint.url, reason) from error
    try:
        status, done = os.fstat(source), 0
        if not stat.S_ISREG(status.st_mode):
            raise failure(endpoint.url, "Could not read a file:// file (37) Not a regular file")
        while block := os.read(source, _BLOCK):
            _write(fd, block)
            done += len(block)
            report.reach(done, status.st_size)
    finally:
        os.close(source)


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


class _HttpTransfer:
    """The attempts at one URL; a later one goes on where an earlier one was cut off."""

    def __init__(
        self,
        endpoint: Endpoint,
        fd: int,
        options: BuiltinOptions,
        proxies: Proxies,
        passwords: Passwords,
        report: TransferReport,
    ) -> None:
        self._first = endpoint
        self._report = report
        self._fd = fd
        self._options = options
        self._proxies = proxies
        self._passwords = passwords
        self._resumable = False

    def attempt(self) -> None:
        """Follow redirections and receive the body; raises TransferError."""
        if not self._resumable:
            os.ftruncate(self._fd, 0)
        offset = os.lseek(self._fd, 0, os.SEEK_END)
        endpoint = self._first
        for _ in range(_MAX_REDIRECTIONS + 1):
            following = self._request(endpoint, offset)
            if following is None:
                return
            endpoint = following
        raise failure(self._first.url, "Number of redirects hit maximum amount (47)")

    def _request(self, endpoint: Endpoint, offset: int) -> Endpoint | None:
        """Make one request; returns where it was redirected to, or None when all was received."""
        proxy = self._proxies.proxy_for(endpoint)
        with_tls = self._tls() if endpoint.scheme == "https" else None
        connection = _Connection(endpoint, proxy, with_tls, self._options)
        try:
            response = connection.request(self._headers(endpoint, proxy, offset))
            location = response.headers.get("Location")
            if response.status in REDIRECTIONS and location:
                return redirected(endpoint, location)
            self._check_status(response)
            self._receive(response, offset)
        except ssl.SSLCertVerificationError as error:
            reason = "SSL peer certificate or SSH remote key was not OK (60)"
            raise failure(self._first.url, f"{reason} {error.verify_message}") from error
        except (OSError, http.client.HTTPException) as error:
            raise failure(self._first.url, explain(error), transient=True) from error
        finally:
            connection.close()
        return None

    def _headers(self, endpoint: Endpoint, proxy: Endpoint | None, offset: int) -> dict[str, str]:
        suffix = self._options.user_agent_suffix
        headers = {
            "Host": endpoint.host_header,
            "User-Agent": f"{USER_AGENT} {suffix}" if suffix else USER_AGENT,
            "Accept": "*/*",
            "Connection": "close",
        }
        if offset:
            headers["Range"] = f"bytes={offset}-"
        else:
            headers["Accept-Encoding"] = CONTENT_ENCODINGS
        authorization = self._passwords.authorization(endpoint, self._first)
        if authorization:
            headers["Authorization"] = authorization
        if proxy and proxy.user is not None and endpoint.scheme == "http":
            headers["Proxy-Authorization"] = basic(proxy.user, proxy.password or "")
        return headers

    def _check_status(self, response: http.client.HTTPResponse) -> None:
        if response.status not in SUCCESSES:
            after = response.headers.get("Retry-After", "")
            raise status_failure(self._first.url, response.status, after)

    def _receive(self, response: http.client.HTTPResponse, offset: int) -> None:
        encoding = response.headers.get("Content-Encoding", "")
        plain = encoding.strip().lower() in ("", "identity")
        ranges = response.headers.get("Accept-Ranges", "").strip().lower() == "bytes"
        if offset and not continues(
            response.status, response.headers.get("Content-Range", ""), offset
        ):
            os.ftruncate(self._fd, 0)
            os.lseek(self._fd, 0, os.SEEK_SET)
        self._resumable = plain and (ranges or response.status == 206)
        done = offset if response.status == 206 else 0
        expected = done + response.length if response.length else 0
        try:
            decoders = content_decoders(encoding)
            for block in _blocks(response):
                done += len(block)
                self._report.reach(done, expected)
                pieces: Iterator[bytes] = iter((block,))
                for decoder in decoders:
                    pieces = (out for piece in pieces for out in decoder.decode(piece))
                for piece in pieces:
                    _write(self._fd, piece)
            for decoder in decoders:
                decoder.finish()
        except (BuiltinError, *DECODING_ERRORS) as error:
            if isinstance(error, OSError):
                raise
            reason = "Unrecognized or bad HTTP Content or Transfer-Encoding (61)"
            raise failure(self._first.url, f"{reason} {error}") from error

    def _tls(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            context.load_verify_locations(cafile=self._options.ca_file or _DEFAULT_CA_FILE)
        except (OSError, ssl.SSLError) as error:
            reason = "Problem with the SSL CA cert (path? access rights?) (77)"
            raise failure(self._first.url, reason) from error
        return context


class _Connection:
    """One request on one connection, directly or through a proxy."""

    def __init__(
        self,
        endpoint: Endpoint,
        proxy: Endpoint | None,
        tls: ssl.SSLContext | None,
        options: BuiltinOptions,
    ) -> None:
        self._endpoint = endpoint
        self._proxy = proxy
        self._tls = tls
        self._stalled = float(options.stalled_timeout) or None
        first = proxy or endpoint
        timeout = float(options.connect_timeout) or None
        self._http = http.client.HTTPConnection(first.host, first.port, timeout=timeout)

    def request(self, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        """Connect, send a GET and read the head of the response."""
        endpoint, proxy, connection = self._endpoint, self._proxy, self._http
        if proxy and self._tls:
            credentials = proxy.user is not None and basic(proxy.user, proxy.password or "")
            extra = {"Proxy-Authorization": credentials} if credentials else {}
            connection.set_tunnel(endpoint.host, endpoint.port, extra)
        connection.connect()
        if self._tls:
            connection.sock = self._tls.wrap_socket(connection.sock, server_hostname=endpoint.host)
        connection.sock.settimeout(self._stalled)
        absolute = f"http://{endpoint.host_header}{endpoint.target}"
        target = absolute if proxy and not self._tls else endpoint.target
        connection.putrequest("GET", target, skip_host=True, skip_accept_encoding=True)
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders()
        return connection.getresponse()

    def close(self) -> None:
        self._http.close()


def _blocks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """The body; raises IncompleteRead when it is shorter than announced."""
    while block := response.read1(_BLOCK):
        yield block
    if response.length:
        raise http.client.IncompleteRead(b"", response.length)

"""Where a request goes and as whom: URLs, proxies and passwords. Pure, apart from reading netrc."""

import base64
import ipaddress
import netrc
import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes, urljoin, urlsplit

from executor.transfers.errors import TransferError

_DEFAULT_PORTS = {"http": 80, "https": 443}
_BAD_URL = "URL using bad/illegal format or missing URL (3)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One absolute URL, taken apart. `target` is what goes into the request line, verbatim."""

    url: str
    scheme: str
    host: str
    port: int
    target: str
    user: str | None
    password: str | None

    @property
    def host_header(self) -> str:
        """The host, with brackets for IPv6 and the port unless it is the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS.get(self.scheme) else f"{host}:{self.port}"

    @property
    def authority(self) -> tuple[str, str, int]:
        """What has to be equal for credentials to go along with a redirection."""
        return self.scheme, self.host, self.port


def display(url: str) -> str:
    """`url` for messages: without user and password."""
    return re.sub(r"^([A-Za-z][A-Za-z0-9+.-]*://)[^/?#]*@", r"\1", url)


def failure(url: str, reason: str, *, transient: bool = False) -> TransferError:
    """The error of a transfer, in Nix's words."""
    text = f"unable to download '{display(url)}': {reason}"
    return TransferError(text, transient=transient)


def parse_url(url: str) -> Endpoint:
    """Take a URL apart; raises TransferError unless it is a well-formed http(s) or file one."""
    try:
        parts = urlsplit(url)
        port = parts.port
        host = (parts.hostname or "").encode("idna" if not parts.netloc.isascii() else "ascii")
    except (ValueError, UnicodeError) as error:
        raise failure(url, _BAD_URL) from error
    if re.search(r"[\x00-\x20\x7f]", url) or not parts.scheme:
        raise failure(url, _BAD_URL)
    if parts.scheme not in ("http", "https", "file"):
        raise failure(url, f'Unsupported protocol (1) Protocol "{parts.scheme}" not supported')
    if parts.scheme != "file" and not host:
        raise failure(url, _BAD_URL)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Endpoint(
        url=url,
        scheme=parts.scheme,
        host=host.decode("ascii"),
        port=port if port is not None else _DEFAULT_PORTS.get(parts.scheme, 0),
        target=_ascii(target),
        user=_unquote(parts.username),
        password=_unquote(parts.password),
    )


def redirected(base: Endpoint, location: str) -> Endpoint:
    """Where a redirection leads. Only http and https: a server doesn't choose local files."""
    try:
        url = urljoin(base.url, _ascii(location.strip()))
    except ValueError as error:
        raise failure(base.url, _BAD_URL) from error
    endpoint = parse_url(url)
    if endpoint.scheme not in _DEFAULT_PORTS:
        raise failure(base.url, f'Unsupported protocol (1) Protocol "{endpoint.scheme}" disabled')
    return endpoint


def _ascii(text: str) -> str:
    """Bytes that can't stand in a request line, escaped; everything else is left as it was."""
    return "".join(
        c if c.isascii() else "".join(f"%{b:02X}" for b in c.encode("utf-8", "surrogateescape"))
        for c in text
    )


def _unquote(text: str | None) -> str | None:
    if text is None:
        return None
    raw = unquote_to_bytes(text.encode("utf-8", "surrogateescape"))
    return raw.decode("utf-8", "surrogateescape")


def basic(user: str, password: str) -> str:
    """The value of an Authorization header."""
    raw = f"{user}:{password}".encode("utf-8", "surrogateescape")
    return "Basic " + base64.b64encode(raw).decode("ascii")


class Passwords:
    """The netrc file: user and password for exactly the hosts that it names.

    Its ``default`` entry is for whoever the transfer began with, not for where it was sent.
    Raises TransferError for a malformed one. No file, and one that may not be read, mean that there
    are no accounts.
    """

    def __init__(self, file: bytes | None) -> None:
        self._accounts: netrc.netrc | None = None
        if file is None:
            return
        try:
            self._accounts = netrc.netrc(file.decode("utf-8", "surrogateescape"))
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            return
        except (netrc.NetrcParseError, UnicodeError) as error:
            # Without the details: they may quote the file.
            raise TransferError("the netrc file is malformed") from error

    def authorization(self, endpoint: Endpoint, first: Endpoint) -> str | None:
        """The Authorization header for a request to `endpoint`, that began at `first`.

        A password in the URL counts for its own scheme, host and port only. Nothing is sent in
        the clear once the transfer began with TLS, or where another server has sent us: it could
        make us tell every password of the netrc file to whoever listens.
        """
        if endpoint.user is not None:
            return basic(endpoint.user, endpoint.password or "")
        if first.scheme == "https" and endpoint.scheme != "https":
            return None
        if first.user is not None and first.authority == endpoint.authority:
            return basic(first.user, first.password or "")
        if endpoint.scheme != "https" and endpoint.authority != first.authority:
            return None
        entry = self._account(endpoint.host, default=endpoint.authority == first.authority)
        return basic(entry[0] or "", entry[2] or "") if entry else None

    def _account(self, host: str, *, default: bool) -> tuple[str, str, str] | None:
        """The entry of a host; the one without a host is for those that we chose ourselves."""
        hosts = {} if self._accounts is None else self._accounts.hosts
        return hosts.get(host) or (hosts.get("default") if default else None)


class Proxies:
    """The proxy variables of the environment, as curl understands them."""

    def __init__(self, environment: Mapping[bytes, bytes]) -> None:
        self._environment = environment

    def proxy_for(self, endpoint: Endpoint) -> Endpoint | None:
        """The proxy for a request, or None; raises TransferError for a kind not supported."""
        # HTTP_PROXY is not read, as in curl: a web server may have set it from a header.
        names = ("http_proxy",) if endpoint.scheme == "http" else ("https_proxy", "HTTPS_PROXY")
        text = self._first(*names, "all_proxy", "ALL_PROXY")
        if not text or self._exempt(endpoint.host):
            return None
        proxy = parse_url(text if "://" in text else f"http://{text}")
        if proxy.scheme != "http":
            raise failure(endpoint.url, f"Unsupported proxy '{display(text)}'")
        return proxy

    def _first(self, *names: str) -> str:
        values = (self._environment.get(name.encode(), b"") for name in names)
        return next((value.decode("utf-8", "surrogateescape") for value in values if value), "")

    def _exempt(self, host: str) -> bool:
        return any(
            entry == "*" or _covers(entry, host.rstrip(".").lower())
            for entry in re.split(r"[,\s]+", self._first("no_proxy", "NO_PROXY").lower())
            if entry
        )


def _covers(entry: str, host: str) -> bool:
    """Whether a no_proxy entry (domain, address or network) covers a host."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        domain = entry.strip(".")
        return bool(domain) and (host == domain or host.endswith(f".{domain}"))
    try:
        return address in ipaddress.ip_network(entry.strip("[]"), strict=False)
    except ValueError:
        return False

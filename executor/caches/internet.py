"""Whether this machine has any network at all: an address that others could reach it by."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

from executor.caches.address import CacheAddress

_PROXIES = ("http_proxy", "https_proxy", "all_proxy")
_ADDRESS = re.compile(r"\|-- ([0-9.]+)\s*$")


def has_internet(environ: Mapping[str, str] | None = None) -> bool:
    """Whether an interface has an address that is neither loopback nor link-local.

    Link-local IPv4 addresses count, as in Nix. True where a proxy is set or the kernel doesn't
    tell.
    """
    variables = os.environ if environ is None else environ
    if any(variables.get(name) or variables.get(name.upper()) for name in _PROXIES):
        return True
    try:
        with open("/proc/net/fib_trie", encoding="ascii") as file:
            if any(not address.is_loopback for address in _local_ipv4(file)):
                return True
    except OSError:
        return True
    try:
        with open("/proc/net/if_inet6", encoding="ascii") as file:
            addresses = [ipaddress.IPv6Address(int(line.split()[0], 16)) for line in file]
    except FileNotFoundError:
        return False  # a kernel without IPv6
    except (OSError, ValueError, IndexError):
        return True
    return any(not (address.is_loopback or address.is_link_local) for address in addresses)


def _local_ipv4(lines: Iterable[str]) -> Iterable[ipaddress.IPv4Address]:
    """This machine's own addresses in the kernel's routing tables."""
    last = ""
    for line in lines:
        match = _ADDRESS.search(line)
        if match:
            last = match[1]
        elif last and "/32 host LOCAL" in line:
            yield ipaddress.IPv4Address(last)


def is_loopback(address: CacheAddress) -> bool:
    """Whether a cache is on this very machine, by its URL."""
    host = urlsplit(address.base).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")

"""The resolv.conf of a build whose network is its own, made from the host's. Pure.

Resolvers outside are asked as the host asks them. One on the host's loopback can't be reached from
another network; the network's own resolver address stands for it.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from sandbox import LOCAL_RESOLVER

_MAX_RESOLVERS = 3  # as many as the C library takes
_KEPT = ("search", "domain", "options", "sortlist")
# Where the C library looks when nothing names a resolver, and where those that listen only on
# loopback nearly always listen, too.
_LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolvers:
    """``content`` is the build's resolv.conf; ``outside`` are the addresses in it.

    ``local`` is the one on the host's loopback for which the network's own address stands.
    """

    content: bytes
    outside: tuple[str, ...]
    local: str | None


def resolvers_for_build(host_file: str) -> Resolvers:
    """What the host's resolv.conf means inside; an empty one means the resolver on loopback."""
    kept: list[str] = []
    addresses: list[str] = []
    local: str | None = None
    for line in host_file.splitlines():
        words = line.split()
        if not words or words[0][0] in "#;":
            continue
        if words[0] in _KEPT:
            kept.append(" ".join(words))
        elif words[0] == "nameserver" and len(words) > 1:
            address, on_loopback = _look_at(words[1])
            local = local or on_loopback
            if address is not None and address not in addresses:
                addresses.append(address)
    if not addresses:
        addresses, local = [LOCAL_RESOLVER], _LOOPBACK
    addresses = addresses[:_MAX_RESOLVERS]
    lines = [*kept, *(f"nameserver {address}" for address in addresses)]
    return Resolvers(
        content="".join(f"{line}\n" for line in lines).encode(),
        outside=tuple(address for address in addresses if address != LOCAL_RESOLVER),
        local=local if LOCAL_RESOLVER in addresses else None,
    )


def _look_at(word: str) -> tuple[str | None, str | None]:
    """The address inside for a resolver, if any, and the host's loopback address that it means."""
    try:
        address = ipaddress.ip_address(word.partition("%")[0])
    except ValueError:
        return None, None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if address.is_loopback or address.is_unspecified:
        is_four = address.version == 4 and not address.is_unspecified
        return LOCAL_RESOLVER, str(address) if is_four else _LOOPBACK
    if address.is_link_local and address.version == 6:
        return None, None  # has a meaning on one link of the host only
    return str(address), None

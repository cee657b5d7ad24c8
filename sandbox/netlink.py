"""Interfaces, addresses and routes, by pyroute2: of this machine to look at, of a network to set.

pyroute2 takes long to import, so only the network server does it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pyroute2 import IPRoute, NetlinkError

from sandbox import nat_rules, syscalls
from sandbox.errors import SandboxError
from sandbox.pasta import GATEWAY_MAC, Outside

_LOOPBACK = 1
_LOCAL_TABLE = 255
_LOCAL = 2  # RTN_LOCAL
_IFF_UP, _IFF_LOOPBACK = 0x1, 0x8
_NODAD = 0x02
_AF_INET, _AF_INET6 = 2, 10
_SCOPE_UNIVERSE, _SCOPE_LINK = 0, 253
_MTU = 65520
_PATIENCE = 10.0
_PAUSE = 0.002


@contextmanager
def _netlink() -> Iterator[IPRoute]:
    """A socket to the kernel; what it refuses is a ``SandboxError``."""
    try:
        with IPRoute() as ip:
            yield ip
    except NetlinkError as error:
        raise SandboxError(f"the kernel refused to set a network up: {error}") from error


@contextmanager
def inside(netns: int, own: int) -> Iterator[None]:
    """Be in another network namespace for a while; sockets that are opened there stay there."""
    syscalls.setns(netns, syscalls.CLONE_NEWNET)
    try:
        yield
    finally:
        syscalls.setns(own, syscalls.CLONE_NEWNET)


def host_addresses() -> list[str]:
    """Every address at which this machine, in this network namespace, answers itself."""
    with _netlink() as ip:
        routes = [
            *ip.get_routes(family=_AF_INET, table=_LOCAL_TABLE),
            *ip.get_routes(family=_AF_INET6, table=_LOCAL_TABLE),
        ]
    found = set()
    for route in routes:
        address = route.get_attr("RTA_DST")
        if route["type"] == _LOCAL and address:
            found.add(f"{address}/{route['dst_len']}")
    return sorted(found)


def outside() -> Outside:
    """What a network's helper takes as its template.

    IPv6 goes out where an interface has an address of more than its link. The interface needs an
    address of its link then, nothing more: connections follow the routing table.
    """
    with _netlink() as ip:
        links = {
            link["index"]: link.get_attr("IFLA_IFNAME")
            for link in ip.get_links()
            if link["flags"] & _IFF_UP and not link["flags"] & _IFF_LOOPBACK
        }
        scopes: dict[int, set[int]] = {}
        for address in ip.get_addr(family=_AF_INET6):
            scopes.setdefault(address["index"], set()).add(address["scope"])
    for index, name in sorted(links.items()):
        if scopes.get(index, set()) >= {_SCOPE_UNIVERSE, _SCOPE_LINK}:
            return Outside(interface=name, ipv6=True)
    first = next((name for _index, name in sorted(links.items())), "lo")
    return Outside(interface=first, ipv6=False)


def configure(ipv6: bool, still_there: Callable[[], bool]) -> None:
    """Give the interface that pasta makes in this namespace its addresses and routes.

    Waits for it to appear. Raises ``SandboxError`` when the helper ends before, or takes too long.
    """
    with _netlink() as ip:
        ip.link("set", index=_LOOPBACK, state="up")
        index = _await_interface(ip, still_there)
        ip.link("set", index=index, state="up", mtu=_MTU)
        ip.addr("add", index=index, address=nat_rules.ADDRESS4, prefixlen=nat_rules.PREFIX4)
        _add_route(ip, index, nat_rules.GATEWAY4)
        if ipv6:
            ip.addr(
                "add",
                index=index,
                address=nat_rules.ADDRESS6,
                prefixlen=nat_rules.PREFIX6,
                flags=_NODAD,
            )
            _add_route(ip, index, nat_rules.GATEWAY6)


def _add_route(ip: IPRoute, index: int, gateway: str) -> None:
    """Everything goes to a gateway that needn't be asked for its address on the link."""
    family = _AF_INET6 if ":" in gateway else _AF_INET
    ip.neigh("add", dst=gateway, lladdr=GATEWAY_MAC, ifindex=index, state="permanent")
    ip.route("add", family=family, dst="default", gateway=gateway, oif=index)


def _await_interface(ip: IPRoute, still_there: Callable[[], bool]) -> int:
    deadline = time.monotonic() + _PATIENCE
    while True:
        found: list[int] = ip.link_lookup(ifname=nat_rules.INTERFACE)
        if found:
            return found[0]
        if not still_there():
            raise SandboxError("the network's helper ended before its network was there")
        if time.monotonic() > deadline:
            raise SandboxError(f"no network after {_PATIENCE:.0f} seconds")
        time.sleep(_PAUSE)

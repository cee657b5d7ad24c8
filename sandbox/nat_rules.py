"""From the specification of a network to the text of its filter, and from the filter's sets to
what was talked to. Pure.

The filter sees what leaves the namespace. First come what is never reachable, whatever the rules
say, then names, then the rules; what no rule matches is refused. Both verdicts are noted in sets
of a bounded size before they are given. A packet of IPv4 is judged as such however its address was
written: a v4-mapped socket sends IPv4, and addresses that embed one of IPv4 (NAT64) are matched
with it.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterable, Iterator
from typing import TypeAlias

from sandbox.errors import SandboxError
from sandbox.nat_spec import (
    LOCAL_RESOLVER,
    NAMED_DESTINATIONS,
    Contact,
    Contacts,
    NatSpec,
    NetworkRule,
)

TABLE = "sandbox"
INTERFACE = "eth0"
# RFC 7335 reserves 192.0.0.0/29 for what joins a host to its own network; nobody's LAN has it.
ADDRESS4, GATEWAY4, PREFIX4 = "192.0.0.2", "192.0.0.1", 29
ADDRESS6, GATEWAY6, PREFIX6 = "fd65:7865:6375:746f::2", "fd65:7865:6375:746f::1", 64
MAX_CONTACTS = 1024

# Loopback, "this network", multicast and broadcast, and what is no address of a wire.
_NEVER = (
    *("127.0.0.0/8", "0.0.0.0/8", "224.0.0.0/4", "240.0.0.0/4"),
    *("::/128", "::1/128", "::ffff:0:0/96", "::/96", "ff00::/8"),
)
_NAT64 = int(ipaddress.IPv6Address("64:ff9b::"))
_SETS = (("allowed4", "ipv4"), ("allowed6", "ipv6"), ("denied4", "ipv4"), ("denied6", "ipv6"))
_IPv4: TypeAlias = ipaddress.IPv4Network
_IPv6: TypeAlias = ipaddress.IPv6Network

# tcp reset and port-unreachable both make the builder's call fail with ECONNREFUSED, at once.
_FRAME = """\
table inet {table} {{
{sets}
  counter allowed_more {{ }}
  counter denied_more {{ }}
  chain allow {{
    meta nfproto ipv4 add @allowed4 {{ meta l4proto . ip daddr . th dport }} accept
    meta nfproto ipv6 add @allowed6 {{ meta l4proto . ip6 daddr . th dport }} accept
    counter name allowed_more accept
  }}
  chain refuse {{
    meta l4proto tcp reject with tcp reset
    reject with icmpx port-unreachable
  }}
  chain deny {{
    meta nfproto ipv4 add @denied4 {{ meta l4proto . ip daddr . th dport }} goto refuse
    meta nfproto ipv6 add @denied6 {{ meta l4proto . ip6 daddr . th dport }} goto refuse
    counter name denied_more goto refuse
  }}
  chain output {{
    type filter hook output priority 0; policy drop;
    oif lo accept
    meta l4proto != {{ tcp, udp }} drop
{rules}
    goto deny
  }}
}}
"""


def filter_text(spec: NatSpec, host_addresses: Iterable[str]) -> str:
    """The filter as ``nft -f`` reads it. ``host_addresses`` are those of this machine."""
    rules = spec.rules
    if not any(rule.destination == "dns" for rule in rules):
        rules = (NetworkRule(allow=True, destination="dns"), *rules)
    never = _matches([ipaddress.ip_network(text) for text in _NEVER])
    lines = [f"{match} goto deny" for match in never]
    own = [ipaddress.ip_network(address) for address in host_addresses]
    for rule in rules:
        lines += _rule_lines(rule, spec, own)
    sets = "\n".join(
        f"  set {name} {{ type inet_proto . {family}_addr . inet_service; "
        f"size {MAX_CONTACTS}; flags dynamic; }}"
        for name, family in _SETS
    )
    return _FRAME.format(table=TABLE, sets=sets, rules="\n".join(f"    {line}" for line in lines))


def _rule_lines(rule: NetworkRule, spec: NatSpec, own: list[_IPv4 | _IPv6]) -> Iterator[str]:
    verdict = "goto allow" if rule.allow else "goto deny"
    ports = list(rule.ports)
    if rule.destination == "dns":
        networks = [ipaddress.ip_network(address) for address in resolver_addresses(spec)]
        ports = [(53, 53)]
    elif rule.destination == "host":
        networks = own
    else:
        texts = NAMED_DESTINATIONS.get(rule.destination, (rule.destination,))
        networks = [ipaddress.ip_network(text) for text in texts]
    how = f" meta l4proto {rule.protocol}" if rule.protocol else ""
    if ports:
        shown = ", ".join(f"{first}-{last}" for first, last in _merged(ports))
        how += f" th dport {{ {shown} }}"
    for match in _matches(networks):
        yield f"{match}{how} {verdict}"


def _merged(ports: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges without overlaps, which a set of intervals doesn't take."""
    merged: list[tuple[int, int]] = []
    for first, last in sorted(ports):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return merged


def _matches(networks: Iterable[_IPv4 | _IPv6]) -> Iterator[str]:
    """How to match packets to some networks: an expression a family."""
    plain = [_unmapped(network) for network in networks]
    four = [network for network in plain if isinstance(network, _IPv4)]
    six = [network for network in plain if isinstance(network, _IPv6)]
    six += [_embedded(network) for network in four]
    for name, found in (
        ("ip", list(ipaddress.collapse_addresses(four))),
        ("ip6", list(ipaddress.collapse_addresses(six))),
    ):
        if found:
            yield f"{name} daddr {{ {', '.join(map(str, found))} }}"


def _unmapped(network: _IPv4 | _IPv6) -> _IPv4 | _IPv6:
    """A v4-mapped network as the one of IPv4 that it means."""
    if isinstance(network, _IPv6) and network.prefixlen > 96:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return _IPv4((int(mapped), network.prefixlen - 96))
    return network


def _embedded(network: _IPv4) -> _IPv6:
    """A network of IPv4 as NAT64 writes it."""
    return _IPv6((_NAT64 | int(network.network_address), 96 + network.prefixlen))


def resolver_addresses(spec: NatSpec) -> tuple[str, ...]:
    """Whom the program may ask for names, as it sees them."""
    own = (LOCAL_RESOLVER,) if spec.local_resolver is not None else ()
    return (*spec.resolvers, *own)


def read_contacts(listing: bytes) -> Contacts:
    """What ``nft -j list table`` says of who was talked to. Raises ``SandboxError``."""
    try:
        items = json.loads(listing)["nftables"]
        contacts: set[Contact] = set()
        complete = True
        for item in items:
            contacts.update(_contacts_of(item.get("set", {})))
            counter = item.get("counter", {})
            complete = complete and counter.get("packets", 0) == 0
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SandboxError(f"the filter's sets can't be read: {error!r}") from error
    return Contacts(contacts=tuple(sorted(contacts)), complete=complete)


def _contacts_of(found: dict[str, object]) -> Iterator[Contact]:
    elements = found.get("elem", [])
    if not isinstance(elements, list):
        raise TypeError("elements are no list")
    for element in elements:
        protocol, address, port = element["concat"]
        yield Contact(
            address=str(ipaddress.ip_address(address)),
            port=int(port),
            protocol={"6": "tcp", "17": "udp"}.get(str(protocol), str(protocol)),
            allowed=str(found["name"]).startswith("allowed"),
        )

"""What a network joined to the outside is to be: its rules, its resolvers, who runs its helper.

Frozen values, checked when they are made. Speaks of addresses and ports; what a rule is for is
its owner's business.
"""

from __future__ import annotations

from dataclasses import dataclass

from sandbox.errors import SpecError

MAX_RULES = 1000
# What stands in the network for a resolver that only this machine reaches.
LOCAL_RESOLVER = "192.0.0.3"
_MAX_PORT = 65535
_PROTOCOLS = (None, "tcp", "udp")

# Destinations that have a name. ``host`` and ``dns`` are known only when the network is made: the
# addresses of this machine, and the resolvers of the specification on port 53.
NAMED_DESTINATIONS: dict[str, tuple[str, ...]] = {
    "any": ("0.0.0.0/0", "::/0"),
    "private": (
        *("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "169.254.0.0/16"),
        *("fc00::/7", "fe80::/10", "fec0::/10"),
    ),
    "link-local": ("169.254.0.0/16", "fe80::/10"),
    # Where clouds tell a machine its credentials.
    "metadata": (
        *("169.254.169.254/32", "169.254.170.2/32", "169.254.170.23/32", "100.100.100.200/32"),
        *("168.63.129.16/32", "192.0.0.192/32"),
        *("fd00:ec2::254/128", "fd00:ec2::23/128", "fd20:ce::254/128"),
    ),
    "host": (),
    "dns": (),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkRule:
    """Allows or denies what goes to ``destination``: a name of the table above, or a CIDR.

    ``protocol`` is "tcp", "udp" or None for both; ``ports`` are ranges with both ends, none for
    all ports. The first rule that matches decides.
    """

    allow: bool
    destination: str
    protocol: str | None = None
    ports: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        if self.destination not in NAMED_DESTINATIONS:
            _network(self.destination)
        if self.protocol not in _PROTOCOLS:
            raise SpecError(f"unknown protocol '{self.protocol}' in a network rule")
        for first, last in self.ports:
            if not 0 < first <= last <= _MAX_PORT:
                raise SpecError(f"'{first}-{last}' is not a range of ports")


@dataclass(frozen=True, slots=True, kw_only=True)
class NatSpec:
    """A network namespace of its own, joined to the outside by user-mode NAT.

    ``host_uid`` and ``host_gid`` are ids of nobody else: the helper runs under them.
    ``resolvers`` are the addresses outside that may be asked for names; ``local_resolver`` is one
    that only this machine reaches, for which the network's own resolver address stands. ``pasta``
    and ``nft`` are the programs.
    """

    host_uid: int
    host_gid: int
    rules: tuple[NetworkRule, ...]
    resolvers: tuple[str, ...]
    local_resolver: str | None
    pasta: str
    nft: str

    def __post_init__(self) -> None:
        if self.host_uid < 1 or self.host_gid < 1:
            raise SpecError("the helper of a network never runs under the host's root ids")
        if len(self.rules) > MAX_RULES:
            raise SpecError(f"more than {MAX_RULES} network rules")
        import ipaddress  # who makes no network pays nothing for it

        for address in (*self.resolvers, *((self.local_resolver,) if self.local_resolver else ())):
            try:
                ipaddress.ip_address(address)
            except ValueError:
                raise SpecError(f"'{address}' is not the address of a resolver") from None
        for program in (self.pasta, self.nft):
            if not program.startswith("/") or "\0" in program:
                raise SpecError(f"'{program}' is not the path of a program")


def _network(text: str) -> None:
    import ipaddress

    try:
        ipaddress.ip_network(text)
    except ValueError as error:
        raise SpecError(f"'{text}' is not a destination of a network rule: {error}") from None


@dataclass(frozen=True, slots=True, order=True, kw_only=True)
class Contact:
    """An address and port that something in the network sent to, or was kept from."""

    address: str
    port: int
    protocol: str
    allowed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Contacts:
    """All that a network was used for. ``complete`` is false where there was more than is kept."""

    contacts: tuple[Contact, ...] = ()
    complete: bool = True

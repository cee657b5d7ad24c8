"""How pasta is called: its options differ between versions, and are found out by its own help.

pasta copies nothing of the host's configuration and forwards no port in either direction; the
gateway's address doesn't stand for the host. Pure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from sandbox.errors import SandboxError
from sandbox.nat_rules import (
    ADDRESS4,
    ADDRESS6,
    GATEWAY4,
    GATEWAY6,
    INTERFACE,
    PREFIX4,
)
from sandbox.nat_spec import LOCAL_RESOLVER

# Of the gateway, as the network sees it: locally administered, the same on every machine.
GATEWAY_MAC = "02:65:78:65:63:01"
BUILD_MAC = "02:65:78:65:63:02"
_OPTION = re.compile(r"^\s+(?:-\w, )?(--[a-z0-9-]+)", re.MULTILINE)
_NEEDED = frozenset(
    {
        *("--foreground", "--netns", "--userns", "--no-netns-quit", "--ns-ifname", "--interface"),
        *("--address", "--netmask", "--gateway", "--mac-addr", "--ns-mac-addr", "--dns-forward"),
        *("--no-map-gw", "--no-dhcp", "--no-dhcpv6", "--no-ra", "--no-icmp", "--quiet"),
        *("--tcp-ports", "--udp-ports", "--tcp-ns", "--udp-ns", "--ipv4-only"),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outside:
    """What the machine offers: the interface that serves as template, whether IPv6 goes out."""

    interface: str
    ipv6: bool


def options_in(help_text: str) -> frozenset[str]:
    """The long options that a version has. Raises ``SandboxError`` if it lacks what is needed."""
    found = frozenset(_OPTION.findall(help_text))
    missing = sorted(_NEEDED - found)
    if missing:
        raise SandboxError(
            f"this version of pasta can't be used: it lacks {', '.join(missing)}; install the "
            "Debian package 'passt' of Debian 12 or newer"
        )
    return found


def command_line(
    options: frozenset[str],
    *,
    netns: str,
    userns: str,
    outside: Outside,
    local_resolver: bool,
) -> list[str]:
    """The arguments, without the program's name."""
    arguments = ["--foreground", "--quiet", "--netns", netns, "--userns", userns]
    arguments += ["--no-netns-quit", "--ns-ifname", INTERFACE, "--interface", outside.interface]
    arguments += ["--mac-addr", GATEWAY_MAC, "--ns-mac-addr", BUILD_MAC]
    arguments += ["--address", ADDRESS4, "--netmask", str(PREFIX4), "--gateway", GATEWAY4]
    if outside.ipv6:
        arguments += ["--address", ADDRESS6, "--gateway", GATEWAY6]
    else:
        arguments.append("--ipv4-only")
    # Nothing of the host stands behind an address of the network, and nothing comes in.
    arguments += ["--no-map-gw", "--no-dhcp", "--no-dhcpv6", "--no-ra", "--no-icmp"]
    for option in ("--tcp-ports", "--udp-ports", "--tcp-ns", "--udp-ns"):
        arguments += [option, "none"]
    for option in ("--map-host-loopback", "--map-guest-addr"):
        if option in options:
            arguments += [option, "none"]
    if local_resolver:
        arguments += ["--dns-forward", LOCAL_RESOLVER]
    return arguments

"""The rules of ``fod-network-rules``: what builds that have a network may reach. Pure.

One rule after another, separated by semicolons; the first that matches decides, and what none
matches is denied::

    deny private; allow any tcp 80,443; allow 203.0.113.0/24 tcp 8000-8100

A rule is ``allow`` or ``deny``, a destination, and optionally ``tcp``, ``udp`` or ``any``, and
ports. A destination is a network or an address, or one of the words of ``DESTINATIONS``.
"""

from __future__ import annotations

from dataclasses import dataclass

DESTINATIONS = ("any", "private", "link-local", "metadata", "host", "dns")
MODES = ("isolated", "host", "none")
_VERDICTS = {"allow": True, "deny": False}
_PROTOCOLS = {"tcp": "tcp", "udp": "udp", "any": None}
_MAX_RULES = 500
_MAX_PORT = 65535


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkRule:
    """One rule. ``protocol`` None means both; ``ports`` are ranges with both ends, () means all."""

    allow: bool
    destination: str
    protocol: str | None = None
    ports: tuple[tuple[int, int], ...] = ()

    def __str__(self) -> str:
        words = ["allow" if self.allow else "deny", self.destination]
        if self.protocol is not None:
            words.append(self.protocol)
        if self.ports:
            words.append(",".join(_range_text(first, last) for first, last in self.ports))
        return " ".join(words)


# Builds reach the world, but not what this machine offers to itself or its cloud to it.
DEFAULT_RULES = (
    NetworkRule(allow=False, destination="host"),
    NetworkRule(allow=False, destination="link-local"),
    NetworkRule(allow=False, destination="metadata"),
    NetworkRule(allow=True, destination="any"),
)


def parse_network_rules(text: str) -> tuple[NetworkRule, ...]:
    """Read the rules. Raises ``ValueError`` that names the rule and what is wrong with it."""
    rules = tuple(_rule(part) for part in text.split(";") if part.strip())
    if len(rules) > _MAX_RULES:
        raise ValueError(f"there are {len(rules)} rules, and {_MAX_RULES} is the most")
    return rules


def _rule(text: str) -> NetworkRule:
    words = text.split()
    shown = " ".join(words)
    if words[0] not in _VERDICTS:
        raise ValueError(f"rule '{shown}' must begin with 'allow' or 'deny'")
    if len(words) < 2:
        raise ValueError(f"rule '{shown}' needs a destination: a network, or {_or(DESTINATIONS)}")
    destination = _destination(words[1], shown)
    rest = words[2:]
    protocol = _PROTOCOLS[rest.pop(0)] if rest and rest[0] in _PROTOCOLS else None
    ports = _ports(rest.pop(0), shown) if rest else ()
    if rest:
        raise ValueError(f"rule '{shown}' goes on after its ports with '{rest[0]}'")
    if destination == "dns" and (protocol or ports):
        raise ValueError(f"rule '{shown}' can't have a protocol or ports: 'dns' implies them")
    return NetworkRule(
        allow=_VERDICTS[words[0]], destination=destination, protocol=protocol, ports=ports
    )


def _destination(word: str, rule: str) -> str:
    if word in DESTINATIONS:
        return word
    import ipaddress  # only here: every command reads settings, and few of them have networks

    try:
        return str(ipaddress.ip_network(word))
    except ValueError as error:
        reason = str(error) if "/" in word else "it is no address, network or known word"
        raise ValueError(f"rule '{rule}': destination '{word}' can't be used: {reason}") from None


def _ports(word: str, rule: str) -> tuple[tuple[int, int], ...]:
    return tuple(_range(part, rule) for part in word.split(","))


def _range(text: str, rule: str) -> tuple[int, int]:
    first, dash, last = text.partition("-")
    ends = [first, last if dash else first]
    if not all(end.isascii() and end.isdigit() and len(end) <= 5 for end in ends):
        raise ValueError(
            f"rule '{rule}': '{text}' is neither 'tcp', 'udp' or 'any' nor a port or a range of "
            "ports"
        )
    low, high = map(int, ends)
    if not 0 < low <= high <= _MAX_PORT:
        raise ValueError(f"rule '{rule}': '{text}' is no range of ports from 1 to {_MAX_PORT}")
    return low, high


def _range_text(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"


def _or(words: tuple[str, ...]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"

"""The text of ``fod-network-rules``, and what it means."""

from __future__ import annotations

import pytest

from executor.build.resolver import resolvers_for_build
from executor.config import load_settings
from executor.network_rules import DEFAULT_RULES, NetworkRule, parse_network_rules

NOWHERE = {"NIX_CONF_DIR": "/nonexistent", "XDG_CONFIG_DIRS": "/nonexistent"}


def test_rules_are_read_and_written_in_one_form() -> None:
    text = "deny private; allow any tcp 80,443; allow 203.0.113.0/24 udp 8000-8100; deny ::1/128"
    rules = parse_network_rules(text)
    assert rules[1] == NetworkRule(
        allow=True, destination="any", protocol="tcp", ports=((80, 80), (443, 443))
    )
    assert "; ".join(map(str, rules)) == text
    assert parse_network_rules(" ; ") == ()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("permit any", "must begin with 'allow' or 'deny'"),
        ("allow", "needs a destination"),
        ("allow example.org", "it is no address, network or known word"),
        ("allow 10.0.0.1/8", "has host bits set"),
        ("allow any icmp", "'icmp' is neither"),
        ("allow any tcp 0", "'0' is no range of ports"),
        ("allow any tcp 90-80", "'90-80' is no range of ports"),
        ("allow any tcp 65536", "'65536' is no range of ports"),
        ("allow any tcp 80 443", "goes on after its ports with '443'"),
        ("deny dns 54", "'dns' implies them"),
        ("deny any;" * 501, "500 is the most"),
    ],
)
def test_what_is_wrong_is_named(text: str, reason: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_network_rules(text)
    assert reason in str(caught.value)


def test_added_rules_come_first() -> None:
    overrides = [("extra-fod-network-rules", "allow host tcp 80"), ("fod-network", "none")]
    settings = load_settings(environ=NOWHERE, overrides=overrides).settings
    assert settings.fod_network_rules == (*parse_network_rules("allow host tcp 80"), *DEFAULT_RULES)
    assert settings.fod_network == "none"


def test_resolvers_outside_stay_and_those_on_loopback_are_stood_for() -> None:
    found = resolvers_for_build(
        "; a comment\nsearch lan\nnameserver 127.0.0.53\nnameserver 192.0.2.7\n"
        "nameserver fe80::1%eth0\n"
    )
    assert found.content == b"search lan\nnameserver 192.0.0.3\nnameserver 192.0.2.7\n"
    assert (found.outside, found.local) == (("192.0.2.7",), "127.0.0.53")
    for empty in ("", "nameserver ::1\n", "nameserver 0.0.0.0\n", "nameserver nonsense\n"):
        assert resolvers_for_build(empty).local == "127.0.0.1"
        assert resolvers_for_build(empty).content == b"nameserver 192.0.0.3\n"

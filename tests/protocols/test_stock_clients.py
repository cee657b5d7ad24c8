"""Stock clients, the installed Nix and a current one, at our daemon and at their own.

What ``client_commands.py`` lists is done at both; what comes of it and what is printed is compared,
and with a current Nix what is told, too: our daemon speaks as that one does.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest

from tests.protocols.client_commands import PRINTED_OTHERWISE, STEPS, TOLD_OTHERWISE, Step
from tests.protocols.sides import CLIENTS, Said, make_side, play, scratch, version_of

pytestmark = [pytest.mark.root, pytest.mark.nix]
_CURRENT = (2, 34)
# When a path became valid is the only thing in the answers that the clock decides.
_TIMES = re.compile(rb'"registrationTime":\d+')


@dataclass(frozen=True)
class Sides:
    """What a client heard from our daemon, and from its own."""

    version: tuple[int, ...]
    ours: dict[str, Said]
    stock: dict[str, Said]


@pytest.fixture(scope="module", params=CLIENTS)
def sides(request: pytest.FixtureRequest) -> Sides:
    """All steps that the client knows, done at both, one after the other."""
    client = request.param
    version = version_of(client)
    steps = [step for step in STEPS if step.since <= version < step.until]
    said = {}
    # Not at once: collectors look at all processes of the machine, and both have the same paths.
    for ours in (True, False):
        with (
            scratch(f"executor-{client}") as directory,
            make_side(directory, client, ours=ours) as side,
        ):
            said[ours] = play(side, steps)
    return Sides(version, said[True], said[False])


@pytest.mark.parametrize("step", STEPS, ids=str)
def test_a_command_does_what_it_does_at_its_own_daemon(sides: Sides, step: Step) -> None:
    if not step.since <= sides.version < step.until:
        assert step.name not in sides.ours
        return
    ours, stock = sides.ours[step.name], sides.stock[step.name]
    for said in (ours, stock):
        assert said.code == step.code, said.stderr
        assert step.says in said.stdout.decode("utf-8", "replace")
        assert step.tells in said.stderr
    if step.name not in PRINTED_OTHERWISE:
        assert _TIMES.sub(b"", ours.stdout) == _TIMES.sub(b"", stock.stdout)
    if sides.version >= _CURRENT:
        as_stock = _told(ours) == _told(stock)
        assert as_stock != (step.name in TOLD_OTHERWISE), (ours.stderr, stock.stderr)


def _told(said: Said) -> list[str]:
    """Lines in any order: what is built side by side tells when it has something to tell.

    Each daemon has stale files of its own.
    """
    lines = said.stderr.splitlines()
    return sorted(line for line in lines if not line.startswith("removing stale "))


def test_what_was_damaged_is_built_anew(sides: Sides) -> None:
    assert sides.ours["damage"].code == 0
    assert sides.ours["mended"].stdout == b"dep\n"


def test_the_current_client_is_current() -> None:
    assert version_of("current") >= _CURRENT

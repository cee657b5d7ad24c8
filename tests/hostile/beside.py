"""The tables of ``docs/beside-nix.md``: what this executor and stock Nix answer, side by side.

    python -m tests.hostile.beside

writes them anew, from the tables of ``golden/``; a test compares.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.hostile.attacks import ATTACKS
from tests.hostile.golden_files import (
    CONVENTIONS,
    Line,
    answered,
    profile,
    recorded,
    verdicts,
)

PAGE = Path(__file__).parents[2] / "docs/beside-nix.md"
VERSION = "2.34.8"
PROFILES = {"ordinary": "", "fixed-output": "-fixed-output", "uid-range": "-uid-range"}
_WORKS = frozenset({"OK", "SETID"})
_MARKS = re.compile(r"<!-- (table: [a-z-]+) -->\n.*?<!-- end -->", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One call of one convention: what is expected here, and what Nix was seen to answer."""

    call: str
    convention: str
    here: frozenset[str]
    nix: frozenset[str]

    @property
    def refused_here_alone(self) -> bool:
        return bool(self.nix & _WORKS) and not self.here & _WORKS

    @property
    def refused_in_nix_alone(self) -> bool:
        return bool(self.here & _WORKS) and not self.nix & _WORKS

    @property
    def same(self) -> bool:
        return self.nix <= self.here


def compare(name: str) -> list[Comparison]:
    """Every call of a profile, in each convention in which both have an answer."""
    nix = recorded(f"nix-{VERSION}{PROFILES[name]}.txt")
    found = []
    for call, line in profile(name).items():
        for convention, here in zip(CONVENTIONS, _expected(line), strict=True):
            answers = {nix.get((bits, call, convention)) for bits in ("64", "32")} - {None}
            if here and answers:
                seen = frozenset(answer for answer in answers if answer is not None)
                found.append(Comparison(call, convention, here, seen))
    return found


def _expected(line: Line) -> tuple[frozenset[str], ...]:
    return line.answers


def attack_table() -> Iterator[str]:
    here, nix = verdicts("attacks.txt"), verdicts(f"attacks-nix-{VERSION}.txt")
    yield f"| attack | rows | here | Nix {VERSION} |"
    yield "|---|---|---|---|"
    for attack in ATTACKS:
        rows = ", ".join(map(str, attack.rows))
        yield f"| {attack.name} | {rows} | {here[attack.name]} | {nix[attack.name]} |"


def call_table(name: str) -> Iterator[str]:
    """Calls with the same answers share a line, the ones that work in Nix alone come first."""
    by_call: dict[str, list[Comparison]] = {}
    for comparison in compare(name):
        by_call.setdefault(comparison.call, []).append(comparison)
    if name != "ordinary":
        plain = {(one.call, one.convention): one for one in compare("ordinary")}
        by_call = {
            call: found
            for call, found in by_call.items()
            if any(one != plain[one.call, one.convention] for one in found)
        }
    groups: dict[tuple[str, str, str], list[str]] = {}
    for call, found in by_call.items():
        key = (_kind(found), _words(found, "here"), _words(found, "nix"))
        groups.setdefault(key, []).append(call)
    yield f"| calls | here | Nix {VERSION} |"
    yield "|---|---|---|"
    for kind in _KINDS:
        chosen = [(key, calls) for key, calls in groups.items() if key[0] == kind]
        if chosen:
            yield f"| **{kind}** | | |"
        for (_kind_of_it, here, nix), calls in chosen:
            yield f"| {', '.join(calls)} | {here} | {nix} |"


_KINDS = (
    "works in Nix alone",
    "works here alone",
    "refused by both, in other words",
    "as in Nix",
)


def _kind(found: list[Comparison]) -> str:
    if any(one.refused_in_nix_alone for one in found):
        return _KINDS[1]
    if any(one.refused_here_alone for one in found):
        return _KINDS[0]
    return _KINDS[3] if all(one.same for one in found) else _KINDS[2]


def _words(found: list[Comparison], side: str) -> str:
    """Answers by convention, once if they are all the same."""
    answers = {
        one.convention: " or ".join(sorted(one.here if side == "here" else one.nix))
        for one in found
    }
    if len(set(answers.values())) == 1:
        return next(iter(answers.values()))
    if answers.get("x86-64") == answers.get("i386"):
        return f"{answers['x86-64']}; x32: {answers['x32']}"
    return "; ".join(f"{convention}: {answer}" for convention, answer in answers.items())


def program_differences() -> dict[str, tuple[str, str]]:
    """What programs do that ends otherwise here than in Nix: both answers."""
    here, nix = answered("programs.txt"), answered(f"programs-nix-{VERSION}.txt")
    assert here.keys() == nix.keys()
    return {name: (here[name], nix[name]) for name in here if here[name] != nix[name]}


def program_table() -> Iterator[str]:
    yield f"| what | here | Nix {VERSION} | because |"
    yield "|---|---|---|---|"
    for name, (here, nix) in program_differences().items():
        yield f"| {name} | {here} | {nix} | {REASONS[name]} |"


# Why programs get other answers here. Each of them has a way around it, or is a test of the call.
REASONS = {
    "openat2": "the mode lies behind a pointer; libraries fall back to openat",
    "io uring": "what is done through it passes by every filter; libraries fall back to epoll and"
    " threads, as where it is switched off (containers, by sysctl)",
    "listing attributes": "a list would tell of labels of the host, and then can't be read;"
    " cp, tar and rsync take it for a file system without attributes, as when setting them",
    "set id bits at creation": "no set-id file at any time; install and cp set modes by chmod,"
    " which is refused by both",
    "core dumps": "a handler that the host set up would run as root on what builders choose",
    "user mode page faults": "a tool of kernel attacks; runtimes use signals instead",
    "keyrings": "keys of the host were in reach; only Kerberos and tests of it ask for more",
    "perf": "refused to most users anyway, by another error",
    "bpf": "refused to most users anyway, by another error",
    "local descriptor tables": "for 16-bit programs under Wine; a source of kernel flaws",
    "virtual machine sockets": "they reach the hypervisor from any network namespace",
    "cached pages": "tells what of a file others have read",
    "statmount": "tells of mounts; libraries read /proc/self/mountinfo",
}


def untried_table() -> Iterator[str]:
    yield "| rows | why Nix was not attacked with them |"
    yield "|---|---|"
    for rows, reason in UNTRIED:
        yield f"| {', '.join(map(str, rows))} | {reason} |"


# Rows of which neither an attack nor a line of the probe is left that both can be given.
UNTRIED: tuple[tuple[tuple[int, ...], str], ...] = (
    (
        (15, 16, 21, 22, 23, 24, 25, 41, 50, 78, 79, 100),
        "not applicable: they attack how this executor sets a build up, by tests that call or"
        " trace its own code (or, 50, a helper that Nix doesn't have)",
    ),
    (
        (68, 73, 76, 77, 80, 91, 97),
        "not applicable: they attack functions of this executor that delete, canonicalise, restore"
        " and scan, with the attacker in the same process",
    ),
    (
        (75, 83, 85, 89, 94, 95, 96, 107, 108, 110, 111, 113, 117, 118, 119),
        "not an attack on the host: builds behave as in Nix, which other tests compare bit by bit",
    ),
    ((55,), "not tried: Nix leases its build users one by one"),
    ((60,), "not tried: where this was recorded, who starts builds is in the root group itself"),
    ((114, 115, 116), "held by neither: leaks that are left (see security.md)"),
    (
        (155, 156, 157, 160),
        "not tried: Nix has no limits of memory, processes, time of processors or disk; a host"
        " would be harmed",
    ),
    ((122, 123, 124, 125, 127, 128, 129, 130, 131, 132, 133, 135), "formats: no builder's attack"),
    ((136, 137, 138, 139, 140, 141, 142, 143, 144), "derivations: no builder's attack"),
    ((145, 147, 148, 149, 150, 151, 152), "the daemon's protocol: no builder's attack"),
    ((153,), "not applicable: Nix reads structured messages of builders by other code"),
    (
        (164, 165, 166, 167, 168, 170, 171, 172, 173, 174, 175, 176, 178, 179, 180, 181, 182),
        "not applicable: crashes, locks and the store of this executor",
    ),
)


def tables() -> dict[str, str]:
    """What stands between the marks of the page, by their names."""
    return {
        "table: attacks": "\n".join(attack_table()),
        "table: calls-ordinary": "\n".join(call_table("ordinary")),
        "table: calls-fixed-output": "\n".join(call_table("fixed-output")),
        "table: calls-uid-range": "\n".join(call_table("uid-range")),
        "table: programs": "\n".join(program_table()),
        "table: not-tried": "\n".join(untried_table()),
    }


def rendered(text: str) -> str:
    """The page with the tables as they should be."""
    found = tables()
    return _MARKS.sub(lambda match: f"<!-- {match[1]} -->\n{found[match[1]]}\n<!-- end -->", text)


if __name__ == "__main__":
    PAGE.write_text(rendered(PAGE.read_text()))

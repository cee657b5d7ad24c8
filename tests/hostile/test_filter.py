"""The filter of system calls as a program, evaluated here for every number and convention.

What it says is compared with tables that are written by hand; so the conventions that this
machine's kernel lacks (x32, 64-bit ARM) are covered, too.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator

import pyseccomp
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sandbox.call_numbers import AARCH64 as AARCH64_NUMBERS
from sandbox.call_numbers import I386 as I386_NUMBERS
from sandbox.call_numbers import X86_64 as X86_64_NUMBERS
from sandbox.call_policy import ALLOWED, EXTENDED_ATTRIBUTES, MODES, OPENING, PRIVILEGED
from sandbox.seccomp import FilterUnavailableError, compile_filter
from tests.hostile.bpf_machine import AARCH64, I386, X32_BIT, X86_64, Filter
from tests.hostile.golden_files import Number, numbers

ORDINARY = Filter(compile_filter(machine="x86_64"))
FOR_I686 = Filter(compile_filter(machine="x86_64", listened_to=True))
ARM = Filter(compile_filter(machine="aarch64"))

TABLES = {X86_64: numbers("x86_64"), I386: numbers("i386")}
CONVENTIONS = [pytest.param(X86_64, id="x86-64"), pytest.param(I386, id="i386")]
GARBAGE = 0xDEADBEEF << 32
FAMILIES = {0: "allow", 1: "allow", 2: "allow", 10: "allow", 16: "allow", 17: "EPERM"}
# TIOCSTI, TIOCLINUX, TIOCSETD; encryption policy and key, verity. From the kernel's headers.
REQUESTS = {
    **dict.fromkeys((0x5412, 0x541C, 0x5423), "EPERM"),
    **dict.fromkeys((0x800C6613, 0xC0506617, 0x40806685), "EOPNOTSUPP"),
    # btrfs: snapshot, subvolume, both again, and what makes one read-only.
    **dict.fromkeys((0x50009401, 0x5000940E, 0x50009417, 0x50009418, 0x4008941A), "EOPNOTSUPP"),
}
# TCGETS, TIOCSCTTY, TIOCGWINSZ, FIONREAD, FICLONE, FS_IOC_GETFLAGS: what programs use.
COMMON_REQUESTS = (0x5401, 0x540E, 0x5413, 0x541B, 0x40049409, 0x80086601)


def questions(entry: Number) -> Iterator[tuple[tuple[int, ...], str]]:
    """Arguments for one call, and what it must be answered."""
    kind = entry.answer
    if kind.startswith("mode"):
        yield from _modes(int(kind[-1]))
    elif kind.startswith("open"):
        yield from _openings(int(kind[-1]))
    elif kind == "family":
        for family in range(64):
            yield (family, 1, 0), FAMILIES.get(family, "EAFNOSUPPORT")
            yield (family | GARBAGE, 1, 0), FAMILIES.get(family, "EAFNOSUPPORT")
        yield (0xFFFFFFFF,), "EAFNOSUPPORT"
        # SOCK_PACKET of IPv4 is a packet socket by another name; of others it is nothing.
        for kind_of_socket in (0o12, 0o4012, 0o2000012, 0o2004012):
            for high in (0, GARBAGE):
                yield (2 | high, kind_of_socket | high, 0), "EPERM"
                yield (1 | high, kind_of_socket | high, 0), "allow"
    elif kind == "ioctl":
        for request in (*REQUESTS, *COMMON_REQUESTS):
            yield (0, request), REQUESTS.get(request, "allow")
            yield (0, request | GARBAGE), REQUESTS.get(request, "allow")
    elif kind == "socketcall":
        for call in range(32):
            yield (call,), "EAFNOSUPPORT" if call in (1, 8) else "allow"
    else:
        for value in (0, 0o6777, 0xFFFFFFFFFFFFFFFF):
            yield (value,) * 6, kind


def _modes(position: int) -> Iterator[tuple[tuple[int, ...], str]]:
    for mode, answer in (
        *((0, "allow"), (0o777, "allow"), (0o1777, "allow"), (0o7777, "EPERM")),
        *((0o4000, "EPERM"), (0o2000, "EPERM"), (0o6755, "EPERM"), (0o102755, "EPERM")),
    ):
        for garbage in (0, GARBAGE, 0xFFF80000, -1 & ~0o6000):
            # 16 bits count in the kernel; of the garbage, those above.
            value = mode | garbage & ~0xFFFF
            yield (0,) * position + (value,), answer


def _openings(flags_at: int) -> Iterator[tuple[tuple[int, ...], str]]:
    tmpfile = 0o20000000
    for flags, new in ((0, False), (os.O_RDWR, False), (os.O_DIRECTORY, False), (-1, True)):
        yield from _one_opening(flags_at, flags, new=new)
    for bit in (os.O_CREAT, tmpfile, os.O_CREAT | os.O_EXCL | os.O_WRONLY, os.O_TMPFILE):
        yield from _one_opening(flags_at, bit, new=True)
        yield from _one_opening(flags_at, bit | GARBAGE, new=True)


def _one_opening(flags_at: int, flags: int, *, new: bool) -> Iterator[tuple[tuple[int, ...], str]]:
    for mode in (0o644, 0o4755, 0o2755, 0o6755 | GARBAGE):
        refused = new and mode & 0o6000
        yield (0,) * flags_at + (flags, mode), "EPERM" if refused else "allow"


@pytest.mark.parametrize("machine", CONVENTIONS)
def test_row_030_every_number_is_answered_as_the_table_says(machine: int) -> None:
    differing = [
        (entry, arguments, answer, expected)
        for entry in TABLES[machine]
        for arguments, expected in questions(entry)
        if (answer := ORDINARY.answer(machine, entry.number, *arguments)) != expected
    ]
    assert differing == []


@pytest.mark.parametrize("program", [ORDINARY, FOR_I686], ids=["ordinary", "i686"])
def test_row_032_no_x32_call_gets_through(program: Filter) -> None:
    """As in a kernel without x32: nothing of it is there, also no number that x86-64 allows."""
    for number, value in itertools.product(range(1001), (0, 0o6755, -1)):
        assert program.answer(X86_64, number | X32_BIT, *(value,) * 6) == "ENOSYS"


@pytest.mark.parametrize("number", [1001, 4096, 0x3FFFFFFF, 0x80000000, 0xFFFFFFFF, -1])
def test_row_030_numbers_beyond_all_tables_are_absent(number: int) -> None:
    for program, machine in ((ORDINARY, X86_64), (ORDINARY, I386), (ARM, AARCH64)):
        assert program.answer(machine, number) == "ENOSYS"


@pytest.mark.parametrize("machine", [0, AARCH64, 0x40000028, X86_64 & ~0x80000000, 0xFFFFFFFF])
def test_row_032_another_convention_is_deadly(machine: int) -> None:
    for number in range(600):
        assert ORDINARY.answer(machine, number) == "kill"


_WORD = st.integers(0, (1 << 64) - 1)
_CHMODS = [
    (X86_64, 90, 1),
    (X86_64, 91, 1),
    (X86_64, 268, 2),
    (X86_64, 452, 2),
    (X86_64, 85, 1),
    (X86_64, 133, 1),
    (X86_64, 259, 2),
    (I386, 15, 1),
    (I386, 94, 1),
    (I386, 306, 2),
    (I386, 452, 2),
    (I386, 8, 1),
    (I386, 14, 1),
    (I386, 297, 2),
]


@pytest.mark.parametrize(("machine", "number", "position"), _CHMODS)
@given(arguments=st.tuples(*[_WORD] * 6), bits=st.sampled_from((0o4000, 0o2000, 0o6000)))
@example(arguments=(0,) * 6, bits=0o4000)
@example(arguments=((1 << 64) - 1,) * 6, bits=0o2000)
@settings(deadline=None, max_examples=150)
def test_row_031_no_arguments_make_a_set_id_bit_allowed(
    machine: int, number: int, position: int, arguments: tuple[int, ...], bits: int
) -> None:
    changed = list(arguments)
    changed[position] |= bits
    assert ORDINARY.answer(machine, number, *changed) == "EPERM"
    changed[position] &= ~0o6000
    assert ORDINARY.answer(machine, number, *changed) == "allow"


@given(arguments=st.tuples(*[_WORD] * 6), number=st.integers(0, 0xFFFFFFFF))
@settings(deadline=None, max_examples=500)
def test_row_030_what_the_table_does_not_allow_is_allowed_with_no_arguments(
    arguments: tuple[int, ...], number: int
) -> None:
    for machine, table in TABLES.items():
        known = table[number].answer if number < len(table) else "ENOSYS"
        answer = ORDINARY.answer(machine, number, *arguments)
        if known == "allow" or known.startswith("E"):
            assert answer == known
        assert answer != "kill"


def test_row_051_sockets_of_i686_builds_are_made_by_somebody_who_sees_the_family() -> None:
    """Their libc makes all sockets by one call; the family lies behind a pointer."""
    for call in (1, 8):
        assert ORDINARY.answer(I386, 102, call) == "EAFNOSUPPORT"
        assert FOR_I686.answer(I386, 102, call) == "left to somebody"
    assert {FOR_I686.answer(I386, 102, call) for call in (0, 2, 3, 20, 99)} == {"allow"}
    for machine, table in TABLES.items():
        for entry in table:
            if entry.answer != "socketcall":
                for arguments, expected in questions(entry):
                    assert FOR_I686.answer(machine, entry.number, *arguments) == expected


@pytest.mark.parametrize(
    ("numbers_here", "machine"),
    [
        pytest.param(X86_64_NUMBERS, pyseccomp.Arch.X86_64, id="x86-64"),
        pytest.param(I386_NUMBERS, pyseccomp.Arch.X86, id="i386"),
        pytest.param(AARCH64_NUMBERS, pyseccomp.Arch.AARCH64, id="aarch64"),
    ],
)
def test_numbers_are_those_of_libseccomp(numbers_here: dict[str, int], machine: int) -> None:
    """An independent list, as far as it goes: it is older than ours."""
    differing = {}
    for name, number in numbers_here.items():
        theirs = pyseccomp.resolve_syscall(machine, name)
        if theirs >= 0 and theirs != number:
            differing[name] = (number, theirs)
    assert differing == {}
    known = [n for n in numbers_here if pyseccomp.resolve_syscall(machine, n) >= 0]
    assert len(known) > 0.9 * len(numbers_here)


@pytest.mark.parametrize(
    ("numbers_here", "machine"), [(X86_64_NUMBERS, X86_64), (I386_NUMBERS, I386)]
)
def test_numbers_are_those_of_the_table(numbers_here: dict[str, int], machine: int) -> None:
    written = {entry.name: entry.number for entry in TABLES[machine] if entry.name != "-"}
    assert dict(numbers_here) == written


def test_arm_is_answered_by_the_same_names() -> None:
    """There is no table of its numbers: those of the names decide, which libseccomp confirms."""
    by_name = {entry.name: entry for entry in TABLES[X86_64]}
    for name, number in AARCH64_NUMBERS.items():
        if name in by_name:
            for arguments, expected in questions(by_name[name]):
                assert ARM.answer(AARCH64, number, *arguments) == expected, name
    absent = set(range(1001)) - set(AARCH64_NUMBERS.values())
    assert {ARM.answer(AARCH64, number) for number in absent} == {"ENOSYS"}


def test_the_policy_names_no_call_that_is_not_there() -> None:
    """A name that is spelled wrong would be refused without anybody noticing."""
    known = set(X86_64_NUMBERS) | set(I386_NUMBERS) | set(AARCH64_NUMBERS)
    groups = (ALLOWED, PRIVILEGED, EXTENDED_ATTRIBUTES, frozenset(MODES), frozenset(OPENING))
    assert frozenset().union(*groups) <= known
    for one, other in itertools.combinations(groups, 2):
        assert not one & other


def test_calls_that_are_always_allowed_are_known_as_such_to_the_kernel() -> None:
    """It evaluates the program once for each number; if no argument was needed, never again."""
    for machine, table in TABLES.items():
        for entry in table:
            answer, _steps, looked = ORDINARY.run(machine, entry.number)
            if entry.answer == "allow":
                assert (answer, looked) == ("allow", False)


def test_the_way_to_an_answer_is_short() -> None:
    """Where arguments are looked at, the program runs at each call."""
    steps = [
        ORDINARY.run(machine, entry.number, *(0o1,) * 6)[1]
        for machine, table in TABLES.items()
        for entry in table
    ]
    assert max(steps) <= 24
    assert len(ORDINARY.instructions) <= 700


def test_a_machine_without_a_table_has_no_filter() -> None:
    with pytest.raises(FilterUnavailableError, match="riscv64"):
        compile_filter(machine="riscv64")

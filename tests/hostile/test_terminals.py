"""Terminals and core dumps: what a builder writes to neither types nor starts anything outside."""

from __future__ import annotations

import os
import pty
import select
import shutil
import time
from pathlib import Path

import pytest

from tests.build.conftest import HOST_PROGRAMS, Workshop
from tests.hostile.inside import log_of

pytestmark = pytest.mark.root

_TYPIST = r"""
import errno, fcntl, os, signal, struct
def call(name, number, argument):
    try: fcntl.ioctl(2, number, argument); answer = "OK"
    except OSError as error: answer = errno.errorcode[error.errno]
    print(name, answer, flush=True)
def attack(when):
    for byte in b"echo INJECTED\n":
        call(when + "_type", 0x5412, bytes([byte]))
    call(when + "_linux", 0x541C, b"\x03")
    call(when + "_discipline", 0x5423, struct.pack("i", 2))
try: os.open("/dev/tty", os.O_RDWR); print("tty", "OPEN")
except OSError as error: print("tty", errno.errorcode[error.errno])
attack("before")
call("controlling", 0x540E, 1)
attack("after")
for number in (signal.SIGTTOU, signal.SIGTSTP):
    signal.signal(number, signal.SIG_IGN)
    os.kill(0, number)
open(os.environ["out"], "w").close()
"""
# Runs a command in the foreground of its terminal, and then reads what was typed there.
_TYPING = ("type", "linux", "discipline")
_DESK = '"$@"; echo "code $?"; read -t 1 line < /dev/tty; echo "line $line"'


def test_row_057_nothing_is_typed_into_the_executor_s_terminal(workshop: Workshop) -> None:
    """The executor runs in the foreground of a terminal that we hold, as at somebody's desk."""
    workshop.change(sandbox_paths=(*workshop.settings.sandbox_paths, *HOST_PROGRAMS))
    drv = workshop.make("typist", builder=b"/usr/bin/python3", args=(b"-c", _TYPIST.encode()))
    output, write = os.pipe()
    pid, terminal = pty.fork()
    if pid == 0:
        os.dup2(write, 1)
        command = ["bash", "-c", _DESK, "desk", *workshop.command("build", "-L", drv.text)]
        os.execve("/bin/bash", command, workshop.environment())
    os.close(write)
    said, shown = _all_of(output, terminal)
    assert os.waitpid(pid, 0)[0] == pid
    os.close(terminal)
    os.close(output)
    # What is typed into a terminal comes back as its echo, and to whoever reads it next.
    assert b"INJECTED" not in said + shown
    assert said.endswith(b"code 0\nline \n"), (said, shown)
    words = [line.rpartition(b"> ")[2].split() for line in shown.splitlines()]
    answers = {line[0].decode(): line[1].decode() for line in words if len(line) == 2}
    assert answers["tty"] == "ENXIO"
    names = [f"{when}_{what}" for when in ("before", "after") for what in _TYPING]
    assert {name: answers[name] for name in names} == dict.fromkeys(names, "EPERM")


def _all_of(*files: int) -> list[bytes]:
    """What comes out of some descriptors until the first one ends."""
    found = dict.fromkeys(files, b"")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        ready, _, _ = select.select(files, [], [], 1)
        for file in ready:
            try:
                data = os.read(file, 65536)
            except OSError:
                data = b""
            found[file] += data
            if not data and file == files[0]:
                return list(found.values())
    pytest.fail(f"no end: {found}")


_CRASH = """
ulimit -S -c; ulimit -H -c
for d in /build /tmp $out; do
    busybox mkdir -p $d; cd $d; attack crash || echo crashed
done
busybox find / -path /proc -prune -o -name '*core*' -print
"""


def test_row_059_a_crash_leaves_no_core_anywhere(workshop: Workshop) -> None:
    """By whatever pattern this machine has; with the usual one it would lie where it crashed."""
    places = ("/", "/tmp", os.getcwd(), str(workshop.directory))
    before = {place: set(os.listdir(place)) for place in places}
    lines = log_of(workshop, _CRASH)
    crash = ["raise EPERM", "dumpable OK", "crashed"]
    assert [line for line in lines if "egmentation" not in line] == ["0", "0", *crash * 3]
    first = workshop.make("first", builder=b"/bin/attack", args=(b"crash",))
    result = workshop.build(first, keep_failed=True).result
    assert "signal 11" in result.message, result.message
    assert result.kept_build_directory is not None
    assert [name for name in os.listdir(result.kept_build_directory) if "core" in name] == []
    shutil.rmtree(Path(result.kept_build_directory).parent)
    for place, names in before.items():
        assert [name for name in set(os.listdir(place)) - names if "core" in name] == []

"""Who makes the sockets of a 32-bit build: a process outside it, with less than the build has.

A filter can't see which family ``socketcall`` is asked for (row 51), so it leaves the call to this
process; ``socket_notices`` answers it. There is one for each build that may need it. It is nowhere
in the build's process namespace, but in its user and network namespace, under its ids, in its
control group and under its filter: what it makes is what the build could have made. The one
capability that it keeps lets it look at processes of that user namespace. It ends with the last
process of the build, with the spawner, or when the spawner has seen the build's first process end.
"""

from __future__ import annotations

import errno
import os
import resource
import select
import socket
from typing import NoReturn

import prctl

from sandbox import syscalls
from sandbox.privileges import PROC_SUPER_MAGIC, become_inside, die_with_spawner
from sandbox.socket_notices import Answerer
from sandbox.spec import SandboxSpec

_CHANNEL, _LIVENESS, _USERS = 3, 4, 5
_MAX_FD = (1 << 32) - 1
_READY = b"ready"
_CAP_SYS_PTRACE = 19


def hand_over(channel: int, listener: int, network: int) -> None:
    """In the build: give the filter's listener away, and wait until somebody answers.

    ``network`` is the build's network namespace. Closes all three.
    """
    with socket.socket(fileno=channel) as maker:
        socket.send_fds(maker, [b"listener"], [listener, network])
        os.close(listener)
        os.close(network)
        if maker.recv(len(_READY)) != _READY:
            raise OSError(errno.EPIPE, "the process that makes sockets has ended")


def run_maker(
    spec: SandboxSpec,
    program: bytes,
    last_capability: int,
    *,
    channel: int,
    liveness: int,
    users: int,
) -> NoReturn:
    """Confine this process, and answer until the build has ended. Never returns.

    ``program`` is the filter of ordinary builds, ``users`` the build's user namespace. Whatever
    goes wrong, this process ends, and calls that nobody answers fail.
    """
    try:
        _arrange(channel, liveness, users)
        answerer, listener = _prepare(spec, program, last_capability)
        poll = select.poll()
        poll.register(listener, select.POLLIN)
        while True:
            for _fd, events in poll.poll():
                if not events & select.POLLIN:
                    os._exit(0)  # nobody is left who could ask
                answerer.answer_one()
    finally:
        os._exit(1)


def _arrange(channel: int, liveness: int, users: int) -> None:
    """Three descriptors, and nothing of other builds."""
    high = [_above(fd) for fd in (channel, liveness, users)]
    for target, fd in zip((_CHANNEL, _LIVENESS, _USERS), high, strict=True):
        os.dup2(fd, target, inheritable=False)
    syscalls.close_range(_USERS + 1, _MAX_FD)


def _above(fd: int) -> int:
    while fd <= _USERS:
        fd = os.dup(fd)
    return fd


def _prepare(spec: SandboxSpec, program: bytes, last_capability: int) -> tuple[Answerer, int]:
    os.setsid()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    procfs = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    if syscalls.file_system_type(procfs) != PROC_SUPER_MAGIC:
        raise OSError(errno.EINVAL, "/proc is not a procfs")
    with socket.socket(fileno=_CHANNEL) as channel:
        _data, fds, _flags, _address = socket.recv_fds(channel, 64, 2)
        if len(fds) != 2:
            os._exit(0)  # the build's set-up has failed, and has said why
        listener, network = fds
        syscalls.setns(network, syscalls.CLONE_NEWNET)
        found = os.fstat(network)
        os.close(network)
        _become_less(spec, program, last_capability)
        channel.send(_READY)
    return Answerer(listener, procfs, (found.st_dev, found.st_ino)), listener


def _become_less(spec: SandboxSpec, program: bytes, last_capability: int) -> None:
    os.setgroups([])
    syscalls.setns(_USERS, syscalls.CLONE_NEWUSER)
    os.close(_USERS)
    become_inside(spec)
    prctl.set_dumpable(0)
    for capability in range(last_capability + 1):
        prctl.capbset_drop(capability)
    syscalls.keep_capabilities(_CAP_SYS_PTRACE)
    die_with_spawner(_LIVENESS)
    os.close(_LIVENESS)
    prctl.set_no_new_privs(1)
    syscalls.load_seccomp_filter(program)

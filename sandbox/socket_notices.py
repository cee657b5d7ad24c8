"""What a filter of system calls tells of a call that it leaves to somebody else, and the answers.

One 32-bit call makes sockets of every kind (``socketcall``), and what it is asked for lies behind a
pointer, where a filter can't look. Here is one round of answering such a call: its arguments are
copied once, and what they ask for is made from the copy, by this process, and installed in the
caller. The kernel is never told to go on with the call itself, whose arguments may have changed
meanwhile. Sources: ``include/uapi/linux/seccomp.h``, seccomp_unotify(2), socketcall(2).
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass

from sandbox import syscalls
from sandbox.call_policy import FAMILIES, PRIVILEGED_FAMILIES, PRIVILEGED_TYPES

# struct seccomp_notif: id, pid, flags, then the call: number, machine, pointer, six arguments.
_NOTICE = struct.Struct("=QIIiIQ6Q")
_ANSWER = struct.Struct("=QqiI")  # struct seccomp_notif_resp: id, value, error, flags
_INSTALL = struct.Struct("=QIIII")  # struct seccomp_notif_addfd: id, flags, ours, theirs, its flags
_RECEIVE, _SEND, _IS_VALID, _ADD = 0xC0502100, 0xC0182101, 0x40082102, 0x40182103
_AND_ANSWER = 2  # SECCOMP_ADDFD_FLAG_SEND

_SOCKET, _SOCKETPAIR = 1, 8
_TYPE_MASK = 0xF
_TYPE_FLAGS = socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a call asks for, copied from the caller. ``place`` is where a pair's numbers go."""

    family: int
    kind: int
    protocol: int
    place: int | None = None

    def refusal(self) -> int:
        """The error that it gets without the kernel being asked; 0 if it is to be asked."""
        if self.family in PRIVILEGED_FAMILIES or self.kind in PRIVILEGED_TYPES.get(self.family, ()):
            return errno.EPERM
        if self.family not in FAMILIES:
            return errno.EAFNOSUPPORT
        return errno.EINVAL if self.kind & ~_TYPE_MASK & ~_TYPE_FLAGS else 0


@dataclass(frozen=True, slots=True)
class _Notice:
    id: int
    pid: int
    call: int
    arguments: int


class Answerer:
    """Answers what comes from a filter's ``listener``.

    ``procfs`` is a directory of processes as this one sees them. Only callers in ``network``, the
    device and inode of a network namespace, are served: it must be this process's own.
    """

    def __init__(self, listener: int, procfs: int, network: tuple[int, int]) -> None:
        self._listener = listener
        self._procfs = procfs
        self._network = network

    def answer_one(self) -> None:
        """Take a notice and answer it. Nothing happens if its caller has gone meanwhile."""
        buffer = bytearray(_NOTICE.size)
        try:
            fcntl.ioctl(self._listener, _RECEIVE, buffer)
        except (FileNotFoundError, InterruptedError):
            return
        number, pid, _flags, _call, _machine, _pointer, *arguments = _NOTICE.unpack(buffer)
        notice = _Notice(number, pid, arguments[0], arguments[1] & 0xFFFFFFFF)
        try:
            self._serve(notice)
        except OSError as error:
            self._answer(notice, -(error.errno or errno.EAFNOSUPPORT))

    def _serve(self, notice: _Notice) -> None:
        wanted = self._copy(notice)
        if refusal := wanted.refusal():
            self._answer(notice, -refusal)
        elif wanted.place is None:
            self._give_socket(notice, wanted)
        else:
            self._give_pair(notice, wanted, wanted.place)

    def _copy(self, notice: _Notice) -> Wanted:
        """What the caller wants. Raises ``OSError``, also if the caller is in another network."""
        wanted = read_arguments(notice.pid, notice.call, notice.arguments)
        found = os.stat(f"{notice.pid}/ns/net", dir_fd=self._procfs)
        # Only now is it known that the number has not become another process's before.
        fcntl.ioctl(self._listener, _IS_VALID, struct.pack("=Q", notice.id))
        if (found.st_dev, found.st_ino) != self._network:
            raise OSError(errno.EAFNOSUPPORT, "the caller is in another network namespace")
        return wanted

    def _give_socket(self, notice: _Notice, wanted: Wanted) -> None:
        made = syscalls.socket(wanted.family, wanted.kind | socket.SOCK_CLOEXEC, wanted.protocol)
        try:
            self._install(notice, made, wanted, _AND_ANSWER)
        finally:
            os.close(made)

    def _give_pair(self, notice: _Notice, wanted: Wanted, place: int) -> None:
        # As the kernel does: whether the numbers can be told comes first. If the caller is killed
        # meanwhile, what is written to can only be another process of this build.
        _write(notice.pid, place, bytes(8))
        kind = wanted.kind | socket.SOCK_CLOEXEC
        pair = syscalls.socketpair(wanted.family, kind, wanted.protocol)
        try:
            numbers = [self._install(notice, fd, wanted, 0) for fd in pair]
        finally:
            for fd in pair:
                os.close(fd)
        _write(notice.pid, place, struct.pack("=2i", *numbers))
        self._answer(notice, 0)

    def _install(self, notice: _Notice, fd: int, wanted: Wanted, flags: int) -> int:
        """Give the caller a descriptor; its number there."""
        inherited = os.O_CLOEXEC if wanted.kind & socket.SOCK_CLOEXEC else 0
        request = bytearray(_INSTALL.pack(notice.id, flags, fd, 0, inherited))
        return int(fcntl.ioctl(self._listener, _ADD, request))

    def _answer(self, notice: _Notice, result: int) -> None:
        value, error = (result, 0) if result >= 0 else (0, result)
        with suppress(FileNotFoundError):  # the caller has gone
            fcntl.ioctl(self._listener, _SEND, _ANSWER.pack(notice.id, value, error, 0))


def read_arguments(pid: int, call: int, pointer: int) -> Wanted:
    """Copy what a ``socketcall`` of a process asks for, once. Raises ``OSError``."""
    length = {_SOCKET: 3, _SOCKETPAIR: 4}.get(call)
    if length is None:
        raise OSError(errno.EINVAL, "not a call that makes sockets")
    data = syscalls.process_vm_read(pid, pointer, 4 * length)
    if len(data) != 4 * length:
        raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))
    family, kind, protocol = struct.unpack_from("=3i", data)
    place = struct.unpack_from("=I", data, 12)[0] if call == _SOCKETPAIR else None
    return Wanted(family=family, kind=kind, protocol=protocol, place=place)


def _write(pid: int, place: int, data: bytes) -> None:
    if syscalls.process_vm_write(pid, place, data) != len(data):
        raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))

"""The fork server: a small, single-threaded process that starts sandboxes for the executor.

It is exec'd in an isolated interpreter with an empty environment, imports everything first, and
then waits for requests on a socket. Each request is one datagram with descriptors: the
specification in a memory file, the output, the report's pipe, the control group if there is one,
and the network to enter if it has one. Answers are datagrams, too: ``started`` with a pidfd,
``refused``, and ``exited`` with status and resource usage. When the executor's end of the socket is
gone, everything is killed.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import importlib
import os
import select
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from sandbox import id_range, syscalls
from sandbox.child import Descriptors, Function, Machine, run_child
from sandbox.clean_parent import become_clean_parent
from sandbox.messages import Value, pack, unpack, unpack_spec
from sandbox.namespaces import clone_flags
from sandbox.privileges import last_capability
from sandbox.seccomp import compile_filter
from sandbox.spec import Network
from sandbox.template import Templates
from sandbox.user_namespaces import UserNamespaces

_MAX_DATAGRAM = 1 << 16
_MAX_FDS = 5


class _Server:
    """The loop: requests in, children out, answers back."""

    def __init__(self, control: socket.socket, machine: Machine) -> None:
        self._control = control
        self._machine = machine
        self._templates = Templates()
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)
        self._children: dict[int, tuple[int, int]] = {}  # pidfd -> request, pid
        self._helpers: dict[int, _Helper] = {}  # by pidfd, too; see id_range
        # Children hold the read end; when this process dies, they see its end.
        self._liveness, self._alive = os.pipe()
        self._user_namespaces = UserNamespaces()

    def serve(self) -> None:
        """Answer requests until the executor hangs up; then kill what runs."""
        while True:
            for fd, _events in self._poll.poll():
                if fd == self._control.fileno():
                    if not self._take_request():
                        self._kill_all()
                        return
                else:
                    self._reap(fd)

    def _take_request(self) -> bool:
        try:
            data, fds, _flags, _address = socket.recv_fds(self._control, _MAX_DATAGRAM, _MAX_FDS)
        except ConnectionResetError:
            return False  # the executor hung up with an answer of ours unread
        if not data:
            return False
        request = cast(tuple[str, int], unpack(data))[1]
        try:
            self._spawn(request, *fds)
        finally:
            for fd in fds:
                os.close(fd)
        return True

    def _spawn(self, request: int, spec_fd: int, output: int, report: int, *more: int) -> None:
        with open(spec_fd, "rb", closefd=False) as file:
            spec = unpack_spec(file.read())
        given = list(more)
        network = given.pop() if spec.network is Network.NAT and given else None
        cgroup = given.pop() if given else None
        if given or (spec.network is Network.NAT and network is None):
            self._answer(("refused", request, errno.EINVAL))
            return
        with contextlib.ExitStack() as stack:
            template = self._templates.find(spec) if spec.id_count == 1 else None
            channel, flags = None, clone_flags(spec, with_template=template is not None)
            handover = None
            if spec.id_count > 1:
                flags = id_range.HELPER_FLAGS
                channel, end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                stack.enter_context(end)
                handover = end.fileno()
            try:
                users = self._user_namespaces.get(spec) if spec.id_count == 1 else None
                descriptors = Descriptors(
                    output=output,
                    report=report,
                    liveness=self._liveness,
                    user_namespace=users,
                    template=template,
                    network=network,
                    handover=handover,
                )
                pid, pidfd = syscalls.clone3(flags, cgroup)
            except OSError as error:
                self._answer(("refused", request, error.errno or 0))
                if channel is not None:
                    channel.close()
                return
            if pid == 0:
                run_child(spec, self._machine, descriptors)
        if channel is None:
            self._watch(request, pid, pidfd)
        else:
            self._helpers[pidfd] = _Helper(request, pid, channel)
            self._poll.register(pidfd, select.POLLIN)

    def _watch(self, request: int, pid: int, pidfd: int) -> None:
        """A child has been started, and its end is waited for."""
        self._children[pidfd] = (request, pid)
        self._poll.register(pidfd, select.POLLIN)
        self._answer(("started", request, pid), pidfd)

    def _take_over(self, pidfd: int) -> None:
        """A helper has ended: its child goes on, or what is left of it says why not."""
        helper = self._helpers.pop(pidfd)
        self._poll.unregister(pidfd)
        child = helper.child()
        end = os.waitid(os.P_PID, helper.pid, os.WEXITED | os.WNOWAIT)
        if end is not None and end.si_status == 0 and child is not None:
            os.waitpid(helper.pid, 0)
            os.close(pidfd)
            self._watch(helper.request, *child)
            return
        if child is not None:
            _kill(*child)
        self._watch(helper.request, helper.pid, pidfd)

    def _reap(self, pidfd: int) -> None:
        """The end of a child is the end of its namespace: all its processes are dead by now."""
        if pidfd in self._helpers:
            self._take_over(pidfd)
            return
        request, pid = self._children.pop(pidfd)
        self._poll.unregister(pidfd)
        _pid, status, usage = os.wait4(pid, 0)
        os.close(pidfd)
        code = os.waitstatus_to_exitcode(status)
        self._answer(
            (
                *("exited", request, code),
                *(round(usage.ru_utime * 1e6), round(usage.ru_stime * 1e6), usage.ru_maxrss),
            )
        )

    def _answer(self, value: Value, *fds: int) -> None:
        try:
            socket.send_fds(self._control, [pack(value)], list(fds))
        except (BrokenPipeError, ConnectionResetError):
            return  # the executor is gone; the loop sees that next

    def _kill_all(self) -> None:
        for pidfd, (_request, pid) in self._children.items():
            _kill(pid, pidfd)
        for pidfd, helper in self._helpers.items():
            _kill(helper.pid, pidfd)
            if (child := helper.child()) is not None:
                _kill(*child)


@dataclass(frozen=True, slots=True)
class _Helper:
    """A process that sets up a sandbox and leaves it to a child of this process; see id_range."""

    request: int
    pid: int
    channel: socket.socket

    def child(self) -> tuple[int, int] | None:
        """The child's pid and pidfd, if the helper has come that far; to be asked at its end."""
        with self.channel:
            self.channel.settimeout(0)
            try:
                data, fds, _flags, _address = socket.recv_fds(self.channel, _MAX_DATAGRAM, 1)
            except (BlockingIOError, ConnectionResetError):
                return None
        return (cast(tuple[str, int], unpack(data))[1], fds[0]) if fds else None


def _kill(pid: int, pidfd: int) -> None:
    """End a child of this process for good, whatever runs in its namespaces."""
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    os.waitpid(pid, 0)


def _landlock_abi() -> int:
    try:
        return syscalls.landlock_abi()
    except OSError:
        return 0


def _functions(preload: list[str]) -> dict[str, Function]:
    """Import what ``Call`` entries need; ``module:function`` each."""
    functions: dict[str, Function] = {}
    for name in preload:
        module_name, _, function = name.partition(":")
        module = importlib.import_module(module_name)
        prepare: Callable[[], object] | None = getattr(module, "preload", None)
        if prepare is not None:
            prepare()
        functions[name] = getattr(module, function)
    return functions


def main(control_fd: int, preload: list[str]) -> None:
    """Entry point of the process; ``control_fd`` is its end of the socket."""
    control = socket.socket(fileno=control_fd)
    control.set_inheritable(False)
    try:
        functions = _functions(preload)
        become_clean_parent()
        machine = Machine(
            filter_program=compile_filter(),
            last_capability=last_capability(),
            landlock_abi=_landlock_abi(),
            functions=functions,
        )
    except Exception as error:  # noqa: BLE001 - whatever it is, the executor must hear of it
        with contextlib.suppress(OSError):
            control.send(pack(("broken", f"{type(error).__name__}: {error}")))
        sys.exit(1)
    # Less to copy for each child: no collection moves what is here.
    gc.collect()
    gc.freeze()
    try:
        control.send(pack(("ready",)))
    except (BrokenPipeError, ConnectionResetError):
        return  # the executor needed us for nothing, and has ended
    _Server(control, machine).serve()

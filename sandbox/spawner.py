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
import importlib
import os
import select
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from sandbox import id_range, syscalls
from sandbox.child import Descriptors, Function, Machine, run_child
from sandbox.clean_parent import become_clean_parent
from sandbox.control import receive, serve_executor
from sandbox.messages import Value, get_ready, pack, unpack, unpack_spec
from sandbox.namespaces import clone_flags
from sandbox.privileges import last_capability, own_oom_score
from sandbox.seccomp import compile_filter, leaves_sockets
from sandbox.socket_maker import run_maker
from sandbox.spec import Exec, Network, SandboxSpec
from sandbox.start_program import StartPrograms, Surroundings
from sandbox.starter import Starter
from sandbox.template import Templates
from sandbox.user_namespaces import UserNamespaces

_MAX_DATAGRAM = 1 << 16
_MAX_FDS = 5
# Nothing has run for so long: what makes the next start faster is given up.
_REST_MILLISECONDS = 3000


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
        self._makers: dict[int, tuple[int, int]] = {}  # by the child's pidfd; see socket_maker
        # Children hold the read end; when this process dies, they see its end.
        self._liveness, self._alive = os.pipe()
        os.set_blocking(self._liveness, False)
        self._user_namespaces = UserNamespaces()
        self._starter = Starter()
        self._rested = True
        self._programs = StartPrograms(
            Surroundings(
                last_capability=machine.last_capability,
                landlock_abi=machine.landlock_abi,
                oom_score=own_oom_score(),
            )
        )

    def serve(self) -> None:
        """Answer requests until the executor hangs up; then kill what runs."""
        while True:
            ready = self._poll.poll(self._patience())
            if not ready:
                self._rest()
            for fd, _events in ready:
                if fd == self._control.fileno():
                    if not self._take_request():
                        self._kill_all()
                        self._starter.close()
                        return
                else:
                    self._reap(fd)

    def _patience(self) -> int | None:
        """How long to wait for something to happen, in milliseconds."""
        idle = not (self._children or self._helpers)
        return _REST_MILLISECONDS if idle and not self._rested else None

    def _rest(self) -> None:
        self._templates.drop()
        self._user_namespaces.drop()
        self._starter.rest()
        self._rested = True

    def _take_request(self) -> bool:
        data, fds = receive(self._control) or (b"", [])
        if not data:
            return False
        request = cast(tuple[str, int], unpack(data))[1]
        self._rested = False
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
            handover = maker = None
            if spec.id_count > 1:
                flags = id_range.HELPER_FLAGS
                channel, end = _channel(stack)
                handover = end
            elif leaves_sockets(spec):
                maker_end, maker = _channel(stack)
                stack.enter_context(maker_end)
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
                    maker=maker,
                )
                pid, pidfd = self._start(spec, descriptors, cgroup) or syscalls.clone3(
                    flags, cgroup
                )
            except OSError as error:
                self._answer(("refused", request, error.errno or 0))
                if channel is not None:
                    channel.close()
                return
            if pid == 0:
                run_child(spec, self._machine, descriptors)
            if maker is not None:
                self._start_maker(spec, pidfd, maker_end, cgroup)
        if channel is None:
            self._watch(request, pid, pidfd)
        else:
            self._helpers[pidfd] = _Helper(request, pid, channel)
            self._poll.register(pidfd, select.POLLIN)

    def _start(
        self, spec: SandboxSpec, descriptors: Descriptors, cgroup: int | None
    ) -> tuple[int, int] | None:
        """Let the starter do it, if it can; raises ``OSError`` if nobody could."""
        template, users = descriptors.template, descriptors.user_namespace
        if template is None or users is None or not isinstance(spec.entry, Exec):
            return None
        if descriptors.maker is not None:
            return None
        program = self._programs.make(
            spec, network=descriptors.network is not None, cgroup=cgroup is not None
        )
        given = (descriptors.output, descriptors.report, descriptors.liveness, users)
        more = (descriptors.network, cgroup)
        return self._starter.start(
            program, [*given, template.descriptor, *(fd for fd in more if fd is not None)]
        )

    def _start_maker(
        self, spec: SandboxSpec, child: int, channel: socket.socket, cgroup: int | None
    ) -> None:
        """Without one the child's set-up fails, and says so."""
        try:
            pid, pidfd = syscalls.clone3(0, cgroup)
        except OSError:
            return
        if pid == 0:
            run_maker(
                spec,
                compile_filter(listened_to=False, preallocation=True),
                self._machine.last_capability,
                channel=channel.fileno(),
                liveness=self._liveness,
                users=self._user_namespaces.get(spec),
            )
        self._makers[child] = (pid, pidfd)

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
        if (maker := self._makers.pop(pidfd, None)) is not None:
            _kill(*maker)
            os.close(maker[1])
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
        for maker in self._makers.values():
            _kill(*maker)


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
            data, fds = receive(self.channel) or (b"", [])
        return (cast(tuple[str, int], unpack(data))[1], fds[0]) if fds else None


def _channel(stack: contextlib.ExitStack) -> tuple[socket.socket, int]:
    """A socket, and the descriptor of its other end, which is closed with the stack."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    stack.enter_context(theirs)
    return ours, theirs.fileno()


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

    def prepare(control: socket.socket) -> Callable[[], None]:
        functions = _functions(preload)
        get_ready()
        become_clean_parent()
        compile_filter(listened_to=False, preallocation=True)  # once for all children
        machine = Machine(
            last_capability=last_capability(),
            landlock_abi=_landlock_abi(),
            functions=functions,
        )
        return lambda: _Server(control, machine).serve()

    serve_executor(control_fd, prepare)

"""The network server: makes networks that are joined to the outside, and ends them.

A small process of the spawner's kind: exec'd once in an isolated interpreter, single-threaded,
started when the first build needs it, because pyroute2 takes long to import. Requests are
datagrams: ``open`` with a specification in a memory file, and ``close``. Answers are ``opened``
with the network namespace, ``failed`` with the reason, ``lost`` when a helper ends before its
network is closed, and ``closed`` with a memory file of what was talked to. When the executor's end
of the socket is gone, all helpers are killed; when this process ends, the kernel kills them.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from sandbox import netlink, pasta, syscalls
from sandbox.clean_parent import become_clean_parent
from sandbox.control import receive, serve_executor
from sandbox.errors import SandboxError
from sandbox.messages import Value, pack, pack_contacts, unpack, unpack_nat_spec
from sandbox.nat_helper import CLONE_FLAGS, Helper, HelperDescriptors, run_helper
from sandbox.nat_rules import TABLE, filter_text, read_contacts
from sandbox.nat_spec import Contacts, NatSpec
from sandbox.privileges import last_capability

_MAX_DATAGRAM = 1 << 16
_KEPT_OUTPUT = 4096
_PROGRAM_TIMEOUT = 30
_NOBODY = 65534
_CONFINEMENT_TIMEOUT = 10.0
_PAUSE = 0.002


@dataclass(slots=True, kw_only=True)
class _Network:
    """A network and its helper. ``output`` is the read end of what pasta prints."""

    number: int
    spec: NatSpec
    pid: int
    pidfd: int
    output: int
    netns: int = -1
    printed: bytearray = field(default_factory=bytearray)

    def read_output(self) -> bool:
        """Take what pasta has printed; tells whether more may come."""
        try:
            data = os.read(self.output, _MAX_DATAGRAM)
        except BlockingIOError:
            return True
        self.printed += data
        del self.printed[:-_KEPT_OUTPUT]
        return bool(data)

    def is_running(self) -> bool:
        """Whether the helper hasn't ended yet."""
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return not poll.poll(0)

    def await_confinement(self) -> None:
        """Wait until the helper has loaded its own filter of system calls, its last step.

        Raises ``SandboxError`` when it doesn't.
        """
        deadline = time.monotonic() + _CONFINEMENT_TIMEOUT
        while self.is_running() and time.monotonic() < deadline:
            with open(f"/proc/{self.pid}/status", "rb") as file:
                if b"\nSeccomp:\t2\n" in file.read():
                    return
            time.sleep(_PAUSE)
        raise SandboxError("the network's helper did not confine itself")

    def said(self) -> str:
        """The last words of the helper, for messages."""
        self.read_output()
        lines = self.printed.decode(errors="replace").splitlines()
        kept = (line.strip() for line in lines if "bytes to syslog" not in line)
        return "; ".join(line for line in kept if line)[-1000:]

    def end(self) -> str:
        """Kill the helper and give up everything that was held; how it ended."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        for fd in (self.pidfd, self.output, self.netns):
            if fd >= 0:
                os.close(fd)
        return f"killed by signal {-code}" if code < 0 else f"exit code {code}"


class _Server:
    """The loop: requests in, networks made and ended, answers back."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._own_netns = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._last_capability = last_capability()
        self._options: dict[str, frozenset[str]] = {}
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)
        self._networks: dict[int, _Network] = {}
        self._watched: dict[int, _Network] = {}
        # Helpers hold the read end; when this process dies, they see its end.
        self._liveness, self._alive = os.pipe()

    def serve(self) -> None:
        """Answer requests until the executor hangs up; then end all networks."""
        while True:
            for fd, _events in self._poll.poll():
                if fd == self._control.fileno():
                    if not self._take_request():
                        self._end_all()
                        return
                elif fd in self._watched:
                    self._watch(self._watched[fd], fd)

    def _take_request(self) -> bool:
        data, fds = receive(self._control) or (b"", [])
        if not data:
            return False
        try:
            match unpack(data):
                case ("open", int(number)):
                    self._open(number, fds[0])
                case ("close", int(number)):
                    self._close(number)
                case _:
                    return False
        finally:
            for fd in fds:
                os.close(fd)
        return True

    def _answer(self, value: Value, *fds: int) -> None:
        # Whoever is gone is seen by the loop next.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            socket.send_fds(self._control, [pack(value)], list(fds))

    # A network's beginning.

    def _open(self, number: int, spec_fd: int) -> None:
        network: _Network | None = None
        try:
            with open(spec_fd, "rb", closefd=False) as file:
                spec = unpack_nat_spec(file.read())
            outside = netlink.outside()
            addresses = netlink.host_addresses()
            network = self._start_helper(number, spec, outside)
            with netlink.inside(network.netns, self._own_netns):
                _run([spec.nft, "-f", "-"], filter_text(spec, addresses))
                netlink.configure(outside.ipv6, network.is_running)
            network.await_confinement()
        except (SandboxError, OSError) as error:
            self._answer(("failed", number, _reason(error, network)))
            if network is not None:
                network.end()
            return
        self._networks[number] = network
        for fd in (network.pidfd, network.output):
            self._watched[fd] = network
            self._poll.register(fd, select.POLLIN)
        self._answer(("opened", number, network.pid), network.netns)

    def _start_helper(self, number: int, spec: NatSpec, outside: pasta.Outside) -> _Network:
        """Clone a helper; returns when its namespace is there. Raises ``SandboxError``."""
        arguments = pasta.command_line(
            self._options_of(spec.pasta),
            netns="/ns/net",
            userns="/ns/user",
            outside=outside,
            local_resolver=spec.local_resolver is not None,
        )
        resolver = f"nameserver {spec.local_resolver}\n" if spec.local_resolver else ""
        helper = Helper(
            program=os.fsencode(spec.pasta),
            arguments=tuple(map(os.fsencode, arguments)),
            uid=spec.host_uid,
            gid=spec.host_gid,
            resolv_conf=resolver.encode(),
            last_capability=self._last_capability,
        )
        output, output_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.set_blocking(output_end, True)
        report, report_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        descriptors = HelperDescriptors(
            output=output_end, report=report_end.fileno(), liveness=self._liveness
        )
        pid, pidfd = syscalls.clone3(CLONE_FLAGS)
        if pid == 0:
            run_helper(helper, descriptors)
        os.close(output_end)
        report_end.close()
        network = _Network(number=number, spec=spec, pid=pid, pidfd=pidfd, output=output)
        with report:
            _data, fds, _flags, _address = socket.recv_fds(report, 64, 1)
        if not fds:
            said = network.said()
            raise SandboxError(f"the network's helper can't be started: {said or network.end()}")
        network.netns = fds[0]
        return network

    def _options_of(self, program: str) -> frozenset[str]:
        """What this machine's pasta can do; asked once, as nobody in particular."""
        if program not in self._options:
            done = subprocess.run(
                [program, "--help"],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
                timeout=_PROGRAM_TIMEOUT,
                user=_NOBODY,
                group=_NOBODY,
                extra_groups=(),
            )
            text = (done.stdout + done.stderr).decode(errors="replace")
            self._options[program] = pasta.options_in(text)
        return self._options[program]

    # A network's end.

    def _close(self, number: int) -> None:
        network = self._networks.get(number)
        if network is None:
            return  # it was lost, and the executor has been told
        try:
            contacts = self._contacts(network)
        except (SandboxError, OSError) as error:
            self._lose(network, f"what it was used for can't be read: {error}")
            return
        self._forget(network)
        network.end()
        fd = os.memfd_create("contacts", os.MFD_CLOEXEC)
        with open(fd, "wb") as file:
            file.write(pack_contacts(contacts))
            file.flush()
            os.lseek(fd, 0, os.SEEK_SET)
            self._answer(("closed", number), fd)

    def _contacts(self, network: _Network) -> Contacts:
        with netlink.inside(network.netns, self._own_netns):
            listing = _run([network.spec.nft, "-j", "-nn", "list", "table", "inet", TABLE])
        return read_contacts(listing)

    def _watch(self, network: _Network, fd: int) -> None:
        """The helper has printed something, or ended."""
        if fd == network.pidfd:
            self._lose(network, network.said())
        elif not network.read_output():
            self._poll.unregister(fd)
            del self._watched[fd]

    def _lose(self, network: _Network, reason: str) -> None:
        self._forget(network)
        ending = network.end()
        self._answer(("lost", network.number, reason or ending))

    def _forget(self, network: _Network) -> None:
        del self._networks[network.number]
        for fd in (network.pidfd, network.output):
            if self._watched.pop(fd, None) is not None:
                self._poll.unregister(fd)

    def _end_all(self) -> None:
        for network in list(self._networks.values()):
            self._forget(network)
            network.end()


def _reason(error: Exception, network: _Network | None) -> str:
    said = network.said() if network is not None else ""
    text = str(error)
    return f"{text} ({said})" if said and said not in text else text


def _run(command: list[str], text: str = "") -> bytes:
    """Run a program of the system in the current network namespace. Raises ``SandboxError``."""
    # A file, because a pipe that nobody reads would be the end of this process.
    fd = os.memfd_create("input", os.MFD_CLOEXEC)
    with open(fd, "w+b", buffering=0) as file:
        file.write(text.encode())
        file.seek(0)
        try:
            done = subprocess.run(
                command, stdin=file, capture_output=True, check=False, timeout=_PROGRAM_TIMEOUT
            )
        except subprocess.TimeoutExpired as error:
            raise SandboxError(f"'{command[0]}' didn't end in {_PROGRAM_TIMEOUT} s") from error
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip()[:1000]
        raise SandboxError(f"'{command[0]}' failed: {said or f'exit code {done.returncode}'}")
    return done.stdout


def main(control_fd: int) -> None:
    """Entry point of the process; ``control_fd`` is its end of the socket."""

    def get_ready(control: socket.socket) -> Callable[[], None]:
        become_clean_parent()
        return _Server(control).serve

    serve_executor(control_fd, get_ready)

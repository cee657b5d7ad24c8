"""The executor's side of networks that are joined to the outside: the server, and each network.

Works in an asyncio event loop, as ``process`` does.
"""

from __future__ import annotations

import asyncio
import os
import socket
from dataclasses import dataclass

from sandbox.control import receive
from sandbox.errors import NetworkLostError, NetworkUnavailableError, SandboxError
from sandbox.launcher import Launched, end, launch_network_server
from sandbox.messages import pack, pack_nat_spec, unpack, unpack_contacts
from sandbox.nat_spec import Contacts, NatSpec

_CLOSE_TIMEOUT = 5.0
_PACKAGES = {"pasta": "passt", "nft": "nftables"}


@dataclass(frozen=True, slots=True)
class Programs:
    """Where the programs that a network needs are."""

    pasta: str
    nft: str


def find_programs(search_path: str) -> Programs:
    """Look for the programs in the directories of ``search_path``.

    Raises ``NetworkUnavailableError`` naming the package that brings a missing one.
    """
    found = {}
    for name, package in _PACKAGES.items():
        import shutil

        path = shutil.which(name, path=search_path)
        if path is None:
            raise NetworkUnavailableError(
                f"the program '{name}' is not there: install the Debian package '{package}'"
            )
        found[name] = os.path.abspath(path)
    return Programs(**found)


class NatNetwork:
    """A network that is there. ``descriptor`` is its namespace; close it by ``close``.

    ``lost`` is done when its helper ends too early, with the reason.
    """

    def __init__(self, server: NetworkServer, number: int, pid: int, descriptor: int) -> None:
        self._server = server
        self._number = number
        self.helper_pid = pid
        self.descriptor = descriptor
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._closed: asyncio.Future[Contacts] = asyncio.get_running_loop().create_future()

    async def close(self) -> Contacts:
        """End the helper; what the network was used for. Raises ``NetworkLostError``."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
            if not self._closed.done():
                self._server.send(("close", self._number))
        return await asyncio.shield(self._closed)

    def take_contacts(self, contacts: Contacts) -> None:
        """The server's answer to ``close``."""
        if not self._closed.done():
            self._closed.set_result(contacts)

    def lose(self, reason: str) -> None:
        """The helper is gone: whoever waits for anything hears that."""
        text = f"its helper ended unexpectedly: {reason}"
        if not self.lost.done():
            self.lost.set_result(text)
        if not self._closed.done():
            self._closed.set_exception(NetworkLostError(text))
            self._closed.exception()  # heard of, even where nobody waits


class NetworkServer:
    """A running network server. Make it with ``start``, end it with ``stop``."""

    def __init__(self, launched: Launched) -> None:
        self._process = launched.process
        self._control = launched.control
        self._opening: dict[int, asyncio.Future[NatNetwork]] = {}
        self._networks: dict[int, NatNetwork] = {}
        self._next = 0
        self._gone: SandboxError | None = None
        loop = asyncio.get_running_loop()
        self._loop = loop
        self._ready: asyncio.Future[None] = loop.create_future()
        loop.add_reader(self._control, self._readable)

    @classmethod
    def start(cls) -> NetworkServer:
        """Start the process; it gets ready while the caller goes on. Needs a running loop."""
        return cls(launch_network_server())

    @property
    def is_lost(self) -> bool:
        """Whether the process is gone, so that another one is needed."""
        return self._gone is not None

    async def open(self, spec: NatSpec) -> NatNetwork:
        """Make a network. Raises ``SandboxError`` when it can't be had.

        If the caller is cancelled meanwhile, what was made is ended.
        """
        await asyncio.shield(self._ready)
        if self._gone is not None:
            raise self._gone
        self._next += 1
        number = self._next
        opening: asyncio.Future[NatNetwork] = self._loop.create_future()
        self._opening[number] = opening
        spec_fd = os.memfd_create("network", os.MFD_CLOEXEC)
        with open(spec_fd, "wb") as file:
            file.write(pack_nat_spec(spec))
            file.flush()
            os.lseek(spec_fd, 0, os.SEEK_SET)
            self.send(("open", number), spec_fd)
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_abandon)
            raise

    def send(self, request: tuple[str, int], *fds: int) -> None:
        """One request to the process."""
        try:
            socket.send_fds(self._control, [pack(request)], list(fds))
        except OSError:
            self._lose(SandboxError("the network server doesn't take requests any more"))

    async def stop(self) -> None:
        """End the process and all its networks."""
        self._loop.remove_reader(self._control)
        self._control.close()
        await self._loop.run_in_executor(None, self._wait)
        self._lose(SandboxError("the network server was stopped"))

    def _wait(self) -> None:
        end(self._process, _CLOSE_TIMEOUT)

    def _readable(self) -> None:
        received = receive(self._control)
        if received is None:
            return
        data, fds = received
        if not data:
            self._lose(SandboxError("the network server ended unexpectedly"))
            return
        try:
            self._take(unpack(data), fds)
        except (SandboxError, KeyError, IndexError):
            self._lose(SandboxError("the network server sent something unknown"))

    def _take(self, answer: object, fds: list[int]) -> None:
        match answer:
            case ("ready",):
                self._ready.set_result(None)
            case ("broken", str(reason)):
                self._lose(SandboxError(f"the network server can't start: {reason}"))
            case ("opened", int(number), int(pid)):
                network = NatNetwork(self, number, pid, fds[0])
                self._networks[number] = network
                self._opening.pop(number).set_result(network)
            case ("failed", int(number), str(reason)):
                error = NetworkUnavailableError(f"no network for the build: {reason}")
                self._opening.pop(number).set_exception(error)
            case ("lost", int(number), str(reason)):
                self._networks.pop(number).lose(reason)
            case ("closed", int(number)):
                with open(fds[0], "rb") as file:
                    self._networks.pop(number).take_contacts(unpack_contacts(file.read()))
            case _:
                raise SandboxError("unknown answer")

    def _lose(self, error: SandboxError) -> None:
        """The process is gone, and with it, by the kernel, all helpers."""
        self._gone = error
        if self._control.fileno() >= 0:
            self._loop.remove_reader(self._control)
        if not self._ready.done():
            self._ready.set_result(None)
        for opening in self._opening.values():
            if not opening.done():
                opening.set_exception(error)
                opening.exception()
        for network in self._networks.values():
            network.lose(str(error))
        self._opening.clear()
        self._networks.clear()


def _abandon(opening: asyncio.Future[NatNetwork]) -> None:
    """The caller is gone: end what it asked for."""
    if opening.cancelled() or opening.exception() is not None:
        return
    closing = asyncio.ensure_future(opening.result().close())
    closing.add_done_callback(lambda done: done.cancelled() or done.exception())

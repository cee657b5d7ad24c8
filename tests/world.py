"""A world of one test: the machine in a network namespace of its own, and an outside next to it.

The test, and what it starts, is the machine; a veth pair leads to a second namespace with servers.
Nothing of the real machine's network takes part.
"""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial

import pytest

from sandbox import syscalls

# How the machine is reached from outside, and where the servers outside are: at a public address,
# at private ones, and where clouds have their metadata.
MACHINE, MACHINE6 = "203.0.113.1", "2001:db8:7::1"
SERVER, SERVER6 = "203.0.113.2", "2001:db8:7::2"
PRIVATE, PRIVATE6 = "10.77.0.2", "fd00:77::2"
METADATA = "169.254.169.254"
BANNER = b"reached\n"


@dataclass(slots=True)
class World:
    """The two namespaces as descriptors, and what listens in them."""

    machine: int
    outside: int
    listeners: list[socket.socket] = field(default_factory=list)
    threads: list[threading.Thread] = field(default_factory=list)
    peers: list[tuple[str, int]] = field(default_factory=list)

    @contextmanager
    def in_outside(self) -> Iterator[None]:
        """Sockets that are made in this block are outside."""
        syscalls.setns(self.outside, syscalls.CLONE_NEWNET)
        try:
            yield
        finally:
            syscalls.setns(self.machine, syscalls.CLONE_NEWNET)

    def listen_outside(self, port: int = 0) -> int:
        """A server outside, at all its addresses, that greets; its port."""
        with self.in_outside():
            return self.listen("::", port)

    def listen(self, address: str, port: int = 0, banner: bytes = BANNER) -> int:
        """A server of the machine that greets; its port."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        listener = socket.socket(family)
        if family == socket.AF_INET6 and address == "::":
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen(64)
        self._serve(listener, partial(self._greet, banner))
        return int(listener.getsockname()[1])

    def answer_datagrams(self, address: str, port: int, answer: bytes | None = None) -> None:
        """A server of the machine that answers each datagram, with what came in by default."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        bound = socket.socket(family, socket.SOCK_DGRAM)
        bound.bind((address, port))

        def serve(listener: socket.socket) -> None:
            data, peer = listener.recvfrom(4096)
            if not data:
                raise OSError("the test has ended")
            self.peers.append((peer[0], len(data)))
            listener.sendto(_dns_answer(data) if answer is None else answer, peer)

        self._serve(bound, serve)

    def _greet(self, banner: bytes, listener: socket.socket) -> None:
        connection, peer = listener.accept()
        with connection:
            self.peers.append((peer[0], peer[1]))
            with suppress(OSError):
                connection.sendall(banner)
                connection.shutdown(socket.SHUT_WR)
                connection.settimeout(5)
                connection.recv(4096)

    def _serve(self, listener: socket.socket, once: Callable[[socket.socket], None]) -> None:
        def loop() -> None:
            with suppress(OSError):
                while True:
                    once(listener)

        thread = threading.Thread(target=loop, daemon=True)
        thread.start()
        self.listeners.append(listener)
        self.threads.append(thread)

    def close(self) -> None:
        for listener in self.listeners:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        for thread in self.threads:
            thread.join(5)


def _dns_answer(query: bytes) -> bytes:
    """An answer of DNS: whatever the name, its address is the server's."""
    end = query.index(b"\0", 12) + 5
    question = query[12:end]
    if question[-4:-2] != b"\0\1":  # no A record is asked for: there is no answer
        return query[:2] + b"\x81\x80\0\1\0\0\0\0\0\0" + question
    record = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4" + socket.inet_aton(SERVER)
    return query[:2] + b"\x81\x80\0\1\0\1\0\0\0\0" + question + record


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, timeout=30)


def _enter_new_network() -> int:
    syscalls.unshare(syscalls.CLONE_NEWNET)
    _ip("link", "set", "lo", "up")
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _addresses(device: str, *addresses: str) -> None:
    for address in addresses:
        _ip("addr", "add", address, "dev", device, *(["nodad"] if ":" in address else []))
    _ip("link", "set", device, "up")


@pytest.fixture
def world() -> Iterator[World]:
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        outside = _enter_new_network()
        machine = _enter_new_network()
        there = f"/proc/{os.getpid()}/fd/{outside}"
        _ip("link", "add", "wan", "type", "veth", "peer", "name", "lan", "netns", there)
        _addresses("wan", f"{MACHINE}/24", f"{MACHINE6}/64")
        made = World(machine, outside)
        with made.in_outside():
            _addresses(
                "lan", f"{SERVER}/24", f"{PRIVATE}/24", f"{METADATA}/32", f"{SERVER6}/64",
                f"{PRIVATE6}/64",
            )  # fmt: skip
        _ip("route", "add", "default", "via", SERVER)
        _ip("-6", "route", "add", "default", "via", SERVER6)
        try:
            yield made
        finally:
            made.close()
            os.close(machine)
            os.close(outside)
    finally:
        syscalls.setns(own, syscalls.CLONE_NEWNET)
        os.close(own)

"""Two executors on machines of their own, reached over a network, build a graph for a stock Nix."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from executor.protocols.sockets import connect
from tests.protocols.conftest import open_directory
from tests.protocols.machines import PROJECT, SSHD, Machine, make_machine, sshd_configuration

pytestmark = [pytest.mark.root, pytest.mark.nix]

# Ten rows of ten: each needs three of the row before, and a last one needs the last row.
_WIDTH, _ROWS = 9, 11
_GRAPH = f"""
let
  node = row: column: derivation {{
    name = "node-${{toString row}}-${{toString column}}";
    system = "x86_64-linux";
    builder = "/bin/sh";
    args = ["-c" "echo $name $inputs > $out; echo built >&2"];
    inputs = if row == 0 then [] else map (n: node (row - 1) n) [
      column (if column == 0 then {_WIDTH - 1} else column - 1)
    ];
  }};
in derivation {{
  name = "whole"; system = "x86_64-linux"; builder = "/bin/sh";
  args = ["-c" "echo $inputs > $out"];
  inputs = builtins.genList (node {_ROWS - 1}) {_WIDTH};
}}
"""
TOTAL = _WIDTH * _ROWS + 1


@dataclass
class Host:
    """A machine that is on: a network namespace with an address, an sshd and a daemon."""

    machine: Machine
    address: str
    holder: subprocess.Popen[bytes]
    servers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, *words: str) -> None:
        """Start a server in its network, in a session of its own."""
        with (self.machine.directory / "log").open("ab") as log:
            server = subprocess.Popen(
                ["nsenter", "--net", f"--target={self.holder.pid}", "--", *words],
                env={
                    "PATH": os.environ["PATH"],
                    "NIX_CONF_DIR": str(self.machine.directory),
                    "PYTHONPATH": str(PROJECT),
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.servers.append(server)

    @property
    def outputs(self) -> set[str]:
        """What has been built there, or copied."""
        with contextlib.suppress(FileNotFoundError):
            names = os.listdir(self.machine.store / "nix/store")
            return {name[33:] for name in names if name[33:].startswith("node-")}
        return set()

    def kill(self) -> None:
        """Pull the plug: all that runs in its network dies at once."""
        for server in self.servers:
            server.kill()
        inode = os.stat(f"/proc/{self.holder.pid}/ns/net").st_ino
        for name in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                if int(name) != self.holder.pid and os.stat(f"/proc/{name}/ns/net").st_ino == inode:
                    os.kill(int(name), signal.SIGKILL)
        for server in self.servers:
            server.wait(30)


@dataclass
class Site:
    """The client's network namespace, and its machines."""

    directory: Path
    stack: ExitStack
    client: subprocess.Popen[bytes]
    hosts: list[Host] = field(default_factory=list)

    def add(self, name: str) -> Host:
        """Another machine, joined to the client by a cable."""
        number = len(self.hosts) + 1
        machine = make_machine(self.directory / name)
        holder = _hold(self.stack)
        host = Host(machine, f"10.99.{number}.2", holder)
        here, there = f"to-{name}", f"from-{name}"
        _ip(self.client, "link", "add", here, "type", "veth", "peer", "name", there,
            "netns", str(holder.pid))  # fmt: skip
        _ip(self.client, "addr", "add", f"10.99.{number}.1/24", "dev", here)
        _ip(self.client, "link", "set", here, "up")
        _ip(holder, "addr", "add", f"{host.address}/24", "dev", there)
        _ip(holder, "link", "set", there, "up")
        configuration = sshd_configuration(self.directory, machine)
        socket_path = machine.directory / "socket"
        program = machine.program("nix-daemon", "daemon")
        text = program.read_text().replace(
            f"--store {machine.store}", f"--store unix://{socket_path}"
        )
        program.write_text(text)
        self.stack.callback(host.kill)
        host.start(
            *(sys.executable, "-m", "executor", "daemon", "--store", str(machine.store)),
            *("--socket", str(socket_path)),
        )
        host.start(SSHD, "-D", "-f", str(configuration), "-o", f"ListenAddress={host.address}")
        _wait_for(socket_path, machine.directory / "log")
        with (self.directory / "ssh_config").open("a") as file:
            file.write(
                f"Host {name}\n  HostName {host.address}\n  User root\n"
                f"  IdentityFile {self.directory}/id\n  IdentitiesOnly yes\n  LogLevel ERROR\n"
                "  StrictHostKeyChecking no\n  ConnectTimeout 5\n"
                # Each build has a connection; without a shared one, most of the time goes there.
                f"  ControlMaster auto\n  ControlPersist 60\n  ControlPath {self.directory}/%n\n"
                f"  UserKnownHostsFile {self.directory}/known\n"
            )
        self.hosts.append(host)
        return host

    def start_build(self, *words: str) -> subprocess.Popen[str]:
        """Start a stock Nix that builds nothing itself."""
        builders = "; ".join(
            f"ssh-ng://{host.machine.directory.name} x86_64-linux - 4" for host in self.hosts
        )
        return subprocess.Popen(
            [
                *("nsenter", "--net", f"--target={self.client.pid}", "--", "nix-build"),
                *("--store", str(self.directory / "client"), "--no-out-link", "-j0"),
                *("--builders", builders, "-E", _GRAPH, *words),
            ],
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(self.directory),
                "NIX_CONF_DIR": str(self.directory),
                "NIX_CONFIG": "substituters =\nbuild-users-group =\nbuild-poll-interval = 1\n",
                "NIX_SSHOPTS": f"-F {self.directory}/ssh_config",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.directory,
        )


def _hold(stack: ExitStack) -> subprocess.Popen[bytes]:
    """A process that keeps a new network namespace."""
    script = "ip link set lo up && echo ready && exec sleep infinity"
    process = subprocess.Popen(["unshare", "--net", "sh", "-c", script], stdout=subprocess.PIPE)
    assert process.stdout

    def end() -> None:
        process.kill()
        process.communicate()

    stack.callback(end)
    assert process.stdout.readline() == b"ready\n"
    return process


def _ip(holder: subprocess.Popen[bytes], *words: str) -> None:
    command = ["nsenter", "--net", f"--target={holder.pid}", "--", "ip", *words]
    subprocess.run(command, check=True, timeout=30)


def _wait_for(path: Path, log: Path) -> None:
    deadline = time.monotonic() + 60
    while True:
        with contextlib.suppress(OSError), connect(str(path)):
            return
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


@pytest.fixture
def site() -> Iterator[Site]:
    with open_directory() as directory, ExitStack() as stack:
        made = Site(directory, stack, _hold(stack))
        made.add("left")
        made.add("right")
        yield made


def test_a_graph_of_a_hundred_is_built_though_one_machine_is_killed(site: Site) -> None:
    """Stock Nix gives up what was being built there, and with ``-k`` goes on with the rest.

    What it had given up is built when it is asked again; what was done isn't done twice.
    """
    left, right = site.hosts
    first = site.start_build("-k")
    deadline = time.monotonic() + 120
    while len(left.outputs | right.outputs) < TOTAL // 3:
        assert first.poll() is None, first.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert left.outputs
    assert right.outputs
    left.kill()
    _out, told = first.communicate(timeout=200)
    known = [line for line in told.splitlines() if line.startswith("building '")]
    assert any("on 'ssh-ng://right'" in line for line in known)
    finished = set(os.listdir(site.directory / "client/nix/store"))
    second = site.start_build()
    out, errors = second.communicate(timeout=200)
    assert second.returncode == 0, errors
    whole = (site.directory / "client" / out.strip()[1:]).read_text().split()
    assert len(whole) == _WIDTH
    names = os.listdir(site.directory / "client/nix/store")
    nodes = [name for name in names if "-node-" in name and not name.endswith((".drv", ".lock"))]
    assert len(nodes) == TOTAL - 1
    again = {line.split("/")[3].split(".drv")[0][33:] for line in errors.splitlines()
             if line.startswith("building '")}  # fmt: skip
    assert not again & {name[33:] for name in finished if not name.endswith((".drv", ".lock"))}

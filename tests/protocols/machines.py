"""A machine that stock clients reach by ssh: a real sshd with keys of its own, no port, and shims.

The sshd serves one connection on pipes (``sshd -i``), which the client starts as its proxy: all of
ssh takes part but the network.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

SSHD = "/usr/sbin/sshd"
PROJECT = Path(__file__).parents[2]
SETTINGS = "substituters =\nexperimental-features = nix-command ca-derivations\n"

_SHIM = """\
#!/bin/sh
export NIX_CONF_DIR={conf} PYTHONPATH={project}
exec {python} -W error -m executor {command} --store {store} "$@"
"""


@dataclass(frozen=True)
class Machine:
    """One machine: its store, and the programs that clients find there, below a directory."""

    directory: Path

    @property
    def store(self) -> Path:
        return self.directory / "store"

    def real(self, path: str) -> Path:
        """Where the files of a path of the store are."""
        return Path(f"{self.store}{path}")

    def program(self, name: str, command: str) -> Path:
        """Put a program there that starts a command of the executor with this machine's store."""
        path = self.directory / "bin" / name
        path.write_text(
            _SHIM.format(
                conf=self.directory,
                project=PROJECT,
                python=sys.executable,
                command=command,
                store=self.store,
            )
        )
        path.chmod(0o755)
        return path

    def configure(self, settings: str) -> None:
        """What its nix.conf says beside what it always says."""
        (self.directory / "nix.conf").write_text(SETTINGS + settings)


def make_machine(directory: Path) -> Machine:
    """A machine with the programs that stock clients call."""
    for name in ("bin", "store"):
        (directory / name).mkdir(parents=True)
    machine = Machine(directory)
    machine.configure("")
    machine.program("nix-store", "serve")
    machine.program("nix-daemon", "daemon")
    return machine


def sshd_configuration(directory: Path, machine: Machine) -> Path:
    """The configuration of a machine's sshd with keys of its own; ``id`` is root's."""
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    for key in ("host", "id"):
        if not (directory / key).exists():
            words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(directory / key)]
            subprocess.run(words, check=True, timeout=30)
    (directory / "authorized_keys").write_text((directory / "id.pub").read_text())
    configuration = machine.directory / "sshd_config"
    configuration.write_text(
        f"HostKey {directory}/host\nAuthorizedKeysFile {directory}/authorized_keys\n"
        "StrictModes no\nUsePAM no\nPidFile none\nPermitRootLogin yes\nLogLevel ERROR\n"
        "PasswordAuthentication no\nKbdInteractiveAuthentication no\n"
        # Clients look for their programs on the path: the shims come first. A shell's start-up
        # files may put something before it, which is why the shell has none.
        f"SetEnv PATH={machine.directory}/bin:/usr/bin:/bin HOME={directory} BASH_ENV=\n"
    )
    return configuration


@dataclass(frozen=True)
class Network:
    """Machines by name, as a client sees them, and the client with a store of its own."""

    directory: Path

    @property
    def client_store(self) -> Path:
        return self.directory / "client"

    def add(self, name: str) -> Machine:
        """Another machine, which ``ssh name`` reaches."""
        machine = make_machine(self.directory / name)
        configuration = sshd_configuration(self.directory, machine)
        with (self.directory / "ssh_config").open("a") as file:
            file.write(
                f"Host {name}\n  User root\n  IdentityFile {self.directory}/id\n"
                "  IdentitiesOnly yes\n  StrictHostKeyChecking no\n  LogLevel ERROR\n"
                f"  UserKnownHostsFile {self.directory}/known\n"
                f"  ProxyCommand {SSHD} -i -f {configuration}\n"
            )
        return machine

    def nix(
        self, *words: str, check: bool = True, timeout: float = 120, **more: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command of stock Nix as the client."""
        done = subprocess.run(
            words,
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(self.directory),
                "NIX_CONF_DIR": str(self.directory),
                "NIX_REMOTE": str(self.client_store),
                "NIX_CONFIG": "experimental-features = nix-command ca-derivations\n"
                "substituters =\nbuild-users-group =\nmax-jobs = 0\nbuild-poll-interval = 1\n",
                "NIX_SSHOPTS": f"-F {self.directory}/ssh_config",
                **more,
            },
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            cwd=self.directory,
        )
        if check:
            assert done.returncode == 0, done.stderr
        return done

    def instantiate(self, expression: str) -> str:
        """A derivation in the client's store."""
        return self.nix("nix-instantiate", "-E", expression).stdout.strip()

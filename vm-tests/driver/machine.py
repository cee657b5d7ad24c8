"""One machine of a test: the interface of NixOS's test driver.

Names, arguments and behaviour are those of ``nixos/lib/testing``, as far as our scripts use them;
what a script gets here, it gets there. Timeouts are seconds. What a test expected and did not find
raises ``TestFailedError``; a guest that ended or hung raises ``MachineDiedError``.
"""

from __future__ import annotations

import base64
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from driver.console import Console
from driver.errors import MachineDiedError, TestFailedError
from driver.hub import Hub
from driver.qemu import Hardware, Qemu

DEFAULT_TIMEOUT = 900.0
_BOOT_TIMEOUT = 600.0
_SHUTDOWN_TIMEOUT = 300.0
_POLL = 1.0
# What a command line may hold, with room to spare.
_PIECE = 48 << 10

Log = Callable[[str], None]


class Machine:
    """A machine that is off until it is started, or spoken to."""

    def __init__(self, hardware: Hardware, hub: Hub, log: Log) -> None:
        self._hardware = hardware
        self._hub = hub
        self._tell = log
        self._qemu: Qemu | None = None
        self._console: Console | None = None
        self._connected = False

    @property
    def name(self) -> str:
        """Its name, which is its host name, too."""
        return self._hardware.name

    @property
    def booted(self) -> bool:
        """Whether it is on."""
        return self._qemu is not None

    def log(self, text: str) -> None:
        """Say something in the test's log."""
        self._tell(f"{self.name}: {text}")

    # On and off

    def start(self) -> None:
        """Turn it on; the first command waits until it has booted."""
        if self._qemu is not None:
            return
        self.log("starting")
        self._qemu = Qemu(self._hardware, self._hub.port(self.name))
        self._console = Console(self._qemu.shell, self.name)
        self._connected = False

    def connect(self) -> None:
        """Wait until it has booted."""
        self.start()
        if not self._connected:
            assert self._console is not None
            begun = time.monotonic()
            self._console.wait_for_greeting(_BOOT_TIMEOUT)
            self._connected = True
            self.log(f"booted in {time.monotonic() - begun:.1f} s")

    def shutdown(self) -> None:
        """Turn it off in order."""
        if self._qemu is None:
            return
        self.connect()
        assert self._console is not None
        self._console.send_nowait("poweroff")
        self.wait_for_shutdown()

    def wait_for_shutdown(self) -> None:
        """Until it has turned itself off."""
        assert self._qemu is not None
        if not self._qemu.wait(_SHUTDOWN_TIMEOUT):
            self._off()
            raise MachineDiedError(f"{self.name} did not shut down within {_SHUTDOWN_TIMEOUT:g} s")
        self._off()

    def reboot(self) -> None:
        """Turn it off in order, and on again."""
        self.shutdown()
        self.start()

    def crash(self) -> None:
        """Pull the plug: what the guest's kernel has not written by now is lost."""
        self.log("crashing")
        self._off()

    def block(self) -> None:
        """Pull the network cable."""
        self._link(up=False)

    def unblock(self) -> None:
        """Put the network cable back."""
        self._link(up=True)

    # Commands

    def execute(
        self,
        command: str,
        check_return: bool = True,
        check_output: bool = True,
        timeout: float | None = DEFAULT_TIMEOUT,
    ) -> tuple[int, str]:
        """The exit code (124: too slow) and standard output of a shell command.

        Without ``check_return`` the code is -1, without ``check_output`` nobody waits: (-2, "").
        """
        self.connect()
        assert self._console is not None
        if not check_output:
            self._console.send_nowait(f"( {command} ) </dev/null >/dev/null 2>&1 &")
            return (-2, "")
        code, output = self._console.execute(command, timeout)
        return (code if check_return else -1, output)

    def succeed(self, *commands: str, timeout: float | None = DEFAULT_TIMEOUT) -> str:
        """The joined outputs of commands that all have to exit with 0."""
        outputs = []
        for command in commands:
            self.log(f"must succeed: {command}")
            code, output = self.execute(command, timeout=timeout)
            if code != 0:
                raise TestFailedError(_told(f"`{command}` failed (exit code {code})", output))
            outputs.append(output)
        return "".join(outputs)

    def fail(self, *commands: str, timeout: float | None = DEFAULT_TIMEOUT) -> str:
        """The joined outputs of commands that all have to fail."""
        outputs = []
        for command in commands:
            self.log(f"must fail: {command}")
            code, output = self.execute(command, timeout=timeout)
            if code == 0:
                raise TestFailedError(_told(f"`{command}` unexpectedly succeeded", output))
            outputs.append(output)
        return "".join(outputs)

    def wait_until_succeeds(self, command: str, timeout: float = DEFAULT_TIMEOUT) -> str:
        """The output of a command that is tried until it exits with 0."""
        return self._until(command, timeout, lambda code: code == 0, "succeed")

    def wait_until_fails(self, command: str, timeout: float = DEFAULT_TIMEOUT) -> str:
        """The output of a command that is tried until it fails."""
        return self._until(command, timeout, lambda code: code != 0, "fail")

    # Waiting

    def systemctl(self, arguments: str, user: str | None = None) -> tuple[int, str]:
        """``systemctl``, of the system or of a user."""
        if user is None:
            return self.execute(f"systemctl {arguments}")
        command = f"XDG_RUNTIME_DIR=/run/user/$(id -u) systemctl --user {arguments}"
        return self.execute(f"su -l {shlex.quote(user)} -c {shlex.quote(command)}")

    def get_unit_info(self, unit: str, user: str | None = None) -> dict[str, str]:
        """The properties of a unit."""
        code, output = self.systemctl(f"--no-pager show {shlex.quote(unit)}", user)
        if code != 0:
            raise TestFailedError(f"systemctl show {unit} failed (exit code {code})")
        lines = (line.partition("=") for line in output.splitlines())
        return {name: value for name, separator, value in lines if separator}

    def wait_for_unit(
        self, unit: str, user: str | None = None, timeout: float = DEFAULT_TIMEOUT
    ) -> None:
        """Until a unit is active. One that failed, or that nobody will start, is an error."""
        self.log(f"waiting for unit {unit}")
        for _ in _attempts(timeout, f"{self.name}: unit {unit} is not active"):
            info = self.get_unit_info(unit, user)
            state = info.get("ActiveState", "")
            if state == "active":
                return
            if state == "failed":
                journal = self.execute(f"journalctl -n 30 --no-pager -u {shlex.quote(unit)}")[1]
                raise TestFailedError(_told(f"unit {unit} of {self.name} failed", journal))
            if state == "inactive":
                jobs = self.systemctl("list-jobs --full", user)[1]
                if "No jobs" in jobs and self.get_unit_info(unit, user)["ActiveState"] == state:
                    raise TestFailedError(
                        f"unit {unit} of {self.name} is inactive, with no job to come"
                    )

    def wait_for_file(self, path: str, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Until a file exists."""
        self.wait_until_succeeds(f"test -e {shlex.quote(path)}", timeout)

    def wait_for_open_port(
        self, port: int, addr: str = "localhost", timeout: float = DEFAULT_TIMEOUT
    ) -> None:
        """Until something accepts connections at a TCP port, as seen from this machine."""
        self.wait_until_succeeds(f": < /dev/tcp/{addr}/{port}", timeout)

    def wait_for_closed_port(
        self, port: int, addr: str = "localhost", timeout: float = DEFAULT_TIMEOUT
    ) -> None:
        """Until nothing does any more."""
        self.wait_until_fails(f": < /dev/tcp/{addr}/{port}", timeout)

    # Files

    def copy_from_host(self, source: str, target: str) -> None:
        """Copy a file or a directory of the host into the guest."""
        path = Path(source)
        if not path.is_dir():
            return self._copy(path, target)
        self.succeed(f"mkdir -p {shlex.quote(target)}")
        for entry in sorted(path.iterdir()):
            self.copy_from_host(str(entry), f"{target}/{entry.name}")
        return None

    def _copy(self, source: Path, target: str) -> None:
        self.log(f"copying {source} to {target}")
        content = source.read_bytes()
        place = shlex.quote(target)
        self._quietly(f"mkdir -p $(dirname {place}) && : > {place}")
        for start in range(0, len(content), _PIECE):
            piece = base64.b64encode(content[start : start + _PIECE]).decode()
            self._quietly(f"echo {piece} | base64 -d >> {place}")
        if source.stat().st_mode & 0o100:
            self._quietly(f"chmod +x {place}")

    def _quietly(self, command: str) -> None:
        code, output = self.execute(command)
        if code != 0:
            raise TestFailedError(_told(f"{self.name}: `{command[:200]}` failed ({code})", output))

    # Parts

    def _off(self) -> None:
        if self._qemu is not None:
            self._qemu.kill()
            self._hub.unplug(self.name)
        self._qemu = None
        self._console = None
        self._connected = False

    def _link(self, *, up: bool) -> None:
        self.log(f"network {'up' if up else 'down'}")
        assert self._qemu is not None, "the machine is off"
        self._qemu.command("set_link", name="card", up=up)

    def _until(self, command: str, timeout: float, wanted: Callable[[int], bool], verb: str) -> str:
        self.log(f"waiting for `{command}` to {verb}")
        code, output = 0, ""
        try:
            for _ in _attempts(timeout, f"{self.name}: `{command}` did not {verb}"):
                code, output = self.execute(command, timeout=timeout)
                if wanted(code):
                    return output
        except TestFailedError as error:
            if isinstance(error, MachineDiedError):
                raise
            raise TestFailedError(_told(f"{error}; last exit code {code}", output)) from None
        raise AssertionError("attempts end by an error")


@contextmanager
def subtest(log: Log, name: str) -> Iterator[None]:
    """A part of a test that has a name of its own."""
    log(f"subtest: {name}")
    begun = time.monotonic()
    try:
        yield
    except Exception as error:
        log(f"subtest failed: {name}: {error}")
        raise
    log(f"subtest done: {name} ({time.monotonic() - begun:.1f} s)")


def _attempts(timeout: float, complaint: str) -> Iterator[None]:
    deadline = time.monotonic() + timeout
    while True:
        yield
        if time.monotonic() >= deadline:
            raise TestFailedError(f"{complaint} within {timeout:g} s")
        time.sleep(_POLL)


def _told(what: str, output: str) -> str:
    return f"{what}\n{output[-4000:].rstrip()}" if output.strip() else what

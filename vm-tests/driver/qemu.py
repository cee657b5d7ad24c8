"""One qemu process: its command line, its monitor, its end."""

from __future__ import annotations

import functools
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from driver.errors import DriverError, MachineDiedError

PROGRAM = "qemu-system-x86_64"
# A boot sector that says 0x10 to the device below: mov dx,0xf4; mov al,0x10; out dx,al; hlt.
_SAYS_HELLO = b"\xba\xf4\x00\xb0\x10\xee\xf4"
_HELLO_CODE = 0x10 << 1 | 1
_KVM_PATIENCE = 5.0
_MONITOR_PATIENCE = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """What one machine is made of. Sizes are MiB; ``disks`` are files, the first is the root."""

    name: str
    memory: int
    processors: int
    kernel: Path
    initrd: Path
    command_line: str
    disks: tuple[Path, ...]
    mac: str
    console_log: Path


def require_program(name: str, package: str) -> str:
    """The path of a program. Raises ``DriverError`` with the package to install."""
    path = shutil.which(name)
    if path is None:
        raise DriverError(f"'{name}' is not installed; on Debian: apt-get install {package}")
    return path


@functools.cache
def accelerator() -> str:
    """``kvm`` where guests really run on it, else ``tcg``.

    That ``/dev/kvm`` can be opened says little: there are machines on which every guest hangs. So
    a guest of seven bytes, with the processor that the tests' guests have, is asked to say hello.
    """
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    with tempfile.NamedTemporaryFile(suffix=".img") as image:
        image.write(_SAYS_HELLO.ljust(510, b"\0") + b"\x55\xaa")
        image.flush()
        command = [require_program(PROGRAM, "qemu-system-x86"), "-nodefaults", "-display", "none"]
        command += [
            *_processor("kvm"),
            "-smp",
            "2",
            "-m",
            "64",
            "-device",
            "isa-debug-exit,iobase=0xf4,iosize=4",
        ]
        command += ["-drive", f"file={image.name},format=raw,if=ide"]
        try:
            code = subprocess.run(
                command, timeout=_KVM_PATIENCE, capture_output=True, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            return "tcg"
    return "kvm" if code == _HELLO_CODE else "tcg"


class Qemu:
    """A running machine. ``shell`` is the host's end of its control console."""

    def __init__(self, hardware: Hardware, network: socket.socket) -> None:
        self._name = hardware.name
        self.shell, shell = socket.socketpair()
        self._monitor, monitor = socket.socketpair()
        ends = (shell, monitor, network)
        # A driver that is killed leaves no machine behind.
        command = [require_program("setpriv", "util-linux"), "--pdeathsig", "KILL"]
        command += command_line(
            require_program(PROGRAM, "qemu-system-x86"),
            hardware,
            accelerator(),
            *(end.fileno() for end in ends),
        )
        with hardware.console_log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                pass_fds=[end.fileno() for end in ends],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        for end in ends:
            end.close()
        self._input = self._monitor.makefile("rb")
        self._monitor.settimeout(_MONITOR_PATIENCE)
        try:
            self._answer()
            self.command("qmp_capabilities")
        except BaseException:
            # Nobody else knows of the process yet.
            self.kill()
            raise

    @property
    def pid(self) -> int:
        """Its process id on the host."""
        return self._process.pid

    def alive(self) -> bool:
        """Whether the machine is on."""
        return self._process.poll() is None

    def command(self, name: str, /, **arguments: object) -> object:
        """The answer of qemu's monitor. Raises ``MachineDiedError``."""
        message = {"execute": name, "arguments": arguments}
        try:
            self._monitor.sendall(json.dumps(message).encode() + b"\n")
        except OSError as error:
            raise MachineDiedError(f"{self._name}: qemu's monitor is gone: {error}") from error
        while True:
            answer = self._answer()
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                raise DriverError(f"{self._name}: qemu refused {name}: {answer['error']}")

    def wait(self, timeout: float) -> bool:
        """Whether the machine went off within ``timeout`` seconds."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout)
        return not self.alive()

    def kill(self) -> None:
        """Pull the plug."""
        if self.alive():
            self._process.kill()
            self._process.wait(60)
        self.shell.close()
        self._input.close()
        self._monitor.close()

    def _answer(self) -> dict[str, object]:
        try:
            line = self._input.readline()
        except OSError as error:
            raise MachineDiedError(f"{self._name}: qemu's monitor is silent: {error}") from error
        if not line:
            # Its last words are in the console's log.
            time.sleep(0.1)
            raise MachineDiedError(f"{self._name}: qemu ended ({self._process.poll()})")
        answer = json.loads(line)
        assert isinstance(answer, dict)
        return answer


def _processor(accel: str) -> list[str]:
    """The machine and its processors, the same for the guest that only says hello."""
    if accel == "kvm":
        return ["-machine", "q35", "-accel", "kvm", "-cpu", "host"]
    return ["-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max"]


def command_line(
    program: str, hardware: Hardware, accel: str, shell: int, monitor: int, network: int
) -> list[str]:
    """qemu's arguments; the last three are descriptors that it inherits."""
    command = [
        program,
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-name",
        hardware.name,
    ]
    command += [*_processor(accel), "-smp", str(hardware.processors)]
    command += ["-m", str(hardware.memory), "-no-reboot"]
    command += ["-kernel", str(hardware.kernel), "-initrd", str(hardware.initrd)]
    command += ["-append", hardware.command_line, "-serial", "stdio"]
    command += ["-chardev", f"socket,id=monitor,fd={monitor}", "-mon", "monitor,mode=control"]
    command += ["-device", "virtio-serial-pci"]
    command += ["-chardev", f"socket,id=shell,fd={shell}", "-device", "virtconsole,chardev=shell"]
    command += ["-object", "rng-random,id=rng,filename=/dev/urandom"]
    command += ["-device", "virtio-rng-pci,rng=rng"]
    command += ["-netdev", f"dgram,id=lan,local.type=fd,local.str={network}"]
    command += ["-device", f"virtio-net-pci,id=card,netdev=lan,mac={hardware.mac}"]
    for number, disk in enumerate(hardware.disks):
        command += ["-drive", f"file={disk},if=none,id=disk{number},format=qcow2,discard=unmap"]
        command += ["-device", f"virtio-blk-pci,drive=disk{number},serial=disk{number}"]
    return command

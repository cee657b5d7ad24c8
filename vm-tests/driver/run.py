"""Runs one test: makes its machines, hands them to the script, and cleans up.

A script is run as NixOS's driver runs it: the machines are variables by their names, beside
``machines``, ``start_all``, ``subtest``, ``log`` and ``driver_name``.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from driver.catalogue import Guest, Test
from driver.errors import DriverError, TestFailedError
from driver.hub import Hub
from driver.image import Image
from driver.machine import Machine, subtest
from driver.qemu import Hardware, accelerator, require_program

# The guests' network; qemu's addresses by the number of the machine.
_ADDRESS = "192.168.1.{number}"
_MAC = "52:54:00:12:01:{number:02x}"
# Lines of a guest's console that are shown when a test fails.
_LAST_LINES = 60
# Without emulation everything takes a fraction of the time.
_KVM_FACTOR = 0.5


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a test ended. ``error`` is empty if it passed."""

    test: str
    seconds: float
    error: str


class _TooSlow(BaseException):
    """The test's time is over; not an ``Exception``, so that no script swallows it."""


class Log:
    """What happens, with the seconds since the start, on standard output."""

    def __init__(self, test: str) -> None:
        self._test = test
        self._begun = time.monotonic()

    def __call__(self, text: str) -> None:
        """Print one line."""
        seconds = time.monotonic() - self._begun
        print(f"[{self._test} {seconds:7.1f}] {text}", flush=True)

    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._begun


def end_in_order() -> None:
    """Let SIGTERM, with which time limits and CI end a run, turn off the machines first."""

    def end(number: int, _frame: FrameType | None) -> None:
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, end)


def run(test: Test, image: Image, *, keep: Path | None = None) -> Outcome:
    """Run a test to its end. The machines' disks and consoles stay in ``keep``, if given."""
    log = Log(test.name)
    log(f"{test.about} ({accelerator()})")
    with tempfile.TemporaryDirectory(prefix=f"vm-{test.name}-") as scratch:
        place = keep or Path(scratch)
        place.mkdir(parents=True, exist_ok=True)
        hub = Hub()
        machines: list[Machine] = []
        try:
            machines = _machines(test, image, place, hub, log)
            error = _judge(test, machines, log)
        except DriverError as problem:
            error = str(problem)
        finally:
            for machine in machines:
                machine.crash() if machine.booted else None
            hub.close()
        if error:
            for machine in machines:
                _show_console(machine.name, place, log)
    log(f"failed: {error}" if error else "passed")
    return Outcome(test.name, log.seconds(), error)


def names_of(machines: list[Machine], log: Callable[[str], None]) -> dict[str, object]:
    """The global names of a script."""

    def start_all() -> None:
        for machine in machines:
            machine.start()

    names: dict[str, object] = {machine.name.replace("-", "_"): machine for machine in machines}
    if len(machines) == 1:
        names["machine"] = machines[0]
    names |= {"machines": machines, "start_all": start_all, "log": log, "driver_name": "qemu"}
    names["subtest"] = lambda name: subtest(log, name)
    return names


def _judge(test: Test, machines: list[Machine], log: Log) -> str:
    """What went wrong, or nothing."""
    minutes = test.minutes * (_KVM_FACTOR if accelerator() == "kvm" else 1)

    def too_slow(_number: int, _frame: FrameType | None) -> None:
        raise _TooSlow

    before = signal.signal(signal.SIGALRM, too_slow)
    signal.alarm(int(minutes * 60))
    try:
        code = compile(test.script.read_text(), str(test.script), "exec")
        exec(code, names_of(machines, log))
    except _TooSlow:
        return f"not finished within {minutes:g} minutes"
    except (TestFailedError, DriverError) as error:
        return f"{error} (line {_line(error, test.script)} of {test.script.name})"
    except Exception:  # noqa: BLE001 - a script may raise anything; it failed then
        return traceback.format_exc()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return ""


def _line(error: BaseException, script: Path) -> int:
    frames = traceback.extract_tb(error.__traceback__)
    return next((f.lineno or 0 for f in reversed(frames) if f.filename == str(script)), 0)


def _machines(test: Test, image: Image, place: Path, hub: Hub, log: Log) -> list[Machine]:
    names = [guest.name for guest in test.guests]
    addresses = {name: _ADDRESS.format(number=number) for number, name in enumerate(names, 1)}
    return [
        Machine(_hardware(guest, number, addresses, image, place), hub, log)
        for number, guest in enumerate(test.guests, 1)
    ]


def _hardware(
    guest: Guest, number: int, addresses: dict[str, str], image: Image, place: Path
) -> Hardware:
    kernel = image.kernels[guest.kernel]
    root = place / f"{guest.name}.qcow2"
    _disk(root, backing=image.root)
    disks = [root]
    for index, size in enumerate(guest.disks, 1):
        disks.append(place / f"{guest.name}-{index}.qcow2")
        _disk(disks[-1], size=size)
    hosts = ",".join(f"{name}:{address}" for name, address in addresses.items())
    words = [
        "console=ttyS0",
        "quiet",
        "panic=-1",
        "systemd.default_device_timeout_sec=600",
        f"vm.name={guest.name}",
    ]
    words += [f"vm.address={addresses[guest.name]}", f"vm.hosts={hosts}", guest.options]
    return Hardware(
        name=guest.name,
        memory=guest.memory,
        processors=guest.processors,
        kernel=kernel.image,
        initrd=kernel.initrd,
        command_line=" ".join(words).strip(),
        disks=tuple(disks),
        mac=_MAC.format(number=number),
        console_log=place / f"{guest.name}.console",
    )


def _disk(path: Path, *, backing: Path | None = None, size: int = 0) -> None:
    """An empty disk of ``size`` MiB, or a layer above ``backing``."""
    path.unlink(missing_ok=True)
    command = [require_program("qemu-img", "qemu-utils"), "create", "-q", "-f", "qcow2"]
    if backing is not None:
        command += ["-b", str(backing.resolve()), "-F", "raw", str(path)]
    else:
        command += [str(path), f"{size}M"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if result.returncode != 0:
        raise DriverError(f"'{path}' can't be made: {result.stderr.strip()}")


def _show_console(name: str, place: Path, log: Log) -> None:
    path = place / f"{name}.console"
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    log(f"the end of {name}'s console:")
    for line in lines[-_LAST_LINES:]:
        print(f"    {name}| {line!r}"[:400], file=sys.stdout, flush=True)

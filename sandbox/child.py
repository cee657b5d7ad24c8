"""What runs between clone and exec: straight-line steps, then one report.

Everything that is imported must be imported before: after the change of root, files of the host
are out of reach, and nothing must be loaded from the new one while there are privileges left.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NoReturn

from sandbox import id_range, syscalls
from sandbox.messages import Failed, Ready, pack_report
from sandbox.mounts import enter_new_root
from sandbox.namespaces import set_up_namespaces
from sandbox.privileges import (
    confine_further,
    die_with_spawner,
    drop_capabilities,
    enter_user_namespace,
    set_process_attributes,
)
from sandbox.seccomp import filter_for, leaves_sockets
from sandbox.socket_maker import hand_over
from sandbox.spec import Call, SandboxSpec
from sandbox.step import Step, StepFailedError
from sandbox.template import Template, enter_template

Function = Callable[[list[bytes], dict[bytes, bytes]], int]

_REPORT = 3
_LIVENESS = 4
_USER_NAMESPACE = 5
_MAKER = 6  # of sockets, where there is one
_EXTRA = 7  # a template or a handover, whichever it is
_MAX_FD = (1 << 32) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What the spawner found out once, for all its children."""

    last_capability: int
    landlock_abi: int
    functions: Mapping[str, Function]


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptors:
    """What a child gets: where it prints, where it reports, and the pipe that the spawner holds.

    ``user_namespace`` is the one to enter, but for a range of ids; see ``user_namespaces``.
    ``template`` is what to start from, if there is something; ``network`` a network namespace to
    enter. ``handover`` is where the helper of a range of ids tells of the child; see ``id_range``.
    ``maker`` leads to who makes the sockets of 32-bit programs; see ``socket_maker``.
    """

    output: int
    report: int
    liveness: int
    user_namespace: int | None = None
    template: Template | None = None
    handover: int | None = None
    network: int | None = None
    maker: int | None = None


def executing(program: bytes) -> tuple[bytes, bytes]:
    """The line that Nix leaves in the log, around the reason; in colours, and without an end."""
    return (
        b"\x1b[31;1merror:\x1b[0m executing '\x1b[35;1m%b\x1b[0m': \x1b[35;1m" % program,
        b"\x1b[0m",
    )


def run_child(spec: SandboxSpec, machine: Machine, descriptors: Descriptors) -> NoReturn:
    """Confine this process and become the program. Never returns, whatever happens."""
    report = descriptors.report
    try:
        if descriptors.network is not None:
            with Step("enter the network of the build", "setns"):
                syscalls.setns(descriptors.network, syscalls.CLONE_NEWNET)
        _arrange_descriptors(descriptors)
        report = _REPORT
        _confine(spec, machine, descriptors)
        os.write(report, pack_report(Ready()))
        _start(spec, machine, report)
    except StepFailedError as error:
        os.write(report, pack_report(error.report))
    except BaseException as error:  # noqa: BLE001 - a bug here must be told, not lost
        text = f"{type(error).__name__}: {error}"
        os.write(report, pack_report(Failed("run the sandbox's own code", text, 0, "")))
    finally:
        os._exit(1)


def _confine(spec: SandboxSpec, machine: Machine, descriptors: Descriptors) -> None:
    program = filter_for(spec)  # before the personality changes what the machine is called
    set_process_attributes(spec)
    if spec.id_count > 1:
        _enter_with_range(spec)
    else:
        _enter(spec, machine.last_capability, descriptors.template)
    die_with_spawner(_LIVENESS)
    os.close(_LIVENESS)
    with Step("enter the build directory", "chdir", spec.working_directory):
        os.chdir(spec.working_directory)
    if not leaves_sockets(spec):
        confine_further(spec, machine.landlock_abi, program)
        return
    network = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    listener = confine_further(spec, machine.landlock_abi, program, listened_to=True)
    with Step("hand over the making of sockets", "recvmsg"):
        hand_over(_MAKER, listener, network)


def _enter(spec: SandboxSpec, last_capability: int, template: Template | None) -> None:
    set_up_namespaces(spec)
    if template is None:
        enter_new_root(spec)
    else:
        namespaces = os.open("/proc/self/ns", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        enter_template(spec, _EXTRA, namespaces)
        syscalls.close_range(_EXTRA, _MAX_FD)
    _read_nothing()
    enter_user_namespace(spec, _USER_NAMESPACE)
    os.close(_USER_NAMESPACE)
    drop_capabilities(last_capability)


def _enter_with_range(spec: SandboxSpec) -> None:
    """The same for a program that is root in there; another process goes on."""
    die_with_spawner(_LIVENESS)
    procfs = id_range.open_procfs()
    enter_new_root(spec)
    _read_nothing()
    id_range.split(spec, procfs, _EXTRA)


def _read_nothing() -> None:
    with Step("open /dev/null", "open"):
        null = os.open("/dev/null", os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)


def _arrange_descriptors(descriptors: Descriptors) -> None:
    """Output at 1 and 2, report, pipe, user namespace and two more above, and no others."""
    # Above all targets first, so that none of them is overwritten while it is still needed.
    wanted = (descriptors.output, descriptors.report, descriptors.liveness)
    high = [_duplicate_above(fd) for fd in wanted]
    if descriptors.user_namespace is not None:
        high.append(_duplicate_above(descriptors.user_namespace))
    maker = None if descriptors.maker is None else _duplicate_above(descriptors.maker)
    last = _MAKER
    extra = descriptors.handover
    if descriptors.template is not None:
        extra = descriptors.template.descriptor
    if extra is not None:
        last = _EXTRA
        os.dup2(_duplicate_above(extra), _EXTRA, inheritable=False)
    os.dup2(high[0], 1)
    os.dup2(high[0], 2)
    os.dup2(high[1], _REPORT, inheritable=False)
    os.dup2(high[2], _LIVENESS, inheritable=False)
    if len(high) > len(wanted):
        os.dup2(high[3], _USER_NAMESPACE, inheritable=False)
    else:
        syscalls.close_range(_USER_NAMESPACE, _USER_NAMESPACE)
    if maker is not None:
        os.dup2(maker, _MAKER, inheritable=False)
    else:
        syscalls.close_range(_MAKER, _MAKER)
    syscalls.close_range(last + 1, _MAX_FD)


def _duplicate_above(fd: int) -> int:
    while fd <= _EXTRA:
        fd = os.dup(fd)
    return fd


def _start(spec: SandboxSpec, machine: Machine, report: int) -> None:
    """The program itself. The derivation's environment takes effect here and not before."""
    environment = dict(spec.environment)
    if isinstance(spec.entry, Call):
        os.close(report)
        os._exit(machine.functions[spec.entry.function](list(spec.argv), environment))
    try:
        os.execve(spec.entry.program, spec.argv, environment)
    except OSError as error:
        path = os.fsdecode(spec.entry.program)
        reason = os.strerror(error.errno or 0).encode()
        os.write(2, reason.join(executing(spec.entry.program)))
        os.write(report, pack_report(Failed("execute", "execve", error.errno or 0, path)))

"""Frames between executor, spawner and child, in both directions."""

from __future__ import annotations

from collections.abc import Hashable

from sandbox import Bind, Call, Exec, File, InputPath, Network, SandboxSpec, SpecError
from sandbox.messages import (
    Failed,
    FrameError,
    Ready,
    pack,
    pack_report,
    pack_spec,
    unpack,
    unpack_reports,
    unpack_spec,
)
from tests.fuzz.harness import Target
from tests.fuzz.targets.names import expect

_SPEC = SandboxSpec(
    name="x.drv",
    entry=Exec(b"/bin/sh"),
    argv=(b"sh", b"-c", b":"),
    environment=((b"A", b"b"), (b"C", b"")),
    working_directory=b"/build",
    root_directory=b"/r",
    store_directory=b"/nix/store",
    scratch_store=b"/s",
    build_directory=Bind(source=b"/b", target=b"/build", read_only=False),
    temporary_directory=b"/t",
    host_uid=30001,
    host_gid=30000,
    inputs=(InputPath(source=b"/nix/store/x", name=b"x"),),
    binds=(Bind(source=b"/bin/sh", target=b"/bin/sh", optional=True),),
    files=(File(path=b"/etc/hosts", content=b"127.0.0.1 localhost\n"),),
    network=Network.HOST,
    machine="i686",
)
_BUILTIN = SandboxSpec(
    **{name: getattr(_SPEC, name) for name in SandboxSpec.__dataclass_fields__}
    | {"entry": Call("module:function"), "machine": None, "files": (), "binds": ()}
)
_REPORTS = (pack_report(Ready()), pack_report(Failed("exec", "execve", 2, "/bin/\udcff")))
# Each field of a specification of another type than it has: what once wasn't its own error.
_FIELDS = unpack(pack_spec(_SPEC))
assert isinstance(_FIELDS, tuple)
_OTHER_TYPES = tuple(
    pack((*_FIELDS[:index], wrong, *_FIELDS[index + 1 :]))
    for index in range(len(_FIELDS))
    for wrong in (0, "", b"x", None, (), ((),), (0,))
)
_TOKENS = (
    *(b"n", b"t", b"f", b"b", b"s", b"(", b"i"),
    *(
        pack(value)
        for value in (-1, -2, -3, -4, 0, 1, 2, 3, 4, 5, 6, b"", b"/", "", "isolated", "host")
    ),
    *(pack(value) for value in ((), ((),), (0,), ("ready",), ("failed",), (-1,), (-2,), (True,))),
    *(pack((number, (b"a", b"b"))) for number in (-2, -3, -4)),
    *(b"[", b"[\xff\xff\xff\x3f", b"(\xff\xff\xff\xff", b"b\xff\xff\xff\xff", b"(\1\0\0\0" * 9),
)


def _frame(data: bytes) -> Hashable:
    value = unpack(data)
    expect(pack(value) == data, "a frame is written otherwise")
    return type(value), min(len(value), 9) if isinstance(value, tuple) else 0


def _spec(data: bytes) -> Hashable:
    spec = unpack_spec(data)
    expect(pack_spec(spec) == data, "a specification is written otherwise")
    return type(spec.entry), spec.network, len(spec.binds), len(spec.environment)


def _reports(data: bytes) -> Hashable:
    reports = unpack_reports(data)
    expect(b"".join(map(pack_report, reports)) == data, "reports are written otherwise")
    return min(len(reports), 9)


TARGETS = (
    Target(
        name="frame",
        run=_frame,
        errors=(FrameError,),
        inputs=(*_REPORTS, pack(("exited", 3, 0, 17, 4, 100)), pack((None, True, (False, ((),))))),
        tokens=_TOKENS,
    ),
    Target(
        name="frame-spec",
        run=_spec,
        errors=(FrameError, SpecError),
        inputs=(pack_spec(_SPEC), pack_spec(_BUILTIN), *_OTHER_TYPES),
        tokens=_TOKENS,
    ),
    Target(
        name="frame-reports",
        run=_reports,
        errors=(FrameError,),
        inputs=(*_REPORTS, b"".join(_REPORTS)),
        tokens=_TOKENS,
    ),
)

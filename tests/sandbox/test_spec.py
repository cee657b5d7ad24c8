"""Specifications that can't be obeyed are refused when they are made."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sandbox import Bind, Call, Exec, File, InputPath, Network, SandboxSpec, SpecError
from sandbox.messages import (
    Failed,
    FrameError,
    Ready,
    Report,
    pack,
    pack_report,
    pack_spec,
    unpack,
    unpack_reports,
    unpack_spec,
)
from sandbox.plan import BindDevice, BindPath, MakeFile, make_plan

SPEC = SandboxSpec(
    name="x",
    entry=Exec(b"/bin/sh"),
    argv=(b"sh", b"-c", b"\xff"),
    environment=((b"A", b"\xfe"),),
    working_directory=b"/build",
    root_directory=b"/r",
    store_directory=b"/nix/store",
    scratch_store=b"/s",
    build_directory=Bind(source=b"/b", target=b"/build", read_only=False),
    temporary_directory=b"/t",
    host_uid=30001,
    host_gid=30000,
    inputs=(InputPath(source=b"/i", name=b"i"),),
    binds=(Bind(source=b"/bin/busybox", target=b"/bin/sh", optional=True),),
    files=(File(path=b"/etc/passwd", content=b"\x00"),),
)


@pytest.mark.parametrize(
    "change",
    [
        {"host_uid": 0},
        {"host_gid": 0},
        {"host_uid": -5},
        {"argv": ()},
        {"argv": (b"a\0b",)},
        {"entry": Exec(b"/nul\0")},
        {"environment": ((b"A=B", b""),)},
        {"environment": ((b"", b""),)},
        {"environment": ((b"A", b"\0"),)},
        {"working_directory": b"build"},
        {"store_directory": b"/nix/../store"},
        {"scratch_store": b"relative"},
        {"machine": "vax"},
        {"dev_shm_size": "50%,exec"},
        {"build_directory": Bind(source=b"/b", target=b"/nix")},
    ],
)
def test_impossible_specifications_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(SpecError):
        replace(SPEC, **change)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "target", [b"/", b"/..", b"/a/../b", b"/./a", b"//a", b"/a/", b"a", b"/\0"]
)
def test_targets_that_escape_are_refused(target: bytes) -> None:
    with pytest.raises(SpecError):
        Bind(source=b"/x", target=target)
    with pytest.raises(SpecError):
        File(path=target, content=b"")


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"a\0"])
def test_input_names_are_file_names(name: bytes) -> None:
    with pytest.raises(SpecError):
        InputPath(source=b"/x", name=name)


def test_a_specification_survives_its_frame() -> None:
    for spec in (SPEC, replace(SPEC, entry=Call("m:f"), network=Network.HOST, machine="i686")):
        assert unpack_spec(pack_spec(spec)) == spec


def test_reports_survive_their_frames() -> None:
    reports: list[Report] = [Ready(), Failed("bind a path", "open_tree", 2, "/x\udcff")]
    assert unpack_reports(b"".join(pack_report(report) for report in reports)) == reports


def test_broken_frames_raise_their_own_error() -> None:
    frame = pack_spec(SPEC)
    for end in range(len(frame)):
        with pytest.raises(FrameError):
            unpack_spec(frame[:end])
    for bad in (b"", b"x", b"(\xff\xff\xff\xff", b"s\xff\xff\xff\x7f", pack((1, 2)) + b"n"):
        with pytest.raises(FrameError):
            unpack(bad)
    with pytest.raises(FrameError):
        unpack(b"(\x01\x00\x00\x00" * 1000)


def test_specifications_of_other_shapes_raise_it_too() -> None:
    good = unpack(pack_spec(SPEC))
    assert isinstance(good, tuple)
    for bad in (
        *(good[:-1], (*good, 1), (True, *good[1:]), (-1,), (-1, "x", "y"), (-1, "nowhere"), ("x",)),
        *(
            (*good[:at], wrong, *good[at + 1 :])
            for at in range(2, len(good) - 1)
            for wrong in ((), (2,))
        ),
    ):
        with pytest.raises(FrameError):
            unpack_spec(pack(bad))


def test_the_plan_puts_parents_before_what_is_in_them() -> None:
    spec = replace(
        SPEC,
        binds=(Bind(source=b"/b", target=b"/usr/lib/x"), Bind(source=b"/a", target=b"/usr")),
    )
    targets = [item.target for item in make_plan(spec) if isinstance(item, BindPath)]
    assert targets.index(b"usr") < targets.index(b"usr/lib/x")
    assert targets.index(b"nix/store") < targets.index(b"usr")


def test_a_bound_dev_replaces_the_private_one() -> None:
    plan = make_plan(replace(SPEC, binds=(Bind(source=b"/dev", target=b"/dev"),)))
    assert not any(isinstance(item, BindDevice) for item in plan)
    assert any(isinstance(item, MakeFile) for item in plan)


def test_kvm_is_there_only_on_request() -> None:
    def devices(spec: SandboxSpec) -> set[bytes]:
        return {item.name for item in make_plan(spec) if isinstance(item, BindDevice)}

    assert devices(replace(SPEC, kvm=True)) - devices(SPEC) == {b"kvm"}

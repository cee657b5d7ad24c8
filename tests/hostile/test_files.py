"""What a builder can see and change of files: rows 1 to 7, 46 and 106."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from executor.formats.content_address import IngestionMethod
from sandbox import Bind, Exec, InputPath
from tests.build.conftest import Workshop, fixed
from tests.hostile.host import tree
from tests.hostile.inside import answers, log_of
from tests.sandbox.conftest import Bench

pytestmark = pytest.mark.root

# Of a path that is bound read-only, whatever its modes allow. Anything that needs no write access
# to the mount has its own answer.
_OTHER_ANSWERS = {
    "link_out": "EXDEV",  # nothing can be linked from one mount to another
    "rename_over": "EXDEV",
    "exchange": "EXDEV",
    "rmdir": "EROFS",
    "map_write": "EACCES",  # the descriptor is open for reading
    "remount": "EPERM",
    "whiteout": "EROFS",
    "set_flags": "EROFS",
}


def test_row_001_the_root_has_nothing_of_the_host(workshop: Workshop) -> None:
    lines = log_of(
        workshop, "busybox find / -xdev -mindepth 1 -maxdepth 1; busybox ls /root /home || true"
    )
    tops = {"/bin", "/build", "/dev", "/etc", "/nix", "/proc", "/tmp"}
    assert {line for line in lines if line.startswith("/")} == tops
    assert [line for line in lines if not line.startswith("/")] == [
        f"ls: {path}: No such file or directory" for path in ("/root", "/home")
    ]


def test_row_001_nothing_else_lies_anywhere(workshop: Workshop) -> None:
    """Everything outside of /proc and /dev that a builder can see, by name."""
    script = "busybox find / -path /proc -prune -o -path /dev -prune -o -path /bin -prune -o -print"
    drv_inputs = {"/", "/build", "/etc", "/etc/group", "/etc/hosts", "/etc/passwd", "/nix"}
    lines = set(log_of(workshop, script))
    assert lines == drv_inputs | {"/nix/store", "/tmp"}


def test_row_002_a_valid_path_that_is_no_input_is_not_there(workshop: Workshop) -> None:
    secret = workshop.source("secret", b"a secret of somebody else\n")
    listed = workshop.source("listed", b"an input\n")
    path = workshop.render(secret)
    script = f"ls -1 /nix/store; cat {path} || true; cat {path}.drv || true; ls -d {path}* || true"
    lines = log_of(workshop, script, sources=[listed])
    assert lines[0] == listed.base_name
    assert len(lines) == 4
    assert all("No such file" in line for line in lines[1:])


def test_row_003_no_call_changes_an_input(bench: Bench, attack: Path) -> None:
    """Its modes allow everything: only the mount stands between, for a namespace's root too."""
    tree_ = bench.directory / "input"
    (tree_ / "sub").mkdir(parents=True)
    (tree_ / "file").write_text("precious\n" * 1000)
    for path in (tree_, tree_ / "sub", tree_ / "file"):
        path.chmod(0o777)
    before = tree(tree_)
    spec = bench.spec(
        "",
        entry=Exec(b"/bin/attack"),
        argv=(b"attack", b"input", b"/nix/store/input"),
        inputs=(InputPath(source=os.fsencode(tree_), name=b"input"),),
        binds=(Bind(source=os.fsencode(attack), target=b"/bin/attack"),),
    )
    finished = bench.run_spec(spec)
    first, _, second = finished.output.partition("nested OK\n")
    for found in (answers(first.splitlines()), answers(second.splitlines())):
        assert len(found) == 31
        assert found == dict.fromkeys(found, "EROFS") | _OTHER_ANSWERS
    assert tree(tree_) == before


def test_row_004_the_parts_of_the_root_are_fixed(workshop: Workshop) -> None:
    script = """
    try() { if "$@" 2>/dev/null; then echo "done: $*"; fi; }
    put() { echo x > "$1"; }
    for path in /etc/new /etc/passwd /etc/hosts /bin/sh /bin/new /new /nix/new /dev/new; do
        try put $path
        try busybox rm -f $path
        try busybox ln -sf /tmp $path
    done
    try busybox mv /etc /tmp/etc; try busybox mkdir /x; try busybox rmdir /tmp /build
    echo end
    """
    assert log_of(workshop, script.replace("busybox rm -f $path", "busybox rm $path")) == ["end"]
    assert (
        log_of(workshop, "cat /etc/passwd", "next")[0]
        == "root:x:0:0:Nix build user:/build:/noshell"
    )


def test_row_006_devices_are_those_of_nix(workshop: Workshop) -> None:
    others = "mem kmsg fuse net/tun vsock kvm"
    script = f"ls -1 /dev; for f in {others}; do [ -e /dev/$f ] && echo $f; done; true"
    workshop.change(system_features=frozenset())
    names = "fd full null ptmx pts random shm stderr stdin stdout tty urandom zero"
    assert log_of(workshop, script) == names.split()


def test_row_007_no_device_can_be_made_or_used(workshop: Workshop) -> None:
    script = "busybox mkdir $out; for d in /tmp /build $out /dev/shm; do attack nodes $d; done"
    found = answers(log_of(workshop, script))
    assert found == {
        "mem": "EPERM",
        "null": "EPERM",
        "disk": "EPERM",
        "whiteout": "OK",  # Linux makes that one for everybody; row 82 is about what becomes of it
        "open_whiteout": "EACCES",  # nodev
    }


def test_row_007_a_device_in_an_input_does_not_work(bench: Bench) -> None:
    directory = bench.directory / "input"
    directory.mkdir()
    os.mknod(directory / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    (directory / "null").chmod(0o666)
    inputs = (InputPath(source=os.fsencode(directory), name=b"input"),)
    finished = bench.run(
        "echo x > /nix/store/input/null; cat < /nix/store/input/null", inputs=inputs
    )
    assert finished.output.count("ermission denied") == 2


@pytest.mark.parametrize("kind", ["ordinary", "fixed"])
def test_row_046_no_socket_has_a_path(workshop: Workshop, kind: str) -> None:
    outputs = {"out": fixed(b"\n", IngestionMethod.FLAT)} if kind == "fixed" else ("out",)
    script = "busybox find / -type s 2>/dev/null || true; ls /nix/var /var /run 2>/dev/null || true"
    assert log_of(workshop, script, outputs=outputs) == []


def test_row_106_a_registered_path_is_root_s_and_read_only(workshop: Workshop) -> None:
    made = workshop.make("made", "busybox mkdir $out; echo good > $out/file; chmod 777 $out/file")
    script = "attack input $made_out; echo x > $made_out/file || echo refused"
    before: dict[str, tuple[object, ...]] = {}
    assert workshop.build(made).result.success
    before = tree(workshop.real(made.out))
    found = log_of(workshop, script, inputs=[made])
    assert found[-1] == "refused"
    assert {line.split()[1] for line in found if " " in line} <= {
        *("EROFS", "EACCES", "EXDEV", "EPERM", "ENOENT"),
        *("OK", "can't"),
    }
    assert [line for line in found if line.endswith(" OK")] == ["nested OK"]
    assert tree(workshop.real(made.out)) == before
    for path in (workshop.real(made.out), workshop.real(made.out) / "file"):
        assert (path.stat().st_uid, path.stat().st_mode & 0o222) == (0, 0)


def test_row_077_no_subvolume_is_left_that_files_are_not_deleted_from(workshop: Workshop) -> None:
    """On btrfs anybody may make one, and make it read-only; elsewhere the kernel says ENOTTY."""
    calls = ("create", "create_v2", "snapshot", "snapshot_v2", "read_only")
    for place in ("/build", "/tmp"):
        assert answers(log_of(workshop, f"attack subvolumes {place}", f"x{place[1:]}")) == (
            dict.fromkeys(calls, "EOPNOTSUPP")
        )

"""Attacks through what a builder leaves: rows 64 to 91."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import pytest

from executor.build.result import BuildResult, FailureCause
from executor.derivation import DerivationOutput, FloatingOutput, ImpureOutput
from executor.formats.content_address import IngestionMethod
from executor.formats.hashes import HashAlgorithm
from tests.build.conftest import Workshop, fixed
from tests.hostile.host import facts_of, tree
from tests.hostile.inside import log_of

pytestmark = pytest.mark.root

_EXPERIMENTAL = frozenset({"ca-derivations", "impure-derivations"})
_KINDS: dict[str, DerivationOutput] = {
    "fixed": fixed(b"hello\n"),
    "floating": FloatingOutput(IngestionMethod.NAR, HashAlgorithm.SHA256),
    "impure": ImpureOutput(IngestionMethod.NAR, HashAlgorithm.SHA256),
}


def result_of(workshop: Workshop, script: str, name: str = "hostile") -> BuildResult:
    return workshop.build(workshop.make(name, script)).result


@pytest.mark.parametrize("how", ["plain", "mapped", "traced", "vforked", "stopped"])
def test_row_065_who_is_left_behind_writes_no_more(workshop: Workshop, how: str) -> None:
    """Detached, deaf to signals, traced, stopped, in vfork, or writing through a mapping (67)."""
    drv = workshop.make("left", f"echo good > $out; attack leave $out {how}; echo good > $out")
    assert workshop.build(drv).result.success
    real = workshop.real(drv.out)
    before = real.read_bytes()
    time.sleep(0.3)
    assert real.read_bytes() == before
    assert workshop.cli("verify", "--check-contents").returncode == 0


def test_row_067_a_mapping_that_is_left_behind_changes_nothing(workshop: Workshop) -> None:
    """Also in the middle of its writing, when the first process ends."""
    drv = workshop.make("mapped", "echo good > $out; attack leave $out mapped; busybox sleep 0.1")
    assert workshop.build(drv).result.success
    before = workshop.real(drv.out).read_bytes()
    assert before == b"Eood\n"
    time.sleep(0.3)
    assert workshop.real(drv.out).read_bytes() == before
    assert workshop.cli("verify", "--check-contents").returncode == 0


@pytest.mark.parametrize("kind", sorted(_KINDS))
def test_row_070_links_beside_the_output_are_not_used(
    workshop: Workshop, canaries: Path, kind: str
) -> None:
    """Nix wrote its copy of a fixed output to ``$out.tmp`` in 2024, as root (CVE-2026-39860)."""
    suffixes = "tmp lock check old part new tmp-1 rewritten chroot drv nar"
    script = f"""
    for s in {suffixes}; do busybox ln -s {canaries}/shadow $out.$s; done
    busybox ln -s {canaries}/shared /nix/store/.links
    busybox ln -s {canaries}/shared /nix/store/.executor-trash
    echo hello > $out
    """
    drv = workshop.make("planted", script, outputs={"out": _KINDS[kind]})
    before = tree(canaries)
    run = workshop.build(drv, experimental_features=_EXPERIMENTAL, auto_optimise_store=True)
    assert run.result.success, run.result.message
    assert workshop.real(run.result.outputs["out"]).read_bytes() == b"hello\n"
    assert tree(canaries) == before


@pytest.mark.parametrize("target", ["shadow", "closed", ".", "nowhere", "/", "self", "other"])
def test_row_071_an_output_may_be_a_link_and_nothing_follows_it(
    workshop: Workshop, canaries: Path, target: str
) -> None:
    path = {"/": "/", "self": "$out", "other": "$dev"}.get(target, f"{canaries}/{target}")
    script = f"busybox ln -s {path} $out; echo dev > $dev"
    drv = workshop.make("link", script, outputs=("out", "dev"))
    before, root = tree(canaries), facts_of(Path("/"))[:3]
    assert workshop.build(drv).result.success
    assert workshop.real(drv.out).is_symlink()
    assert workshop.real(drv.out).lstat().st_mtime == 1
    assert tree(canaries) == before
    assert facts_of(Path("/"))[:3] == root
    assert workshop.cli("optimise").returncode == 0
    assert workshop.cli("verify", "--check-contents").returncode == 0
    assert workshop.cli("gc").returncode == 0
    assert not os.path.lexists(workshop.real(drv.out))
    assert tree(canaries) == before


def test_row_072_links_inside_are_kept_and_never_followed(
    workshop: Workshop, canaries: Path
) -> None:
    """By nothing that is done to an output: hashing, copying, linking, verifying, deleting."""
    script = f"""
    busybox mkdir -p $out/sub; cd $out
    busybox ln -s {canaries}/shadow absolute
    busybox ln -s {canaries} directory
    busybox ln -s ../../../../../../../../../../..{canaries}/closed up
    busybox ln -s loop loop; busybox ln -s .. parent; busybox ln -s . here; busybox ln -s / root
    busybox ln -s ../../../../etc/passwd sub/passwd
    """
    before = tree(canaries)
    for outputs in (None, _KINDS["floating"]):
        drv = workshop.make("links", script, outputs={"out": outputs} if outputs else ("out",))
        run = workshop.build(drv, experimental_features=_EXPERIMENTAL)
        assert run.result.success, run.result.message
        real = workshop.real(run.result.outputs["out"])
        assert os.readlink(real / "up") == f"../../../../../../../../../../..{canaries}/closed"
        assert workshop.info(run.result.outputs["out"]).nar_size < 10_000
    for command in (["optimise"], ["verify", "--check-contents"], ["gc"]):
        assert workshop.cli(*command).returncode == 0
        assert tree(canaries) == before


def test_row_074_nothing_can_be_linked_into_an_output(workshop: Workshop) -> None:
    given = workshop.make("given", "echo given > $out")
    assert workshop.build(given).result.success
    link = workshop.make("symlink", "busybox ln -s /nowhere $out")
    assert workshop.build(link).result.success
    script = """
    busybox mkdir $out; echo mine > /build/file; echo mine > /tmp/file
    for f in $given_out $symlink_out /dev/null /dev/tty /bin/sh /etc/passwd /build/file /tmp/file \\
        /proc/self/exe /proc/1/status; do
        busybox ln $f $out/link 2>&1 && echo "linked: $f" || true
    done
    """
    lines = log_of(workshop, script, inputs=[given, link])
    assert [line for line in lines if line.startswith("linked")] == []
    refused = ("cross-device", "ot permitted")
    assert all(any(text in line for text in refused) for line in lines), lines
    assert len(lines) == 10


def test_row_075_links_between_outputs_make_two_valid_paths(workshop: Workshop) -> None:
    script = (
        "busybox mkdir $out $dev; echo x > $out/a; chmod 600 $out/a; ln $out/a $out/b;"
        "ln $out/a $dev/c; busybox ln -s a $out/s"
    )
    drv = workshop.make("linked", script, outputs=("out", "dev"))
    assert workshop.build(drv).result.success
    for file in (workshop.real(drv.out) / "b", workshop.real(drv.outputs["dev"]) / "c"):
        status = file.stat()
        assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_mtime) == (0o444, 0, 1)
    assert workshop.cli("verify", "--check-contents").returncode == 0


@pytest.mark.parametrize(
    "make",
    [
        "busybox mkfifo $out/x",
        "busybox mknod $out/x c 0 0",
        "busybox mkfifo $out/a; echo > $out/b",
        "busybox mkdir -p $out/d/e; busybox mknod $out/d/e/w c 0 0; chmod 0 $out/d",
    ],
)
def test_row_082_special_files_are_refused_unopened(workshop: Workshop, make: str) -> None:
    start = time.monotonic()
    result = result_of(workshop, f"busybox mkdir $out; {make}")
    assert result.cause is FailureCause.OUTPUT
    assert "unsupported type" in result.message
    assert time.monotonic() - start < 20  # opening a pipe would wait for ever


def test_row_084_strange_modes_become_canonical(workshop: Workshop) -> None:
    script = """
    busybox mkdir $out; cd $out
    for m in 000 001 111 222 444 555 600 666 755 777 1777; do
        echo $m > f$m; busybox mkdir d$m; echo x > d$m/inner; chmod $m f$m d$m
    done
    """
    drv = workshop.make("modes", script)
    assert workshop.build(drv).result.success
    for path in workshop.real(drv.out).rglob("*"):
        status = path.lstat()
        executable = path.is_dir() or path.name in ("f111", "f555", "f755", "f777", "f1777")
        assert stat.S_IMODE(status.st_mode) == (0o555 if executable else 0o444), path
        assert (status.st_uid, status.st_gid, status.st_mtime) == (0, 0, 1)


def test_row_086_paths_that_were_not_asked_for_stay_inside(workshop: Workshop) -> None:
    fake = "a" * 32
    script = (
        f"busybox mkdir /nix/store/{fake}-fake; echo evil > /nix/store/{fake}-fake/file;"
        f"echo evil > /nix/store/{'b' * 32}-x.drv; busybox ln -s /etc /nix/store/.links;"
        "echo $out > $out"
    )
    drv = workshop.make("generous", script)
    assert workshop.build(drv).result.success
    names = os.listdir(workshop.location.real_store_dir)
    assert sorted(set(names) - {".links"}) == sorted([drv.out.base_name, drv.path.base_name])
    result = result_of(workshop, f"echo > /nix/store/{fake}-fake", "lazy")
    assert "failed to produce output path" in result.message


def test_row_088_nothing_but_bytes_gets_into_the_store(workshop: Workshop) -> None:
    """Attributes that lie on what a builder made are gone; it can't set any itself (row 37)."""
    drv = workshop.make("plain", "busybox mkdir -p $out/sub; echo x > $out/sub/file")
    assert workshop.build(drv).result.success
    for path in (workshop.real(drv.out), *workshop.real(drv.out).rglob("*")):
        assert os.listxattr(path, follow_symlinks=False) == []


def test_row_089_names_of_any_bytes_are_kept(workshop: Workshop) -> None:
    names = [
        *(b"\xff\xfe", b"new\nline", b"-rf", b"\x1b]0;x\x07", b"x" * 255, b"~nix~case~hack~1"),
        *("é".encode(), "e\u0301".encode(), b" ", b"\\", b"$(reboot)", b"'\"", b"\x01\x7f"),
    ]
    octal = [b"".join(b"\\%03o" % byte for byte in name).decode() for name in names]
    script = "busybox mkdir $out; cd $out\n" + "\n".join(
        f"n=$(printf '{name}x'); echo > \"./${{n%x}}\"" for name in octal
    )
    drv = workshop.make("names", script)
    run = workshop.build(drv)
    assert run.result.success, run.log
    assert sorted(os.listdir(os.fsencode(workshop.real(drv.out)))) == sorted(names)
    for command in (["verify", "--check-contents"], ["optimise"], ["gc"]):
        done = workshop.cli(*command)
        assert done.returncode == 0, done.stderr
        assert "\x1b]" not in done.stdout + done.stderr


def test_row_089_a_name_in_a_message_can_not_drive_a_terminal(workshop: Workshop) -> None:
    result = result_of(
        workshop, "busybox mkdir $out; busybox mkfifo \"$out/$(printf '\\033[2Jx')\""
    )
    assert result.cause is FailureCause.OUTPUT
    assert "\\x1b[2Jx" in result.message
    assert "\x1b[2J" not in result.message


@pytest.mark.parametrize(("levels", "fits"), [(62, True), (64, False), (5000, False)])
def test_row_090_deep_outputs_are_refused_and_leave_nothing(
    workshop: Workshop, levels: int, fits: bool
) -> None:
    result = result_of(workshop, f"busybox mkdir $out; attack deep $out {levels} 1")
    assert result.success is fits
    if not fits:
        assert result.cause is FailureCause.OUTPUT
        assert "more than 64 levels" in result.message
        assert len(result.message) < 2000


@pytest.mark.parametrize("place", ["/build", "/tmp", "$out"])
def test_row_090_deep_directories_are_removed_after_a_failure(
    workshop: Workshop, place: str
) -> None:
    result = result_of(workshop, f"busybox mkdir -p $out; attack deep {place} 3000 0; exit 1")
    assert result.cause is FailureCause.EXIT_CODE


def test_row_091_a_wide_directory_is_an_output_like_any(workshop: Workshop) -> None:
    drv = workshop.make("wide", "busybox mkdir $out; attack many $out 20000")
    assert workshop.build(drv).result.success
    assert len(os.listdir(workshop.real(drv.out))) == 20000
    names = sorted(map(str, range(1, 20001)))
    assert workshop.info(drv.out).nar_size > 20000 * 100
    assert sorted(os.listdir(workshop.real(drv.out))) == names

"""Reaching a build from outside, and what is left of one: rows 35 and 98 to 104."""

from __future__ import annotations

import os
import re
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from executor.api import Executor
from executor.build.plan import Target
from executor.build.result import FailureCause
from tests.build.conftest import Run, Workshop, wait_until
from tests.hostile.host import BUILD_IDS, facts_of, owned_by_builds
from tests.hostile.inside import as_user, log_of, pause, waiting

pytestmark = pytest.mark.root

_STRANGER = 65_534
# What a builder does to let others in: rows 35 and 98.
_OPEN_UP = """
chmod 777 . .. / /tmp /nix/store 2>/dev/null || true
busybox mkdir $out; chmod 777 $out
for d in /build /tmp $out; do
    busybox cp /bin/busybox $d/program; chmod 4777 $d/program 2>/dev/null || chmod 777 $d/program
    echo mine > $d/file; chmod 666 $d/file
done
"""


def _places(workshop: Workshop) -> Iterator[Path]:
    """Every directory of a running build, as the host sees it."""
    builds = Path(workshop.location.state_dir, "builds")
    for top in (*builds.iterdir(), *Path(workshop.location.real_store_dir).glob("*.chroot")):
        yield top
        yield from (path for path in top.rglob("*") if path.is_dir() and not path.is_symlink())


@pytest.mark.parametrize("who", ["stranger", "the build user"])
def test_row_035_nobody_outside_reaches_what_a_builder_opened_to_all(
    workshop: Workshop, who: str
) -> None:
    """Rows 98, 99 and 101 too: the build directory, /tmp and the outputs, while it runs."""
    command, marker = pause()
    drv = workshop.make("open", f"{_OPEN_UP}{command}; rm $out/program; chmod 755 $out")
    with waiting(workshop, drv, marker) as running:
        uid = running.uid if who == "the build user" else _STRANGER
        assert uid >= BUILD_IDS or who == "stranger"
        places = list(_places(workshop))
        names = {place.name for place in places}
        assert {"build", "store", "tmp"} <= names
        assert drv.out.base_name in names
        for place in places:
            attacks: list[list[str | Path]] = [
                ["ls", place],
                ["touch", place / "new"],
                [place / "program", "id"],
            ]
            for attack in attacks:
                try:
                    assert as_user(uid, *attack).returncode != 0, (uid, attack)
                except PermissionError:
                    continue  # the program could not even be found
        # Not through the running process either, whose files in /proc say where all that is.
        for name in ("root", "cwd", "fd/1"):
            assert as_user(uid, "ls", f"/proc/{running.pid}/{name}/").returncode != 0
    assert running.run is not None
    assert running.run.result.success, running.run.log


def test_row_035_no_set_id_bit_is_ever_on_disk(workshop: Workshop) -> None:
    command, marker = pause()
    drv = workshop.make("setid", f"{_OPEN_UP}{command}; busybox rm -r $out; echo > $out")
    with waiting(workshop, drv, marker):
        for place in _places(workshop):
            for entry in place.iterdir():
                assert not entry.lstat().st_mode & (stat.S_ISUID | stat.S_ISGID), entry


def test_row_098_the_directory_above_the_build_s_is_out_of_reach(workshop: Workshop) -> None:
    lines = log_of(workshop, "chmod 777 .. || echo refused; ls -ld /build | busybox cut -c1-10")
    assert "refused" in lines
    assert lines[-1] == "drwx------"


def test_row_099_the_build_user_outside_is_a_stranger(workshop: Workshop) -> None:
    """Also to the terminal of the log: what it could do is write into its own log."""
    command, marker = pause()
    drv = workshop.make("same", f"echo secret > /build/file; {command}; echo > $out")
    with waiting(workshop, drv, marker) as running:
        build = next(place for place in _places(workshop) if place.name == "build")
        assert (build / "file").read_text() == "secret\n"
        for path in (build, build / "file", build.parent):
            assert as_user(running.uid, "cat", path).returncode != 0
        # Who owns a user namespace may do anything to those in it: this one is nobody's.
        for name in ("root/", "cwd/", "fdinfo/", "fd/1", "environ", "mem"):
            file = f"/proc/{running.pid}/{name}"
            reader = ["ls", file] if name.endswith("/") else ["head", "-c1", file]
            assert as_user(running.uid, *reader).returncode != 0, name
        entering = ["nsenter", "--target", str(running.pid), "--user", "--mount", "id"]
        assert as_user(running.uid, *entering).returncode != 0


def test_row_100_names_of_build_directories_tell_nothing(workshop: Workshop) -> None:
    command, marker = pause()
    names = set()
    for number in range(2):
        name = f"a-secret-project-{number}-{'x' * 150}"
        with waiting(workshop, workshop.make(name, f"{command}; echo > $out"), marker):
            (top,) = os.listdir(Path(workshop.location.state_dir, "builds"))
        assert re.fullmatch(r"nix-\d+-[0-9a-f]{16}", top)
        names.add(top)
    assert len(names) == 2


@pytest.mark.parametrize("kind", ["link", "world-writable", "somebody's"])
def test_row_100_a_base_that_others_can_change_is_refused(workshop: Workshop, kind: str) -> None:
    base = workshop.directory / "base"
    if kind == "link":
        (workshop.directory / "real").mkdir()
        base.symlink_to("real")
    else:
        base.mkdir()
        base.chmod(0o777 if kind == "world-writable" else 0o755)
        os.chown(base, _STRANGER if kind == "somebody's" else 0, 0)
    run = workshop.build(workshop.make("never"), build_dir=str(base))
    assert not run.result.success
    assert "build" in run.result.message
    assert run.started == []
    assert not base.is_dir() or os.listdir(base) == []


_LITTER = """
for d in /build /tmp $out; do
    busybox mkdir -p $d/sub; echo x > $d/sub/file; busybox mkfifo $d/pipe; chmod 0 $d/sub
done
"""


@pytest.mark.parametrize(
    ("end", "settings", "cause"),
    [
        ("exit 1", {}, FailureCause.EXIT_CODE),
        ("busybox sleep 60", {"timeout": 1}, FailureCause.TIMEOUT),
        ("busybox sleep 60", {"max_silent_time": 1}, FailureCause.SILENCE),
        ("exec busybox yes", {"max_build_log_size": 10_000}, FailureCause.LOG_LIMIT),
        ("true", {}, FailureCause.OUTPUT),
    ],
)
def test_row_102_a_build_that_fails_leaves_nothing(
    workshop: Workshop, end: str, settings: dict[str, int], cause: FailureCause
) -> None:
    drv = workshop.make("litter", _LITTER + end)
    result = workshop.build(drv, **settings).result
    assert result.cause is cause, result.message
    assert workshop.leftovers() == []
    assert owned_by_builds(workshop.directory) == []
    assert not workshop.is_valid(drv.out)


def test_row_102_a_killed_executor_s_leftovers_go_with_the_next_build(workshop: Workshop) -> None:
    command, marker = pause()
    drv = workshop.make("killed", f"{_LITTER}{command}")
    process = workshop.start_cli("build", drv.text)
    wait_until(lambda: bool(_found(marker)), "the builder")
    process.kill()
    process.communicate(timeout=30)
    wait_until(lambda: not _found(marker), "its end", 5)
    assert workshop.build(workshop.make("next")).result.success
    for top in Path(workshop.location.real_store_dir).glob("*.chroot"):
        # Root alone can enter it, until the derivation is built again or a collector comes.
        assert stat.S_IMODE(top.stat().st_mode) == 0o700
    assert workshop.cli("gc").returncode == 0
    assert workshop.leftovers() == []


def _found(marker: str) -> list[str]:
    done = subprocess.run(["pgrep", "-f", marker.replace("\0", " ").strip()], capture_output=True)
    return done.stdout.decode().split()


def test_row_103_a_kept_directory_is_harmless(workshop: Workshop) -> None:
    script = f"{_OPEN_UP} busybox ln -s /etc/shadow link; busybox mkfifo pipe; exit 1"
    result = workshop.build(workshop.make("kept", script), keep_failed=True).result
    assert result.kept_build_directory is not None
    kept = Path(result.kept_build_directory)
    shadow = facts_of(Path("/etc/shadow"))
    for path in (kept, *kept.rglob("*")):
        status = path.lstat()
        assert status.st_uid == status.st_gid == 0
        assert not status.st_mode & (stat.S_ISUID | stat.S_ISGID)
        if not path.is_symlink():
            assert not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH), path
    assert facts_of(Path("/etc/shadow")) == shadow
    subprocess.run(["rm", "-r", kept.parent], check=True)


def test_row_103_files_with_set_id_bits_lose_them_when_kept(workshop: Workshop) -> None:
    """Were the filter to miss one: put there by the test, as root, while the build runs."""
    command, marker = pause()
    drv = workshop.make("kept", f"busybox cp /bin/busybox program; {command}; exit 1")
    with waiting(workshop, drv, marker, keep_failed=True) as running:
        for mode in (0o4755, 0o2755, 0o2644, 0o6777):
            program = running.root / "build" / f"{mode:o}"
            program.write_bytes(b"x")
            os.chown(program, running.uid, running.uid)
            program.chmod(mode)
    assert running.run is not None
    kept = running.run.result.kept_build_directory
    assert kept is not None
    modes = {path.name: oct(stat.S_IMODE(path.stat().st_mode)) for path in Path(kept).iterdir()}
    assert modes == {
        "program": "0o755",
        "4755": "0o755",
        "2755": "0o755",
        "2644": "0o644",
        "6777": "0o755",
    }
    subprocess.run(["rm", "-r", Path(kept).parent], check=True)


def test_row_103_a_directory_that_is_too_deep_is_not_kept(workshop: Workshop) -> None:
    drv = workshop.make("deep", "attack deep /build 1000 1; exit 1")
    run = workshop.build(drv, keep_failed=True)
    assert run.result.kept_build_directory is None
    assert any("can't keep the build directory" in notice for notice in run.notices)
    assert workshop.leftovers() == []


def test_row_104_the_next_build_of_an_id_finds_nothing(workshop: Workshop) -> None:
    """Builds one after the other get the same id: files, objects and processes of one are gone."""
    litter = f"{_LITTER} attack ipc make; echo x > /dev/shm/left; busybox touch /dev/pts/0 || true"
    look = (
        "busybox find /build /tmp /dev/shm /nix/store -mindepth 1; attack ipc look; ls -1 /dev/pts"
    )
    ids = set()
    found: list[str] = []
    for name, script in (
        ("first", f"{litter}; busybox chmod 700 $out/sub; busybox rm -r $out"),
        ("second", look),
    ):
        command, marker = pause()
        drv = workshop.make(name, f"{script}\n{command}; echo > $out")
        with waiting(workshop, drv, marker) as running:
            ids.add(running.uid)
        assert running.run is not None
        assert running.run.result.success, running.run.log
        found = [line.decode() for line in running.run.log]
    assert len(ids) == 1
    assert [line for line in found if not line.endswith(" ENOENT")] == ["ptmx", "Terminated"]


def test_row_121_directories_do_not_tell_how_full_they_were(workshop: Workshop) -> None:
    """On ext4 they stay as large as they were once; builds of one executor use some again."""
    places = "/ /build /tmp /nix/store /dev/shm"
    look = f"busybox stat -c '%n %s %a %u %g %h' {places}"
    crowd = "for d in /build /tmp /nix/store; do cd $d; seq 3000 | busybox xargs touch; done"
    made = [
        workshop.make(name, f"{script}\ncd /; echo > $out")
        for name, script in (("before", look), ("crowd", crowd), ("after", look))
    ]
    run = Run()

    async def go(executor: Executor) -> None:
        for drv in made:
            run.results += await executor.build_all([Target(drv_path=drv.path)])

    workshop.run(go, run)
    assert all(result.success for result in run.results), run.log
    assert len(run.log) == 10
    assert run.log[:5] == run.log[5:]

"""Builds with a range of ids, whose builder is root in there, and what that doesn't give it."""

from __future__ import annotations

import asyncio
import os
import secrets
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from executor.api import Executor
from executor.build.plan import Target
from executor.build.result import BuildResult, BuildStatus, FailureCause
from executor.config import SandboxPath
from executor.store.canonicalise import Canonicaliser, canonicalise_and_describe
from executor.store.errors import UnacceptableTreeError
from tests.build.conftest import (
    FOREVER,
    SLEEPING,
    Drv,
    Run,
    Workshop,
    processes_with,
    wait_until,
)
from tests.hostile.host import BUILD_IDS, owned_by_builds
from tests.hostile.inside import Waiting, log_of, pause, show_programs, waiting

pytestmark = pytest.mark.root

COUNT = 65536
# A store that isn't the machine's begins with the last of the 128 slots.
FIRST = BUILD_IDS + 127 * COUNT
FEATURES = frozenset({"auto-allocate-uids", "cgroups"})
RANGE = {"requiredSystemFeatures": "uid-range"}


@pytest.fixture
def ranges(workshop: Workshop) -> Workshop:
    """A store whose builds may ask for a range."""
    names = "chown cut find grep id ip ls mount ps readlink rmdir setsid stat tr umount unshare"
    paths = tuple(
        SandboxPath(target=f"/bin/{name}", source="/bin/busybox", read_only=True)
        for name in names.split()
    )
    workshop.change(
        auto_allocate_uids=True,
        experimental_features=FEATURES,
        sandbox_paths=(*workshop.settings.sandbox_paths, *paths),
    )
    return workshop


def said(workshop: Workshop, script: str, **changes: Any) -> list[str]:
    return log_of(workshop, script, env=RANGE, **changes)


def tried(workshop: Workshop, *commands: str, setup: str = "", **changes: Any) -> dict[str, str]:
    """What came of each command: ``ok``, or the last word of what it complained of."""
    lines = [setup]
    for number, command in enumerate(commands):
        lines.append(
            f"if why=$( ({command}) 2>&1 >/dev/null); then echo '{number} ok'; "
            f'else echo "{number} ${{why##*: }}"; fi'
        )
    found = said(workshop, "\n".join(lines), **changes)
    answers = [line.partition(" ")[2] for line in found if line[:1].isdigit()]
    return dict(zip(commands, answers, strict=True))


def processes_in_the_range() -> list[str]:
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            ids = Path(f"/proc/{entry}/status").read_text().partition("Uid:")[2].split()[:4]
            dead = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
            if not dead and any(FIRST <= int(uid) < FIRST + COUNT for uid in ids):
                found.append(entry)
    return found


def check_ids(found: Waiting, *, count: int) -> None:
    """Outside it runs under the first id of its slot, in all four places, and maps no more."""
    assert found.status["Uid"].split() == [str(FIRST)] * 4
    assert found.status["Gid"].split() == [str(FIRST)] * 4
    inside = "0" if count > 1 else "1000"
    for name in ("uid_map", "gid_map"):
        mapped = Path(f"/proc/{found.pid}/{name}").read_text().split()
        inside = inside if name == "uid_map" or count > 1 else "100"
        assert mapped == [inside, str(FIRST), str(count)]


@pytest.mark.parametrize("count", [1, COUNT])
def test_row_017_slots_are_mapped_and_nothing_else(ranges: Workshop, count: int) -> None:
    command, marker = pause()
    drv = ranges.make("waiter", f"{command}; echo > $out", env=RANGE if count > 1 else {})
    with waiting(ranges, drv, marker) as found:
        check_ids(found, count=count)
    assert found.run is not None
    assert found.run.result.success


def test_row_018_a_range_writes_to_no_file_of_the_kernel(ranges: Workshop) -> None:
    script = "find /proc -path '/proc/[0-9]*' -prune -o -path /proc/self -prune -o -type f -print"
    script += " 2>/dev/null | while read f; do (echo -n >> $f) 2>/dev/null && echo $f; done || :"
    # What anybody may write: it asks to be told of this build's own waits.
    assert {line.rpartition("/")[0] for line in said(ranges, script)} <= {"/proc/pressure"}
    lower = "(echo -1000 > /proc/self/oom_score_adj) 2>/dev/null && echo lowered || :"
    assert said(ranges, lower, name="oom") == []


def test_row_024_maps_are_written_to_a_real_procfs_or_not_at_all() -> None:
    """By a helper outside; where /proc is something else, it refuses before anything is made."""
    code = "from sandbox.id_range import open_procfs; open_procfs()"
    fake = f"mount -t tmpfs none /proc && exec {sys.executable} -c '{code}'"
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", fake],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode != 0
    assert "StepFailedError" in done.stderr


def test_row_027_what_a_range_was_given_stays_mounted_and_read_only(ranges: Workshop) -> None:
    source = ranges.source("input", b"precious\n")
    path = ranges.render(source)
    found = tried(
        ranges,
        f"umount {path}",
        f"mount -o remount,rw,bind {path}",
        f"echo x > {path}",
        f"unshare -m umount {path}",
        f"unshare -Urm mount -o remount,rw,bind {path}",
        "umount /proc",
        "umount /sys",
        "umount /bin/sh",
        "umount /build",
        sources=[source],
    )
    assert set(found.values()) == {
        *("Invalid argument", "permission denied (are you root?)", "Read-only file system"),
    }
    assert found[f"echo x > {path}"] == "Read-only file system"
    assert found["umount /proc"] == found[f"umount {path}"] == "Invalid argument"
    assert ranges.real(source).read_bytes() == b"precious\n"


def test_row_027_containers_in_a_range_mount_what_they_need(ranges: Workshop) -> None:
    """What systemd-nspawn does, and the test of it that Nix has."""
    found = tried(
        ranges,
        "mkdir /run",
        "mount -t tmpfs none /run",
        "mkdir -p /run/root/proc /run/root/sys",
        "mount -t cgroup2 none /sys/fs/cgroup",
        "mkdir /sys/fs/cgroup/payload",
        "echo 0 > /sys/fs/cgroup/payload/cgroup.procs",
        "mount --rbind / /run/root",
        "unshare -mnuipf sh -c 'mount -t proc p /proc && mount -t sysfs s /sys'",
        "unshare -mnuipf sh -c 'ip link set lo up && busybox hostname box'",
        "touch /etc/os-release",
        "umount /proc/sys",
        "echo 1 > /proc/sys/net/ipv4/ip_forward",
    )
    assert set(found.values()) == {"ok"}, found


def test_row_040_no_capability_of_a_file_gets_into_the_store(ranges: Workshop) -> None:
    show_programs(ranges)
    script = (
        "import os; out = os.environ['out']; open(out, 'w').close()\n"
        "value = bytes.fromhex('0100000200200000000000000000000000000000')\n"
        "for name in ('security.capability', 'user.x', 'trusted.x'):\n"
        "    try: os.setxattr(out, name, value); print(name)\n"
        "    except OSError as error: print(name, os.strerror(error.errno))\n"
    )
    drv = ranges.make("caps", f'/usr/bin/python3 -c "{script}"', env=RANGE)
    run = ranges.build(drv)
    assert run.result.success, run.text
    assert {line.partition(b" ")[2] for line in run.log} == {b"Operation not supported"}
    assert os.listxattr(ranges.real(drv.out)) == []
    tree = ranges.directory / "tree"
    tree.write_text("made")
    os.chown(tree, FIRST + 9, FIRST + 9)
    os.setxattr(tree, "security.capability", bytes.fromhex("01000002" + "00200000" + "00" * 12))
    directory = os.open(ranges.directory, os.O_RDONLY)
    policy = Canonicaliser(allowed_uids=range(FIRST, FIRST + COUNT))
    canonicalise_and_describe(directory, b"tree", canonicaliser=policy)
    os.close(directory)
    assert os.listxattr(tree) == []


@pytest.mark.parametrize("way", ["check", "repair"])
def test_row_041_a_range_is_no_more_when_it_checks_or_repairs(ranges: Workshop, way: str) -> None:
    command, marker = pause()
    drv = ranges.make(way, f"{command}; echo made > $out", env=RANGE)
    with waiting(ranges, drv, marker):
        pass
    if way == "repair":
        ranges.real(drv.out).chmod(0o644)
        ranges.real(drv.out).write_text("bad\n")
    again = _Again(ranges, way)
    with waiting(again, drv, marker) as found:
        check_ids(found, count=COUNT)
    assert found.run is not None
    assert found.run.result.success, found.run.result.message
    assert ranges.real(drv.out).read_text() == "made\n"


class _Again(Workshop):
    """The same store, where building means checking or repairing."""

    def __init__(self, workshop: Workshop, way: str) -> None:
        super().__init__(workshop.directory)
        self.settings = workshop.settings
        self._way = way

    def build(self, *drvs: Drv, **settings: Any) -> Any:
        run = Run()

        async def go(executor: Any) -> Any:
            targets = [Target(drv_path=drv.path, check=self._way == "check") for drv in drvs]
            return await executor.build_all(targets, repair=self._way == "repair")

        run.results = self.run(go, run, **settings)
        return run


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (
            {"auto_allocate_uids": False},
            "feature 'uid-range' requires the setting 'auto-allocate-uids' to be enabled",
        ),
        (
            {"experimental_features": frozenset({"auto-allocate-uids"})},
            "experimental Nix feature 'cgroups' is disabled; add '--extra-experimental-features "
            "cgroups' to enable it",
        ),
    ],
)
def test_row_042_a_range_is_given_as_asked_or_not_at_all(
    ranges: Workshop, settings: dict[str, Any], text: str
) -> None:
    result = ranges.build(ranges.make("refused", env=RANGE), **settings).result
    assert (result.status, result.cause) == (BuildStatus.MISC_FAILURE, FailureCause.SETUP)
    assert result.message == text


def test_row_060_a_range_rules_below_its_control_group_alone(ranges: Workshop) -> None:
    group = "/sys/fs/cgroup"
    files = ("memory.max", "pids.max", "cgroup.max.depth", "cgroup.kill", "cgroup.freeze")
    found = tried(
        ranges,
        *(f"echo 1 > {group}/{name}" for name in files),
        f"[ $(readlink -f {group}/..) = /sys/fs ]",
        f"mkdir {group}/own && echo 0 > {group}/own/cgroup.procs",
        "[ $(grep ^0: /proc/self/cgroup) = 0::/ ]",
        setup=f"mount -t cgroup2 none {group}",
    )
    refused = {found[f"echo 1 > {group}/{name}"] for name in files}
    assert refused <= {"Permission denied", "nonexistent directory"}, found
    assert set(list(found.values())[len(files) :]) == {"ok"}, found


def test_row_061_a_range_has_its_own_groups_alone(ranges: Workshop) -> None:
    script = (
        "id -G; grep Groups: /proc/self/status | tr -d '\\t '; busybox cat /proc/self/setgroups"
    )
    drv = ranges.make("groups", f"({script}) > $out", env=RANGE)
    done = subprocess.run(
        ranges.command("build", drv.text),
        env=_environment(ranges),
        extra_groups=[4, 27, 999],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert ranges.real(drv.out).read_text() == "0\nGroups:\nallow\n"


def _environment(workshop: Workshop) -> dict[str, str]:
    environment = workshop.environment()
    environment["NIX_CONFIG"] += (
        "experimental-features = auto-allocate-uids cgroups\nauto-allocate-uids = true\n"
    )
    return environment


def test_row_062_root_of_a_range_is_nobody_outside_of_it(ranges: Workshop) -> None:
    shared = ranges.directory / "shared"
    shared.mkdir(mode=0o755)
    (shared / "secret").write_text("secret")
    (shared / "secret").chmod(0o600)
    shown = SandboxPath(target="/shared", source=str(shared))
    ranges.change(sandbox_paths=(*ranges.settings.sandbox_paths, shown))
    found = tried(
        ranges,
        "chown 65536 /tmp/mine",
        "chown 5:7 /tmp/mine",
        "busybox cat /shared/secret",
        "chmod 666 /shared/secret",
        "chown 0 /shared/secret",
        "echo x > /shared/new",
        "[ $(stat -c %u:%g /shared/secret) = 65534:65534 ]",
        "mknod /tmp/null c 1 3",
        "echo x > /proc/sys/kernel/core_pattern",
        "echo x > /sys/kernel/uevent_helper",
        "mount -t ext4 /dev/vda /tmp",
        "mount -t debugfs none /tmp",
        "mount -t cgroup -o none,name=mine none /tmp",
        setup=": > /tmp/mine",
    )
    allowed = {what for what, answer in found.items() if answer == "ok"}
    assert allowed == {
        "chown 5:7 /tmp/mine",
        "[ $(stat -c %u:%g /shared/secret) = 65534:65534 ]",
    }, found
    assert found["chown 65536 /tmp/mine"] == "Invalid argument"
    assert os.listdir(shared) == ["secret"]
    assert (shared / "secret").stat().st_mode & 0o777 == 0o600


_LEFT_BEHIND = """
import os, signal, sys, time
os.mkdir("/sys/fs/cgroup/left")
for uid in (7, 65535):
    if os.fork() == 0:
        os.setsid()
        open("/sys/fs/cgroup/left/cgroup.procs", "w").write("0")
        os.setgroups([uid]); os.setresgid(uid, uid, uid); os.setresuid(uid, uid, uid)
        for number in (1, 2, 15): signal.signal(number, signal.SIG_IGN)
        print("ready", flush=True)
        while True:
            time.sleep(0.01)
            try: open(os.environ["out"], "a").write("EVIL")
            except OSError: pass
time.sleep(0.3)
os._exit(0)
"""


def test_row_066_processes_left_under_other_ids_end_with_the_build(ranges: Workshop) -> None:
    show_programs(ranges)
    (ranges.directory / "left.py").write_text(_LEFT_BEHIND)
    shown = ranges.shown(ranges.directory / "left.py", "/left.py")
    ranges.change(sandbox_paths=(*ranges.settings.sandbox_paths, shown))
    script = "mount -t cgroup2 none /sys/fs/cgroup; echo good > $out; chmod 666 $out; "
    drv = ranges.make("left", f"{script} /usr/bin/python3 /left.py; chmod 644 $out", env=RANGE)
    run = ranges.build(drv)
    assert run.result.success, (run.result.message, run.log)
    assert run.log == [b"ready", b"ready"]
    assert processes_in_the_range() == []
    content = ranges.real(drv.out).read_bytes()
    time.sleep(0.3)
    assert ranges.real(drv.out).read_bytes() == content


@pytest.mark.parametrize("owner", [5, 65534])
def test_row_085_an_output_of_another_id_is_refused(ranges: Workshop, owner: int) -> None:
    drv = ranges.make("foreign", f"echo > $out; chown {owner} $out", env=RANGE)
    result = ranges.build(drv).result
    assert result.status is BuildStatus.OUTPUT_REJECTED
    assert "suspicious ownership or permission" in result.message


def test_row_085_other_ids_of_the_range_within_an_output_become_roots(ranges: Workshop) -> None:
    script = "mkdir -p $out/d $dev; echo x > $out/d/f; ln -s f $out/d/l; echo > $dev/g"
    script += "; busybox ln $out/d/f $dev/h; chown -hR 7:65535 $out/d/f $out/d/l $out/d $dev/g"
    drv = ranges.make("mixed", script, outputs=("out", "dev"), env=RANGE)
    run = ranges.build(drv)
    assert run.result.success, run.result.message
    for output in drv.outputs.values():
        for path in (ranges.real(output), *ranges.real(output).rglob("*")):
            status = path.lstat()
            assert (status.st_uid, status.st_gid, status.st_mtime) == (0, 0, 1)
    assert ranges.build(drv, repeat=0).result.status is BuildStatus.ALREADY_VALID


@pytest.mark.parametrize("uid", [0, FIRST - 1, FIRST + COUNT])
def test_row_085_ids_out_of_the_range_are_refused(tmp_path: Path, uid: int) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/file").write_text("secret")
    (tmp_path / "tree/file").chmod(0o600)
    os.chown(tmp_path / "tree", FIRST, FIRST)
    os.chown(tmp_path / "tree/file", uid, uid)
    directory = os.open(tmp_path, os.O_RDONLY)
    policy = Canonicaliser(allowed_uids=range(FIRST, FIRST + COUNT))
    with pytest.raises(UnacceptableTreeError, match="invalid ownership"):
        canonicalise_and_describe(directory, b"tree", canonicaliser=policy)
    os.close(directory)
    status = (tmp_path / "tree/file").stat()
    assert (status.st_uid, status.st_mode & 0o777) == (uid, 0o600)


def test_row_104_the_next_build_of_a_slot_finds_nothing_of_the_last(ranges: Workshop) -> None:
    show = "stat -c %u /proc/1; find / -xdev ! -user 65534 ! -path '/proc/*' | busybox sort"
    first = said(
        ranges,
        f"{show}; for d in '' /etc /tmp /build /dev/shm; do echo > $d/mine; chown 9 $d/mine; done",
        name="first",
    )
    assert said(ranges, show, name="second") == first
    assert [line for line in first if "mine" in line] == []
    assert owned_by_builds(ranges.directory) == []


def test_row_104_a_killed_executor_leaves_no_process_and_the_slot_is_free(
    ranges: Workshop,
) -> None:
    script = f"for f in /tmp/x /build/x; do echo > $f; chown 77 $f; done; {FOREVER}; echo > $out"
    drv = ranges.make("killed", script, env=RANGE)
    process = subprocess.Popen(
        ranges.command("build", drv.text),
        env=_environment(ranges),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    wait_until(lambda: bool(processes_with(SLEEPING)), "the builder")
    process.kill()
    process.wait()
    wait_until(lambda: not processes_in_the_range(), "the end of the builder")
    again = ranges.make("next", "echo > $out", env=RANGE)
    assert ranges.build(again).result.success
    assert ranges.build(drv, timeout=1).result.status is BuildStatus.TIMED_OUT
    assert owned_by_builds(ranges.directory) == []


def test_row_160_control_groups_nested_a_hundred_deep_go_with_their_build(
    ranges: Workshop,
) -> None:
    name = f"deep-{secrets.token_hex(6)}"
    script = f"""
mount -t cgroup2 none /sys/fs/cgroup; g=/sys/fs/cgroup; i=0
while [ $i -lt 100 ]; do
  g=$g/{name}; mkdir $g; i=$((i+1))
  [ $((i % 25)) = 0 ] && (setsid sh -c "echo 0 > $g/cgroup.procs; exec {FOREVER}" &)
done
mkdir $g/t; echo threaded > $g/t/cgroup.type; busybox sleep 0.3
find /sys/fs/cgroup/{name} -name cgroup.procs -exec busybox cat {{}} + 2>/dev/null | busybox wc -l
"""
    assert said(ranges, script) == ["4"]
    assert processes_in_the_range() == []
    command = ["find", "/sys/fs/cgroup", "-maxdepth", "8", "-name", name]
    left = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert left.stdout == ""


def test_row_160_thousands_of_control_groups_keep_nobody_else_waiting(ranges: Workshop) -> None:
    """They are removed in the time that they need, and other builds go on meanwhile."""
    script = "mount -t cgroup2 none /sys/fs/cgroup; cd /sys/fs/cgroup; mkdir $(seq 8000); cd /"
    drv = ranges.make("wide", f"{script}; echo > $out", env=RANGE)
    longest = 0.0

    async def look() -> None:
        nonlocal longest
        while True:
            begin = time.monotonic()
            await asyncio.sleep(0.01)
            longest = max(longest, time.monotonic() - begin)

    async def go(executor: Executor) -> list[BuildResult]:
        looking = asyncio.ensure_future(look())
        try:
            return await executor.build_all([Target(drv_path=drv.path)])
        finally:
            looking.cancel()

    begin = time.monotonic()
    assert ranges.run(go)[0].success
    assert longest < 1
    assert time.monotonic() - begin < 20, "listing all of them for each one took a minute"


@pytest.mark.parametrize("range_", [False, True])
def test_row_163_a_silent_builder_of_a_slot_is_stopped(ranges: Workshop, range_: bool) -> None:
    drv = ranges.make("silent", f"trap '' TERM; {FOREVER}", env=RANGE if range_ else {})
    result = ranges.build(drv, max_silent_time=1).result
    assert result.status is BuildStatus.TIMED_OUT
    assert processes_in_the_range() == []

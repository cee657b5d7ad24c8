"""What a builder can tell its machine by, and what it can't: rows 109 and 112 to 119.

Rows of level R name what is left: these tests say how much that is, and that it is no more.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.build.conftest import Drv, Workshop
from tests.hostile.inside import log_of

pytestmark = pytest.mark.root

# Where the host keeps what programs learn their place and language from.
_PLACES = "/etc/localtime /etc/timezone /usr/share/zoneinfo /usr/lib/locale /etc/locale.conf"
# Of level R: the machine's own, and the same for every process on it (docs/security.md).
_OF_THE_MACHINE = (
    *("/proc/sys/kernel/osrelease", "/proc/version", "/proc/cmdline", "/proc/cpuinfo"),
    *("/proc/sys/kernel/random/boot_id", "/proc/filesystems"),
)


def started(
    workshop: Workshop,
    drv: Drv,
    *options: str,
    environment: dict[str, str] | None = None,
    before: Callable[[], None] = lambda: None,
) -> subprocess.CompletedProcess[str]:
    """Build by the command line, started from a process that ``before`` has changed."""
    return subprocess.run(
        workshop.command("build", drv.text, *options),
        env={**workshop.environment(), **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        preexec_fn=before,
        restore_signals=False,
    )


def build_from(
    workshop: Workshop,
    drv: Drv,
    *options: str,
    environment: dict[str, str] | None = None,
    before: Callable[[], None] = lambda: None,
) -> str:
    """The output of a build that has to succeed."""
    done = started(workshop, drv, *options, environment=environment, before=before)
    assert done.returncode == 0, done.stderr[-3000:]
    return workshop.real(drv.out).read_text()


def _odd_process() -> None:
    """A caller with everything that is inherited set to something else."""
    os.umask(0o077)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2, signal.SIGHUP})


def test_row_109_what_a_caller_hands_down_ends_before_the_builder(workshop: Workshop) -> None:
    """Signals ignored and blocked, umask, randomised addresses, core dumps."""
    # Not through a shell, which changes what it does with some signals.
    files = (b"/proc/self/status", b"/proc/self/personality", b"/proc/self/limits")
    drv = workshop.make("state", builder=b"/bin/cat", args=files)
    done = started(workshop, drv, "-L", before=_odd_process)
    assert "failed to produce output path" in done.stderr
    text = "\n".join(line.partition("> ")[2] for line in done.stderr.splitlines())
    fields = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
    for name in ("SigIgn", "SigBlk", "SigPnd", "ShdPnd"):
        assert int(fields[name], 16) == 0, name
    assert fields["Umask"] == "0022"
    assert "00040000" in text.splitlines()  # ADDR_NO_RANDOMIZE and nothing else
    (core,) = [line for line in text.splitlines() if line.startswith("Max core file size")]
    assert core.split()[4:6] == ["0", "0"]


def test_row_112_no_path_of_the_host_is_in_reach(workshop: Workshop) -> None:
    """By environment, arguments, links of /proc or the working directory; mountinfo is level R."""
    script = """
    { env; pwd; for f in cwd root exe; do busybox readlink /proc/$$/$f; done
      for f in /proc/$$/environ /proc/$$/cmdline /proc/$$/maps /proc/$$/cgroup; do
          busybox tr '\\0' '\\n' < $f; done
      for f in 0 1 2; do busybox readlink /proc/$$/fd/$f; done; } > $out
    cat /proc/self/mountinfo
    """
    drv = workshop.make("paths", script)
    run = workshop.build(drv)
    assert run.result.success, run.log
    found = workshop.real(drv.out).read_text()
    assert "TMPDIR=/build\n" in found
    assert str(workshop.directory) not in found
    assert workshop.directory.name not in found
    # What is left: the places below the file system that mounts come from, and nothing else.
    lines = [line for line in run.text.splitlines() if str(workshop.directory) in line]
    for line in lines:
        fields = line.split()
        assert str(workshop.directory) not in " ".join([*fields[:3], *fields[4:]])
    targets = {line.split()[4] for line in lines}
    assert targets <= {"/build", "/tmp", "/nix/store", *_below_store(workshop)}


def _below_store(workshop: Workshop) -> set[str]:
    return {f"/nix/store/{name}" for name in os.listdir(workshop.location.real_store_dir)}


def test_row_114_no_time_of_a_build_gets_into_its_output(workshop: Workshop) -> None:
    """The clock is real (level R); what is registered bears 1970 and hashes without times."""
    script = "busybox mkdir -p $out/sub; echo x > $out/sub/file; busybox ln -s sub $out/link; "
    early = workshop.make("early", script + "busybox touch -d '1999-01-01 00:00' $out/sub $out")
    late = workshop.make("late", script + "busybox date +%s > /tmp/now; cat /tmp/now")
    hashes = set()
    for drv in (early, late):
        run = workshop.build(drv)
        assert run.result.success, run.log
        real = workshop.real(drv.out)
        for path in (real, *real.rglob("*")):
            assert path.lstat().st_mtime_ns == 10**9, path
        hashes.add(workshop.info(drv.out).nar_hash)
    assert len(hashes) == 1
    now = int(run.text.splitlines()[-1])
    assert 0 <= run.result.stop_time - now < 60


def test_row_114_clocks_can_not_be_set(workshop: Workshop) -> None:
    lines = log_of(workshop, "busybox date -s '2001-01-01 00:00' || true")
    assert lines[0] == "date: can't set date: Operation not permitted"


@pytest.mark.parametrize(
    ("platform", "machine"), [("x86_64-linux", "x86_64"), ("i686-linux", "i686")]
)
def test_row_115_a_build_sees_the_machine_it_is_for(
    workshop: Workshop, platform: str, machine: str
) -> None:
    lines = log_of(workshop, "busybox uname -m; busybox uname -n", "machine", platform=platform)
    assert lines == [machine, "localhost"]


def test_row_115_what_is_the_machine_s_own_is_no_more_than_is_listed(workshop: Workshop) -> None:
    """Two builds on one machine see the same there; nothing of it is one builder's alone."""
    script = f"cat {' '.join(_OF_THE_MACHINE)}; busybox uname -rv"
    first, second = (log_of(workshop, script, name) for name in ("first", "second"))
    assert first[0] == os.uname().release
    assert [line for line in first if "MHz" not in line] == [
        line for line in second if "MHz" not in line
    ]
    # And what would tell one installation from another isn't there.
    names = "/etc/machine-id /etc/hostname /etc/os-release /sys /var /run /proc/device-tree"
    script = f"for f in {names}; do [ ! -e $f ] || echo $f; done; cat /proc/sys/kernel/hostname"
    assert log_of(workshop, script, "others") == ["localhost"]


def test_row_116_cores_are_those_of_the_setting(workshop: Workshop) -> None:
    """``nproc`` shows the machine's (level R), or those that the caller was left with."""
    drv = workshop.make("cores", "echo $NIX_BUILD_CORES > $out; busybox nproc >> $out")
    have = len(os.sched_getaffinity(0))
    assert build_from(workshop, drv, "--cores", "3").split() == ["3", str(have)]
    other = workshop.make("cores0", "echo $NIX_BUILD_CORES > $out; busybox nproc >> $out")
    assert build_from(workshop, other, "--cores", "0").split() == [str(have)] * 2


def test_row_117_locale_and_time_zone_of_the_host_do_not_reach_a_build(workshop: Workshop) -> None:
    script = (
        f"{{ env; for f in {_PLACES}; do [ ! -e $f ] || echo there: $f; done;"
        " busybox date -d @0 +%H:%M:%S-%Z; } > $out"
    )
    host = {
        "LANG": "tr_TR.UTF-8",
        "LC_ALL": "tr_TR.UTF-8",
        "TZ": "Pacific/Kiritimati",
        "LOCPATH": "/canary",
        "TZDIR": "/canary",
    }
    found = build_from(workshop, workshop.make("locale", script), environment=host)
    assert re.findall(r"^(LANG|LANGUAGE|LC_\w+|TZ|TZDIR|LOCPATH)=", found, re.M) == []
    assert "there:" not in found
    assert found.splitlines()[-1] == "00:00:00-UTC"


def test_row_117_what_the_executor_writes_does_not_depend_on_them(workshop: Workshop) -> None:
    """Names with letters that a locale sorts or spells in its own way: the same archive."""
    script = "busybox mkdir $out; for n in I i ä Z a é; do echo > $out/$n; done"
    hashes = set()
    for number, name in enumerate(("C", "tr_TR.UTF-8", "xx_XX")):
        drv = workshop.make(f"sorted{number}", script)
        done = subprocess.run(
            workshop.command("build", drv.text),
            env={**workshop.environment(), "LANG": name, "LC_ALL": name, "TZ": "Asia/Tokyo"},
            capture_output=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        hashes.add(workshop.info(drv.out).nar_hash)
    assert len(hashes) == 1


_DUMP = """
{ env | busybox sort; busybox id; busybox uname -a; pwd; umask; ulimit -a; ulimit -H -a
  busybox find / -path /proc -prune -o -path /dev/pts -prune -o -print | busybox sort
  ls -la / /build /tmp /dev /etc; cat /etc/*; busybox readlink /proc/$$/cwd
  busybox grep -E '^(Uid|Gid|Groups|Sig|Cap|Umask|NoNew|Secc|NSpid|PPid)' /proc/self/status
  cat /proc/self/cgroup /proc/self/personality; busybox awk '{ print $1, $3 }' /proc/self/uid_map
  cat /proc/net/dev | busybox cut -d: -f1; busybox stat -c '%a %u %g' / /build
  echo $0 $$ $PPID; } > $out
"""


def test_row_119_builds_that_dump_everything_are_the_same(
    workshop: Workshop, tmp_path: Path
) -> None:
    """In two stores at other places, under other ids, from other callers: every byte."""
    dumps = []
    other = Workshop(tmp_path / "another-place")
    other.directory.mkdir()
    other.change(sandbox_paths=workshop.settings.sandbox_paths)
    hooks: list[Callable[[], None]] = [lambda: None, _odd_process]
    for place, before in zip((workshop, other), hooks, strict=True):
        drv = place.make("dump", _DUMP)
        dumps.append(build_from(place, drv, "--cores", "2", before=before))
    first, second = (_without_dates(dump) for dump in dumps)
    assert first == second


def _without_dates(dump: str) -> str:
    """``ls -l`` shows when directories were made and how many there are in ``/proc``: level R."""
    dump = re.sub(r"[A-Z][a-z]{2} +\d+ \d\d:\d\d", "DATE", dump)
    return re.sub(r"(?m)^(d[-rwxts]{9}) +\d+ ", r"\1 N ", dump)

"""What could leave a store wrong: power cuts, locks, collectors, full disks (rows 167 to 182)."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

import pytest

from executor.formats.store_path import StorePath
from executor.store.local import LocalStore
from tests.build.conftest import Workshop

pytestmark = pytest.mark.root


def test_row_167_files_are_on_disk_before_they_are_registered(
    workshop: Workshop, tmp_path: Path
) -> None:
    """By the kernel's account: files, directories, the move, the store, and then the database."""
    script = "busybox mkdir -p $out/sub; echo x > $out/sub/file; echo y > $out/top"
    drv = workshop.make("synced", script)
    trace = tmp_path / "trace"
    done = subprocess.run(
        [
            *("strace", "-f", "-y", "-q", "-s", "300", "-o", trace),
            *("-e", "trace=fsync,fdatasync,rename,renameat,renameat2,pwrite64"),
            *workshop.command("build", drv.text, "--option", "fsync-store-paths", "true"),
        ],
        env=workshop.environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    lines = trace.read_text().splitlines()
    name, store = drv.out.base_name, workshop.location.real_store_dir
    (moved,) = [
        number
        for number, line in enumerate(lines)
        if "rename" in line and re.search(rf'{re.escape(store)}>, "{re.escape(name)}"', line)
    ]
    synced = [re.search(r"f(?:data)?sync\(\d+<([^>]*)>", line) for line in lines]
    before = [match[1] for match in synced[:moved] if match is not None]
    for inside in ("/sub/file", "/sub", "/top", ""):
        assert any(path.endswith(name + inside) for path in before), inside
    (parent, *_) = [
        number
        for number, match in enumerate(synced)
        if match and number > moved and match[1] == store
    ]
    written = [n for n, line in enumerate(lines) if n > moved and "db.sqlite-wal>" in line]
    assert parent < written[0]


_LOCKER = """
import sys
from executor.store.locks import lock_paths
print("ready", flush=True)
for _ in range(300):
    lock_paths(sys.argv[1:]).release()
"""


def test_row_171_locks_that_are_wanted_in_opposite_orders_stop_nobody(tmp_path: Path) -> None:
    paths = [str(tmp_path / name) for name in "abcd"]
    orders = (paths, paths[::-1], [paths[2], paths[0], paths[3], paths[1]])
    running = [subprocess.Popen([sys.executable, "-c", _LOCKER, *order]) for order in orders]
    try:
        assert [process.wait(60) for process in running] == [0, 0, 0]
    finally:
        for process in running:
            process.kill()
            process.wait()


def test_row_172_what_was_found_valid_stays_while_it_is_used(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A collector runs right behind each answer that an input is valid: it has a root by then."""
    given = workshop.make("given", "echo given > $out")
    assert workshop.build(given).result.success
    user = workshop.make("user", "cat $given_out > $out", inputs=[given])
    real = LocalStore.query_valid
    asked: list[int] = []

    def ask(store: LocalStore, paths: Collection[StorePath]) -> set[StorePath]:
        answer = real(store, paths)
        if given.out in answer and len(asked) < 3:
            asked.append(workshop.cli("gc").returncode)
        return answer

    monkeypatch.setattr(LocalStore, "query_valid", ask)
    run = workshop.build(user)
    monkeypatch.undo()
    assert set(asked) == {0}
    assert run.result.success, run.result.message
    assert workshop.real(user.out).read_text() == "given\n"


_HOLDER = """
import sqlite3, sys, time
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("begin immediate")
print("held", flush=True)
sys.stdin.readline()
database.execute("rollback")
"""


def test_row_179_a_database_that_somebody_else_writes_to_is_waited_for(workshop: Workshop) -> None:
    drv = workshop.make("patient", "busybox sleep 0.3; echo > $out")
    words = [sys.executable, "-c", _HOLDER, str(workshop.database)]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        build = workshop.start_cli("build", drv.text)
        with pytest.raises(subprocess.TimeoutExpired):
            build.wait(4)
        holder.stdin.write("\n")
        holder.stdin.flush()
        _output, errors = build.communicate(timeout=60)
    assert build.returncode == 0, errors
    assert workshop.is_valid(drv.out)


@pytest.mark.parametrize("trouble", ["full", "read-only"])
def test_row_179_a_database_that_can_not_be_written_is_a_clean_error(
    workshop: Workshop, trouble: str
) -> None:
    drv = workshop.make("unlucky", "echo > $out")
    with workshop.store() as store:
        store.query_all_valid()
    database = workshop.database.parent
    command = " ".join(workshop.command("build", drv.text))
    spoil = {
        "full": "dd if=/dev/zero of=$db/fill bs=4096 2> /dev/null",
        "read-only": "mount -o remount,ro $db",
    }[trouble]
    script = (
        f"db={database}; cp -a $db $db.copy && rm -f $db.copy/reserved &&"
        " mount -t tmpfs -o size=1m,mode=755 db $db && cp -a $db.copy/. $db/ || exit 9;"
        f" {spoil}; {command}"
    )
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", script],
        env=workshop.environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
    )
    subprocess.run(["rm", "-r", f"{database}.copy"], check=True)
    assert done.returncode not in (0, 9), done.stderr
    assert "Traceback" not in done.stderr
    assert "internal error" not in done.stderr
    words = {"full": "full|space|disk I/O error", "read-only": "read-?only|readonly|Read-only"}[
        trouble
    ]
    assert re.search(words, done.stderr), done.stderr
    assert not workshop.is_valid(drv.out)
    assert workshop.build(drv).result.success


_KILLED = """
import os, sys
from executor.store import local, syscalls
real = syscalls.exchange
def kill(*_arguments):
    os.kill(os.getpid(), 9)
def exchange_and_kill(*arguments):
    real(*arguments)
    kill()
match sys.argv.pop(1):
    case "before": syscalls.exchange = kill
    case "behind": syscalls.exchange = exchange_and_kill
    case "deleting": local.delete_tree = kill
from executor.cli.entry import start
start()
"""


@pytest.mark.parametrize("step", ["before", "behind", "deleting"])
def test_row_181_a_path_is_whole_at_every_moment_of_its_replacement(
    workshop: Workshop, step: str
) -> None:
    """Killed in the middle, it has the old contents or the new ones, and can be repaired again."""
    drv = workshop.make("fragile", "echo good > $out")
    assert workshop.build(drv).result.success
    real = workshop.real(drv.out)
    real.chmod(0o644)
    real.write_text("evil\n")
    command = [sys.executable, "-c", _KILLED, step]
    command += workshop.command("build", "--repair", drv.text)[3:]
    done = subprocess.run(
        command, env=workshop.environment(), capture_output=True, check=False, timeout=60
    )
    assert done.returncode == -9, done.stderr
    assert workshop.is_valid(drv.out)
    assert real.read_text() == ("evil\n" if step == "before" else "good\n")
    assert workshop.cli("build", "--repair", drv.text).returncode == 0
    assert real.read_text() == "good\n"
    assert workshop.cli("verify", "--check-contents").returncode == 0
    # Whoever builds next removes what was left of the build.
    assert workshop.build(workshop.make("next")).result.success
    assert workshop.cli("gc").returncode == 0
    assert workshop.leftovers() == []


_DAMAGE = {
    "a bit": "printf X | busybox dd of=$p/sub/file bs=1 count=1 conv=notrunc",
    "an end": "busybox truncate -s 3 $p/sub/file",
    "a missing file": "rm $p/sub/file",
    "a file more": "echo > $p/new",
    "a mode": "chmod 755 $p/sub/file",
    "a target": "rm $p/link; ln -s other $p/link",
    "a type": "rm $p/link; mkdir $p/link",
    "an owner": "chown 1000 $p/sub/file",
    "all of it": "rm -r $p",
}


@pytest.mark.parametrize("damage", _DAMAGE)
def test_row_182_verification_tells_of_each_damage(workshop: Workshop, damage: str) -> None:
    drv = workshop.make(
        "whole", "busybox mkdir -p $out/sub; echo some text > $out/sub/file; ln -s sub $out/link"
    )
    assert workshop.build(drv).result.success
    assert workshop.cli("verify", "--check-contents").returncode == 0
    real = workshop.real(drv.out)
    subprocess.run(["sh", "-ec", f"p={real}; {_DAMAGE[damage]}"], check=True, capture_output=True)
    for path in (real, *real.rglob("*")):
        if os.path.lexists(path):
            os.utime(path, (1, 1), follow_symlinks=False)
    done = workshop.cli("verify", "--check-contents")
    assert drv.out.base_name in done.stdout + done.stderr
    assert done.returncode != 0 or damage == "all of it"

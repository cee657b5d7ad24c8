"""Path locks: exclusion, stale files, hostile files, and the same protocol as Nix."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from executor.errors import StoreError
from executor.store.errors import LockBusyError
from executor.store.local import LocalStore
from executor.store.locks import PathLocks, lock_holders, lock_paths, open_lock_file, try_lock

from .conftest import Nix


def test_lock_file_lives_as_long_as_the_lock(scratch: Path) -> None:
    path = str(scratch / "x")
    with lock_paths([path]) as locks:
        assert locks.held == (f"{path}.lock",)
        assert os.stat(f"{path}.lock").st_mode & 0o777 == 0o600
    assert not os.path.exists(f"{path}.lock")


def test_exclusion_within_one_process(scratch: Path) -> None:
    path = str(scratch / "x")
    with lock_paths([path]), pytest.raises(LockBusyError):
        lock_paths([path], blocking=False)
    lock_paths([path], blocking=False).release()


def test_the_holder_of_a_lock_can_be_named(scratch: Path) -> None:
    first, second = str(scratch / "a"), str(scratch / "b")
    assert lock_holders([first]) == ()
    with lock_paths([second]):
        assert lock_holders([first]) == ()
        assert lock_holders([first, second]) == (os.getpid(),)
    assert lock_holders([second]) == ()


def test_a_process_that_waits_holds_nothing(scratch: Path) -> None:
    path = str(scratch / "x")
    code = (
        "import sys; from executor.store.locks import lock_paths\n"
        "print('started', flush=True); lock_paths([sys.argv[1]]).release()"
    )
    with lock_paths([path]):
        command = [sys.executable, "-c", code, path]
        waiter = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert waiter.stdout is not None
        waiter.stdout.readline()
        for _ in range(100):
            if f"-> FLOCK  ADVISORY  WRITE {waiter.pid} " in Path("/proc/locks").read_text():
                break
            time.sleep(0.01)
        assert lock_holders([path]) == (os.getpid(),)
    assert waiter.wait(20) == 0
    waiter.stdout.close()


def test_all_or_nothing(scratch: Path) -> None:
    first, second = str(scratch / "a"), str(scratch / "b")
    with lock_paths([second]):
        assert not PathLocks().try_acquire([first, second])
        lock_paths([first], blocking=False).release()


def test_waits_and_reports(scratch: Path) -> None:
    path = str(scratch / "x")
    waited: list[str] = []
    holder = lock_paths([path])
    timer = threading.Timer(0.2, holder.release)
    timer.start()
    with lock_paths([path], on_wait=waited.append):
        assert waited == [path]
        # The holder deleted the file that we waited on; ours has to be the new one.
        assert os.path.exists(f"{path}.lock")
    timer.join()


def test_stale_file_is_not_a_lock(scratch: Path) -> None:
    path = str(scratch / "x")
    fd = open_lock_file(f"{path}.lock")
    assert try_lock(fd, exclusive=True)
    waiter = threading.Thread(target=lambda: lock_paths([path]).release())
    waiter.start()
    time.sleep(0.1)
    os.unlink(f"{path}.lock")
    os.write(fd, b"d")
    os.close(fd)
    waiter.join(timeout=10)
    assert not waiter.is_alive()


def test_planted_symlink_is_refused(scratch: Path) -> None:
    victim = scratch / "victim"
    victim.write_text("precious")
    (scratch / "x.lock").symlink_to(victim)
    with pytest.raises(StoreError, match="symbolic link"):
        lock_paths([str(scratch / "x")])
    assert victim.read_text() == "precious"


def test_keeps_a_file_that_cannot_be_unlinked_unmarked(scratch: Path) -> None:
    with PathLocks(keep_files=True) as locks:
        locks.acquire([str(scratch / "x")])
    assert (scratch / "x.lock").read_bytes() == b""


_CRITICAL = """
import os, sys
from executor.store.locks import lock_paths
path, count = sys.argv[1], sys.argv[2]
for _ in range(200):
    with lock_paths([path]):
        with open(count) as file: number = int(file.read())
        with open(count, "w") as file: file.write(str(number + 1))
"""


def test_exclusion_between_processes(scratch: Path) -> None:
    count = scratch / "count"
    count.write_text("0")
    script = [sys.executable, "-c", _CRITICAL, str(scratch / "x"), str(count)]
    running = [subprocess.Popen(script) for _ in range(3)]
    assert [process.wait() for process in running] == [0, 0, 0]
    assert count.read_text() == "600"
    assert not (scratch / "x.lock").exists()


@pytest.mark.nix
def test_nix_waits_for_our_lock(store: LocalStore, nix: Nix, scratch: Path) -> None:
    (scratch / "hello").write_text("hello")
    path = store.add_file_or_tree("hello", str(scratch / "hello"))
    store.invalidate(path)
    with lock_paths([store.real_path(path)]):
        adding = subprocess.Popen(
            nix.command("nix-store", "--add", str(scratch / "hello")),
            env=nix.environment(),
            stdout=subprocess.PIPE,
        )
        with pytest.raises(subprocess.TimeoutExpired):
            adding.wait(timeout=0.7)
        assert not store.is_valid(path)
    assert adding.communicate()[0].decode().strip() == store.store_dir.render(path)
    assert store.is_valid(path)

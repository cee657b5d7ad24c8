"""Roots of all kinds, as stock Nix finds them, and what may lie where roots are looked for."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from executor.errors import StoreError
from executor.formats.store_path import StorePath
from executor.store.gc_roots import CENSORED, find_temporary_roots, hash_part
from executor.store.local import LocalStore
from executor.store.location import StoreLocation

from .conftest import Nix

# Of no account on any machine.
USER = 61234


@contextmanager
def _process(script: str, *arguments: str, **environ: str) -> Iterator[None]:
    """A process that has done something and waits."""
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import os, sys, mmap\n{script}\nprint('ready', flush=True)\ninput()",
            *arguments,
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={"PATH": "/bin", **environ},
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield
    finally:
        process.communicate("\n", timeout=20)


def _state(location: StoreLocation, name: str) -> Path:
    path = Path(location.state_dir, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _paths(store: LocalStore, count: int) -> list[StorePath]:
    """Valid paths without temporary roots, and with names that nobody else has."""
    with LocalStore.open(store.location) as other:
        tag = os.urandom(6).hex()
        return [other.add_text(f"{tag}-{number}", tag.encode()) for number in range(count)]


def _links(store: LocalStore, path: StorePath) -> set[str]:
    return store.find_roots().get(path, set())


@pytest.mark.nix
def test_links_of_all_kinds_as_nix(store: LocalStore, nix: Nix, scratch: Path) -> None:
    location, paths = store.location, _paths(store, 8)
    texts = [f"/nix/store/{path}" for path in paths]
    _state(location, "gcroots/a/b/direct").symlink_to(texts[0])
    _state(location, "profiles/per-user/me/profile").symlink_to(texts[1] + "/bin/program")
    _state(location, f"gcroots/{paths[2]}").write_text("a file with the name of a path")
    (scratch / "result").symlink_to(texts[3])
    _state(location, "gcroots/auto/x").symlink_to(scratch / "result")
    (scratch / "relative").symlink_to(texts[4])
    target = os.path.relpath(scratch / "relative", _state(location, "gcroots/auto/x").parent)
    _state(location, "gcroots/auto/y").symlink_to(target)
    # These keep nothing: two steps from the store, not a link, into the directory itself, missing.
    (scratch / "twice").symlink_to(scratch / "once")
    (scratch / "once").symlink_to(texts[5])
    _state(location, "gcroots/twice").symlink_to(scratch / "twice")
    (scratch / "file").write_text(texts[6])
    _state(location, "gcroots/file").symlink_to(scratch / "file")
    _state(location, "gcroots/store").symlink_to("/nix/store")
    _state(location, "gcroots/bad").symlink_to("/nix/store/../../etc")
    _state(location, "gcroots/gone").symlink_to("/nix/store/0c5b4rqqbwqhhp30jhjlh2bjzrpz1v2k-x")
    _state(location, "gcroots/dangling").symlink_to("/nowhere/at/all")
    found = store.find_roots()
    theirs = nix.run("nix-store", "--gc", "--print-roots").splitlines()
    lines = [f"{link} -> /nix/store/{path}" for path, links in found.items() for link in links]
    assert sorted(lines) == sorted(theirs)
    assert set(found) == set(paths[:5])
    assert os.path.islink(_state(location, "gcroots/dangling"))


def test_stale_indirect_links_go(store: LocalStore, scratch: Path) -> None:
    location = store.location
    told: list[str] = []
    stale, kept = _state(location, "gcroots/auto/stale"), _state(location, "gcroots/auto/kept")
    stale.symlink_to(scratch / "gone")
    (scratch / "dangling").symlink_to("/nowhere")
    kept.symlink_to(scratch / "dangling")
    inner = _state(location, "gcroots/auto/sub/stale")
    inner.symlink_to(scratch / "gone")
    store.find_roots(report=told.append)
    assert not stale.is_symlink()
    assert kept.is_symlink()
    assert any("removing stale link" in text for text in told)


@pytest.mark.root
def test_hostile_names_and_depths(store: LocalStore) -> None:
    """What a user's directory of roots holds must not stop the collector."""
    (path,) = _paths(store, 1)
    _state(store.location, "gcroots/per-user/me/\udcff\n->").symlink_to(f"/nix/store/{path}")
    fd = os.open(_state(store.location, "gcroots/per-user/me"), os.O_RDONLY)
    os.fchown(fd, USER, -1)
    for _ in range(1500):
        os.mkdir("deep", dir_fd=fd)
        inner = os.open("deep", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)
    os.mkfifo(_state(store.location, "gcroots/per-user/me/fifo"))
    _state(store.location, "gcroots/per-user/me/loop").symlink_to("loop")
    assert len(_links(store, path)) == 1
    # Where nobody else can have made them, what is too deep to be looked at ends the search.
    os.chown(_state(store.location, "gcroots/per-user/me"), 0, 0)
    with pytest.raises(StoreError, match="levels of directories"):
        store.find_roots()


@pytest.mark.root
def test_unreadable_directories(store: LocalStore) -> None:
    """Files where directories should be, and links that lead through files."""
    _state(store.location, "gcroots/through").symlink_to("/etc/passwd/x")
    told: list[str] = []
    store.find_roots(report=told.append)
    Path(store.location.state_dir, "temproots/strange").mkdir()
    with pytest.raises(StoreError, match="temporary roots"):
        find_temporary_roots(store.location, told.append)


def test_temporary_roots(store: LocalStore) -> None:
    location = store.location
    path = StorePath.parse("0c5b4rqqbwqhhp30jhjlh2bjzrpz1v2k-x")
    stale = _state(location, "temproots/123")
    stale.write_bytes(b"/nix/store/0c5b4rqqbwqhhp30jhjlh2bjzrpz1v2k-stale\0")
    hidden = _state(location, "temproots/.keep")
    hidden.write_bytes(b"")
    store.add_temp_root(path)
    mine = _state(location, f"temproots/{os.getpid()}")
    with mine.open("ab") as file:
        file.write(b"nonsense\0/nix/store/\xff\0/nix/store/0c5b4rqqbwqhhp30jhjlh2bjzrpz1v2k-part")
    descriptor = os.open(stale, os.O_RDWR)
    assert store.find_roots()[path] == {f"{{temp:{os.getpid()}}}"}
    assert len(find_temporary_roots(location, lambda _text: None)) == 1
    assert not stale.exists()
    assert hidden.exists()
    # Its next owner, who may have opened it already, sees that it has gone.
    assert os.read(descriptor, 1) == b"d"
    os.close(descriptor)


def test_a_link_among_the_temporary_roots_is_not_followed(store: LocalStore, scratch: Path) -> None:
    (scratch / "victim").write_text("")
    _state(store.location, "temproots/77").symlink_to(scratch / "victim")
    with pytest.raises(StoreError, match="temporary roots"):
        store.find_roots()
    assert (scratch / "victim").read_text() == ""


def test_running_processes(store: LocalStore) -> None:
    cwd, opened, mapped, environ, argument = _paths(store, 5)
    real = [str(store.real_path(path)) for path in (opened, mapped)]
    directory = Path(store.location.real_store_dir, cwd.base_name)
    directory.unlink()
    directory.mkdir()
    script = (
        "os.chdir(sys.argv[1])\n"
        "one = os.open(sys.argv[2], os.O_RDONLY)\n"
        "fd = os.open(sys.argv[3], os.O_RDONLY)\n"
        "two = mmap.mmap(fd, 0, prot=mmap.PROT_READ)\n"
        "os.close(fd)\n"
    )
    arguments = (str(directory), *real, f"/nix/store/{argument}")
    with _process(script, *arguments, WHERE=f"/a:/nix/store/{environ}/bin:/b"):
        found = store.find_roots()
        kinds = {path: {link.rpartition("/")[2] for link in found.get(path, ())} for path in found}
        assert kinds[cwd] == {"cwd"}
        assert kinds[opened] == {"3"}
        assert "maps" in kinds[mapped]
        assert kinds[environ] == {"environ"}
        assert argument not in found
        assert store.find_roots(censor=True)[cwd] == {CENSORED}
    assert not set(store.find_roots()) & {cwd, opened, mapped, environ}


@pytest.mark.nix
def test_environments_as_nix(store: LocalStore, nix: Nix) -> None:
    used, unused = _paths(store, 2)
    with _process("", USED=f"/nix/store/{used}"):
        theirs = nix.run("nix-store", "--gc", "--print-dead").splitlines()
        assert theirs == [f"/nix/store/{unused}"]
        assert set(store.find_roots()) == {used}


def test_hash_parts() -> None:
    digest = "0c5b4rqqbwqhhp30jhjlh2bjzrpz1v2k"
    assert hash_part(f"{digest}-x".encode()) == digest
    assert hash_part(f"{digest}-".encode() + b"\xff" * 220) == digest
    for name in (b"", b"tmp-1", digest.encode(), b"\xff" * 32 + b"-x", b"." * 32 + b"-x"):
        assert hash_part(name) is None


_LIAR = r"""
#define _GNU_SOURCE
#include <linux/prctl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>
int main(int argc, char **argv) {
  unsigned long size = 1UL << 38, here = (unsigned long)&main & ~4095UL;
  char *place = mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                     -1, 0);
  if (place == MAP_FAILED || setuid(61234)) return 1;
  strcpy(place + 300, argv[1]);
  strcpy(place + (1 << 20) - 20, argv[2]);
  struct prctl_mm_map map = {
      .start_code = here, .end_code = here + 1, .start_data = here, .end_data = here + 1,
      .start_brk = here + 4096, .brk = here + 4096, .start_stack = (unsigned long)&size,
      .arg_start = (unsigned long)place, .arg_end = (unsigned long)place + 10,
      .env_start = (unsigned long)place, .env_end = (unsigned long)place + size, .exe_fd = -1};
  if (prctl(PR_SET_MM, PR_SET_MM_MAP, &map, sizeof map, 0)) return 2;
  puts("ready");
  fflush(stdout);
  for (;;) {
    if (argc < 4) { pause(); continue; }
    /* Mappings that go up as fast as somebody reads of them. */
    for (char *at = place; at < place + size; at += 8192) {
      mprotect(at, 4096, PROT_READ);
      if (at > place + (1 << 26)) mprotect(at - (1 << 26), 4096, PROT_READ | PROT_WRITE);
    }
  }
}
"""


@pytest.mark.root
@pytest.mark.parametrize("more", [[], ["mappings"]])
def test_memory_without_end_is_not_read_without_end(
    store: LocalStore, scratch: Path, more: list[str]
) -> None:
    """A process may call a quarter of a terabyte its environment: the rest is found anyway."""
    (scratch / "liar.c").write_text(_LIAR)
    liar = scratch / "liar"
    subprocess.run(["gcc", "-O1", "-o", liar, scratch / "liar.c"], check=True, timeout=60)
    early, other, honest = _paths(store, 3)
    program = (
        "import resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))\n"
        "from executor.store.local import LocalStore\n"
        "from executor.store.location import parse_store_url\n"
        "with LocalStore.open(parse_store_url(sys.argv[1], {})) as store:\n"
        "    found = store.find_roots(report=print)\n"
        "print('found', *(path.base_name for path in found))\n"
    )
    names = [store.store_dir.render(path) for path in (early, other)]
    with (
        subprocess.Popen([liar, *names, *more], stdout=subprocess.PIPE) as process,
        _process("", WHERE=store.store_dir.render(honest)),
    ):
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        start = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", program, store.location.state_dir.removesuffix("/nix/var/nix")],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        process.kill()
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - start < 60
    assert honest.base_name in done.stdout.splitlines()[-1]
    assert f"of a process of user {USER}" in done.stdout

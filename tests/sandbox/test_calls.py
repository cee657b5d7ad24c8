"""What each dangerous system call answers inside; the table is written by hand.

Numbers behind a line are rows of the project's attack catalogue.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sandbox import Exec, Exited, InputPath
from tests.sandbox.conftest import Bench

pytestmark = pytest.mark.root

EXPECTED = {
    "chmod_plain": "OK",
    "chmod_sticky": "OK",
    "chmod_suid": "EPERM",  # 31
    "chmod_sgid": "EPERM",
    "chmod_suid_high": "EPERM",
    "fchmodat_suid": "EPERM",
    "fchmodat2_suid": "EPERM",
    "fchmodat2_plain": "OK",
    "chmod_suid_i386": "EPERM",  # 32
    "chmod_plain_i386": "OK",
    "open_suid": "EPERM",  # 34
    "open_suid_i386": "EPERM",
    "open_unused_mode": "OK",  # a mode without a new file is whatever the register held
    "tmpfile_suid": "EPERM",
    "creat_suid": "EPERM",
    "mknod_suid": "EPERM",
    "openat2": "ENOSYS",
    "setxattr": "EOPNOTSUPP",  # 37
    "getxattr": "EOPNOTSUPP",
    "setxattrat": "EOPNOTSUPP",
    "io_uring": "ENOSYS",  # 38
    "keyctl": "ENOSYS",  # 29, 56
    "bpf": "ENOSYS",
    "perf": "ENOSYS",
    "userfaultfd": "ENOSYS",
    "vsock": "EAFNOSUPPORT",  # 51
    "packet": "EPERM",
    "alg": "EAFNOSUPPORT",
    "unix_by_number_i386": "OK",
    "unix_by_socketcall": "EAFNOSUPPORT",  # the family lies behind a pointer
    "inet": "OK",
    "tiocsti": "EPERM",  # 57
    "tiocsti_high": "EPERM",
    "mount": "EPERM",  # 28
    "umount_proc": "EPERM",
    "mknod_null": "EPERM",  # 7
    "sethostname": "EPERM",
    "core_pattern": "EACCES",  # 17
    "sysrq": "EACCES",  # 18; see below
    "parent_mem": "ENOENT",  # 8
    "new_privileges": "OK",
    "nested_user": "OK",  # 27: nested builders work
    "nested_tmpfs": "OK",
    "nested_umount_store": "EINVAL",
    "nested_umount_input": "EINVAL",
    "nested_remount": "EPERM",
    "nested_write": "EROFS",  # 3
}


def answers_of(bench: Bench, probe: Path, **changes: object) -> dict[str, str]:
    tree = bench.directory / "input"
    tree.mkdir()
    (tree / "file").write_text("x")
    os.chmod(tree / "file", 0o666)
    spec = bench.spec(
        "",
        entry=Exec(b"/nix/store/probe"),
        inputs=(
            InputPath(source=os.fsencode(tree), name=b"input"),
            InputPath(source=os.fsencode(probe), name=b"probe"),
        ),
        **changes,
    )
    finished = bench.run_spec(spec)
    assert isinstance(finished.exit, Exited), finished.output
    answers = dict(line.split(" ", 1) for line in finished.output.splitlines())
    if not os.path.exists("/proc/sysrq-trigger"):
        answers["sysrq"] = "EACCES"
    return answers


def test_every_call_answers_as_the_table_says(bench: Bench, probe: Path) -> None:
    assert answers_of(bench, probe) == EXPECTED


def test_a_32_bit_build_may_have_sockets_of_its_c_library(bench: Bench, probe: Path) -> None:
    """An old libc makes all of them by one call whose arguments a filter can't see."""
    answers = answers_of(bench, probe, machine="i686")
    assert answers == EXPECTED | {"unix_by_socketcall": "OK"}

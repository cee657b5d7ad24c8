"""What one cold build imports, where each module costs a third of a millisecond and more."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.root

# Of ours; raise it for what every build needs, and import the rest where it is used.
MOST = 128
NEEDLESS = {
    *("_ssl", "datetime", "hmac", "ipaddress", "lzma", "random", "secrets"),
    *("shutil", "sqlite3", "tempfile", "urllib", "email", "http", "uuid", "decimal", "pyroute2"),
    *("executor.build.check", "executor.build.floating", "executor.build.hook"),
    *("executor.build.prebuild", "executor.build.post_build", "executor.build.program"),
    *("executor.build.reference_graph", "executor.build.resolver"),
    *("executor.build.structured_attrs", "executor.caches.substituters"),
    *("executor.derivation_json", "executor.instantiate", "executor.protocols.restricted"),
    *("executor.store.collect", "executor.store.gc_server", "executor.store.restore"),
    *("executor.store.usage", "sandbox.mounts", "sandbox.nat", "sandbox.seccomp"),
}
BUSYBOX = "/bin/busybox"
SCRIPT = """\
{"version": 4, "derivations": {"one": {"system": "x86_64-linux", "builder": "/bin/sh",
 "args": ["-c", "echo one > $out"], "inputs": {"drvs": {}, "srcs": []}}}}
"""


def run(store: Path, *words: str, profiled: bool = False) -> subprocess.CompletedProcess[str]:
    environment = {
        "PATH": os.environ["PATH"],
        "NIX_CONF_DIR": str(store),
        "NIX_CONFIG": f"sandbox-paths = /bin/sh={BUSYBOX}\nsubstituters =\n",
        **({"PYTHONPROFILEIMPORTTIME": "1"} if profiled else {}),
    }
    program = Path(sys.executable).with_name("executor")
    return subprocess.run(
        [program, *words[:1], "--store", str(store / "root"), *words[1:]],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )


def imported(report: str) -> set[str]:
    """The modules in what Python prints of its imports."""
    lines = [line for line in report.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip() for line in lines}


def test_a_cold_build_imports_what_it_needs(tmp_path: Path) -> None:
    (tmp_path / "one.json").write_text(SCRIPT)
    drv = run(tmp_path, "instantiate", str(tmp_path / "one.json")).stdout.split()[-1]
    found = imported(run(tmp_path, "build", drv, profiled=True).stderr)
    assert {"asyncio", "executor.build.goal"} <= found
    assert not found & NEEDLESS
    ours = {name for name in found if name.split(".")[0] in ("executor", "sandbox")}
    assert len(ours) <= MOST, sorted(ours)


def test_what_is_valid_is_told_without_the_engine(tmp_path: Path) -> None:
    (tmp_path / "one.json").write_text(SCRIPT)
    drv = run(tmp_path, "instantiate", str(tmp_path / "one.json")).stdout.split()[-1]
    run(tmp_path, "build", drv)
    found = imported(run(tmp_path, "build", drv, profiled=True).stderr)
    assert "executor.cli.shortcut" in found
    assert not found & {"argparse", "asyncio", "re", "typing", "executor.cli.main"}


def test_what_was_left_out_is_there_for_who_needs_it() -> None:
    code = """
        from executor.cli.build_command import _import_asyncio
        _import_asyncio()
        import asyncio.sslproto, sys
        assert asyncio.sslproto.ssl is None and "ssl" not in sys.modules
        import ssl
        assert ssl.create_default_context() is not None"""
    lines = "\n".join(line.strip() for line in code.splitlines())
    subprocess.run([sys.executable, "-c", lines], check=True, timeout=60)
